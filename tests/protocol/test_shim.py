"""The two shims: what they need, and what they answer when the agent does not."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ipam import boot_mark
from tests.conftest import ROOT, install
from tests.harness.agents import HEAD, start_agent
from tests.harness.networks import eventually, network, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import Node


@pytest.fixture(params=["python", "c"])
def shim_node(request: pytest.FixtureRequest, plain_node: Node) -> Node:
    """Return a node whose executables are a shim that looks for an agent at `a.sock` in its directory."""
    plain_node.bin_dir = plain_node.tmp / "bin"
    options = ["--shim"] if request.param == "c" else []
    install(plain_node.bin_dir, plain_node.tmp / "a.sock", *options)
    return plain_node


@pytest.fixture
def c_node(plain_node: Node) -> Node:
    """Return a node whose executables are the C shim."""
    plain_node.bin_dir = plain_node.tmp / "bin"
    install(plain_node.bin_dir, plain_node.tmp / "a.sock", "--shim")
    return plain_node


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a root directory that holds the C shim and nothing else."""
    made = tmp_path / "root"
    made.mkdir()
    install(tmp_path / "bin", Path("/a.sock"), "--shim")
    (tmp_path / "bin/podwire").rename(made / "podwire")
    return made


def in_root(root: Path, command: str) -> dict[str, Any]:
    environ = {"CNI_COMMAND": command}
    done = subprocess.run(
        ["/usr/sbin/chroot", root, "/podwire"], env=environ, input=b"", capture_output=True, check=False
    )
    assert done.stderr == b""
    return json.loads(done.stdout) | {"status": done.returncode}


def test_the_c_shim_works_in_an_empty_root(root: Path) -> None:
    assert [path.name for path in root.iterdir()] == ["podwire"]
    with start_agent(root / "a.sock"):
        answer = in_root(root, "VERSION")
    assert answer["status"] == 0
    assert "1.1.0" in answer["supportedVersions"]


@pytest.mark.parametrize(("command", "code"), [("ADD", 11), ("DEL", 11), ("VERSION", 11), ("STATUS", 50)])
def test_the_c_shim_without_an_agent_names_the_socket(root: Path, command: str, code: int) -> None:
    answer = in_root(root, command)
    assert (answer["status"], answer["code"]) == (1, code)
    assert answer["msg"] == "podwire agent at /a.sock: wanted an answer, found No such file or directory"


def test_the_c_shim_says_that_it_has_no_commands(root: Path) -> None:
    """A script must not take what a runtime gets without a verb for "nothing found"."""
    command = ["/usr/sbin/chroot", str(root), "/podwire", "doctor"]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "has no commands: run `podwire doctor` where its agent runs" in done.stderr


def test_the_c_shim_is_small(c_node: Node) -> None:
    assert (c_node.bin_dir / "podwire").stat().st_size < 34_000
    assert len((ROOT / "shim/podwire-shim.c").read_text().splitlines()) <= 230


def test_the_python_shim_imports_builtins_only(plain_node: Node) -> None:
    path = plain_node.tmp / "bin"
    install(path, plain_node.tmp / "a.sock")
    with start_agent(plain_node.tmp / "a.sock"):
        imported = [_imports([str(path / "podwire")]), _imports(["-c", "pass"])]
    assert imported[0] - imported[1] <= {*sys.builtin_module_names, "_socket"}


def _imports(arguments: list[str]) -> set[str]:
    command = [sys.executable, "-IS", "-X", "importtime", *arguments]
    environ = os.environ | {"CNI_COMMAND": "VERSION"}
    done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return set(re.findall(r"\| +(\S+)$", done.stderr.decode(), re.MULTILINE)) - {"package"}


def test_the_wanted_interpreter_flags_and_marker_head_the_executable(bin_dir: Path) -> None:
    head = (bin_dir / "podwire").read_text().splitlines()[:2]
    assert head[0] == f"#!{sys.executable} -IS"
    assert head[1].startswith("# podwire-cni-executable")


def test_an_agent_killed_during_a_call_is_an_error_to_retry(shim_node: Node) -> None:
    node = shim_node
    begun = node.tmp / "begun"
    (node.bin_dir / "slow").write_text(f"#!/bin/sh\n: >{begun}\nsleep 20\n")
    (node.bin_dir / "slow").chmod(0o755)
    config, pod = network(node) | {"ipam": {"type": "slow"}}, node.pod()
    with start_agent(node.tmp / "a.sock") as agent, ThreadPoolExecutor() as pool:
        waiting = pool.submit(node.call, "ADD", config, pod)
        wait_for(begun)
        agent.kill()
        answer = waiting.result()
    assert (answer.status, answer.json["code"]) == (1, 11)
    assert f"podwire agent at {node.tmp}/a.sock: wanted an answer" in answer.json["msg"]
    with start_agent(node.tmp / "a.sock"):
        node.delete(network(node), pod)
    assert [name for name in node.links() if name.startswith("veth")] == []


def test_a_call_that_waits_in_an_agent_that_is_killed_is_made(shim_node: Node) -> None:
    """By the next agent, or by the executable itself: it had not begun."""
    node, begun = shim_node, shim_node.tmp / "begun"
    (node.bin_dir / "slow").write_text(f"#!/bin/sh\n: >{begun}\nsleep 20\n")
    (node.bin_dir / "slow").chmod(0o755)
    slow, config = network(node) | {"ipam": {"type": "slow"}}, network(node, [{"subnet": "10.22.0.0/24"}])
    pods = [node.pod() for _ in range(4)]
    with start_agent(node.tmp / "a.sock", "--workers", 1) as agent, ThreadPoolExecutor() as pool:
        agent.wait_ready()
        running = pool.submit(node.call, "ADD", slow, pods[0])
        wait_for(begun)
        waiting = [pool.submit(node.call, "ADD", config, pod) for pod in pods[1:]]
        clients = Path(f"/proc/{agent.process.pid}/task")
        assert eventually(lambda: len(list(clients.iterdir())) >= 5, wanted=True)
        agent.kill()
        with start_agent(node.tmp / "a.sock"):
            assert running.result().json["code"] == 11
            assert [each.result().status for each in waiting] == [0, 0, 0]
    assert len(node.held()) == 3


def test_a_terminal_as_stdin_is_not_waited_for(shim_node: Node) -> None:
    master, terminal = os.openpty()
    command = [str(shim_node.bin_dir / "podwire")]
    environ = os.environ | {"CNI_COMMAND": "VERSION"}
    try:
        with start_agent(shim_node.tmp / "a.sock"):
            done = subprocess.run(
                command, env=environ, stdin=terminal, capture_output=True, check=True, timeout=20
            )
    finally:
        os.close(master)
        os.close(terminal)
    assert b"supportedVersions" in done.stdout


def test_a_gc_of_megabytes_passes(shim_node: Node) -> None:
    node = shim_node
    attachments = [{"containerID": f"{n:064x}", "ifname": "eth0"} for n in range(30_000)]
    config = network(node, [{"subnet": "10.22.0.0/24"}]) | {"cni.dev/valid-attachments": attachments}
    with start_agent(node.tmp / "a.sock") as agent:
        assert node.call("GC", config).status == 0
        assert "verb=GC" in agent.lines()[-1]


def test_a_silent_agent_is_waited_for(shim_node: Node) -> None:
    """A queue is patience: what limits a call is its runtime, not the shim."""
    with start_agent(shim_node.tmp / "a.sock", "--workers", 1) as agent, ThreadPoolExecutor() as pool:
        os.kill(agent.process.pid, 19)
        waiting = pool.submit(shim_node.call, "VERSION", b"")
        threading.Event().wait(0.5)
        assert not waiting.done()
        os.kill(agent.process.pid, 18)
        assert waiting.result().status == 0


# An agent that is away for a moment, and the C shim


def write_seen(node: Node, *, seconds_ago: int = 0, boot: str = "") -> None:
    """Write what an agent does that was here."""
    boot = boot or boot_mark.boot_id()
    (node.tmp / "a.sock.seen").write_text(f"{boot} {int(boot_mark.uptime()) - seconds_ago}\n")


def test_an_agent_says_that_it_is_here_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    seen = tmp_path / "a.sock.seen"
    with start_agent(tmp_path / "a.sock") as agent:
        wait_for(seen)
        boot, seconds = seen.read_text().split()
        assert boot == boot_mark.boot_id()
        assert 0 <= boot_mark.uptime() - int(seconds) < 20
        assert seen.stat().st_mode & 0o777 == 0o600
        first = seen.stat().st_ino
        assert eventually(lambda: seen.stat().st_ino != first, wanted=True, within=20)
        seen.unlink()
        assert agent.stop() == 0
        assert seen.exists()


def test_status_is_well_while_the_agent_is_away_for_less_than_two_minutes(c_node: Node) -> None:
    config = network(c_node)
    with start_agent(c_node.tmp / "a.sock") as agent:
        assert c_node.call("STATUS", config).status == 0
        agent.kill()
        answer = c_node.call("STATUS", config)
        assert (answer.status, answer.stdout, answer.stderr) == (0, "", "")
    write_seen(c_node, seconds_ago=115)
    assert c_node.call("STATUS", config).status == 0


@pytest.mark.parametrize(
    "seen", [{"seconds_ago": 125}, {"seconds_ago": -60}, {"boot": "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb"}]
)
@pytest.mark.parametrize(("command", "code"), [("ADD", 11), ("DEL", 11), ("STATUS", 50)])
def test_an_agent_of_long_ago_or_of_another_boot_is_not_waited_for(
    c_node: Node, command: str, code: int, seen: dict[str, Any]
) -> None:
    write_seen(c_node, **seen)
    begun = time.monotonic()
    answer = c_node.call(command, network(c_node), None if command == "STATUS" else c_node.pod())
    assert (answer.status, answer.json["code"]) == (1, code)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("content", ["", "here\n", "1b4e28ba", f"{'x' * 500}"])
def test_what_no_agent_has_written_is_no_agent(c_node: Node, content: str) -> None:
    (c_node.tmp / "a.sock.seen").write_text(content)
    assert c_node.call("STATUS", network(c_node)).json["code"] == 50


def test_calls_are_made_when_the_agent_is_back(c_node: Node) -> None:
    node, config = c_node, network(c_node, [{"subnet": "10.22.0.0/24"}])
    first, second = node.pod(), node.pod()
    with start_agent(node.tmp / "a.sock") as agent, ThreadPoolExecutor() as pool:
        result = node.add(config, first)
        agent.kill()
        waiting = [
            pool.submit(node.call, "ADD", config, second),
            pool.submit(node.call, "CHECK", config | {"prevResult": result}, first),
            pool.submit(node.call, "VERSION", b""),
        ]
        time.sleep(0.5)
        assert not any(each.done() for each in waiting)
        with start_agent(node.tmp / "a.sock") as back:
            assert [each.result().status for each in waiting] == [0, 0, 0]
            back.kill()
            waiting = [pool.submit(node.call, "DEL", config, pod) for pod in (first, second)]
            time.sleep(0.5)
            assert not any(each.done() for each in waiting)
            with start_agent(node.tmp / "a.sock"):
                assert [each.result().status for each in waiting] == [0, 0]
    assert node.held() == {}


def test_an_agent_that_stays_away_is_waited_for_ten_seconds(c_node: Node) -> None:
    config, pod = network(c_node), c_node.pod()
    write_seen(c_node)
    begun = time.monotonic()
    with ThreadPoolExecutor() as pool:
        verbs = {"ADD": pod, "DEL": pod, "CHECK": pod, "GC": None, "VERSION": None}
        answers = list(pool.map(lambda verb: c_node.call(verb, config, verbs[verb]), verbs))
    assert [(answer.status, answer.json["code"]) for answer in answers] == [(1, 11)] * 5
    assert 8.5 < time.monotonic() - begun < 20


# A request that was sent, and an agent that ends


@contextmanager
def losing_agent(node: Node, *, reads: bool) -> Iterator[list[bytes]]:
    """Lose the first request, read or unread, answer the next one with "answered"; yield what was read."""
    read: list[bytes] = []

    def serve() -> None:
        for number in range(2):
            try:
                connection, _ = listener.accept()
            except OSError:  # nobody has asked again
                return
            with connection:
                if number or reads:
                    read.append(read_request(connection))
                if number:
                    connection.sendall(HEAD.pack(b"podw", 1, 0, 8, 0) + b"answered")

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(node.tmp / "a.sock"))
        listener.listen()
        write_seen(node)
        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield read
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            serving.join()


def read_request(connection: socket.socket) -> bytes:
    head = connection.recv(HEAD.size, socket.MSG_WAITALL)
    _, _, _, strings, stdin = HEAD.unpack(head)
    return head + connection.recv(strings + stdin, socket.MSG_WAITALL)


@pytest.mark.parametrize("command", ["DEL", "CHECK", "GC"])
def test_a_verb_that_may_be_repeated_is_when_the_agent_died_in_it(c_node: Node, command: str) -> None:
    with losing_agent(c_node, reads=True) as read:
        answer = c_node.call(command, network(c_node), None if command == "GC" else c_node.pod())
    assert (answer.status, answer.stdout) == (0, "answered")
    assert read[0] == read[1]
    assert f"CNI_COMMAND={command}".encode() in read[0]


def test_an_add_in_which_the_agent_died_is_left_to_the_runtime(shim_node: Node) -> None:
    with losing_agent(shim_node, reads=True) as read:
        answer = shim_node.call("ADD", network(shim_node), shim_node.pod())
    assert (answer.status, answer.json["code"], len(read)) == (1, 11, 1)


def test_an_add_that_the_agent_has_not_read_is_made(c_node: Node) -> None:
    with losing_agent(c_node, reads=False) as read:
        answer = c_node.call("ADD", network(c_node), c_node.pod())
    assert (answer.status, answer.stdout, len(read)) == (0, "answered", 1)


def test_a_status_in_which_the_agent_died_is_well(c_node: Node) -> None:
    with losing_agent(c_node, reads=True) as read:
        answer = c_node.call("STATUS", network(c_node))
    assert (answer.status, answer.stdout, len(read)) == (0, "", 1)


@pytest.mark.parametrize("reads", [True, False])
def test_the_python_shim_does_itself_what_the_agent_has_lost(plain_node: Node, *, reads: bool) -> None:
    node, pod = plain_node, plain_node.pod()
    config = network(node, [{"subnet": "10.22.0.0/24"}])
    node.bin_dir = node.tmp / "bin"
    install(node.bin_dir, node.tmp / "a.sock")
    if not reads:
        with losing_agent(node, reads=False):
            assert node.call("ADD", config, pod).json["ips"]
        (node.tmp / "a.sock").unlink()
        assert len(node.held()) == 1
    with losing_agent(node, reads=reads):
        assert node.call("STATUS", config).status == 0
    (node.tmp / "a.sock").unlink()
    with losing_agent(node, reads=reads):
        node.delete(config, pod)
    assert node.held() == {}
