"""The agent's side of the contract: who may speak to it, what it refuses, how it begins and ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni_plugin.agent.calls import Calls
from cni_plugin.agent.journal import Journal
from cni_plugin.agent.server import Admission, AgentSettings
from tests.conftest import ROOT, install
from tests.harness.agents import HEAD, Agent, read_reply, render_request, start_agent
from tests.harness.networks import dual_stack, network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import Node, Pod

VERSION = {"CNI_COMMAND": "VERSION"}


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with start_agent(tmp_path / "a.sock") as started:
        yield started
        assert started.stop() == 0, started.log.read_text()


def served_node(node: Node, *options: str) -> Node:
    """Let the node's executables look for an agent at `a.sock` in its own directory."""
    node.bin_dir = node.tmp / "bin"
    install(node.bin_dir, node.tmp / "a.sock", *options)
    return node


def say(agent: Agent, sent: bytes, **options: Any) -> dict[str, Any]:
    """Send bytes that are to be refused; return the error object."""
    status, stdout, _ = agent.send(sent, **options)
    assert status == 1
    return json.loads(stdout)


def is_well(agent: Agent) -> bool:
    return agent.send(render_request("podwire", VERSION))[0] == 0


def delegate(node: Node, name: str, script: str) -> None:
    """Put a foreign IPAM plugin into the node's CNI_PATH."""
    path = node.bin_dir / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


SLOW = 'cat >/dev/null; sleep 1; echo \'{"cniVersion":"1.1.0","ips":[{"address":"10.22.0.9/24"}]}\''


def slow_network(node: Node, **keys: Any) -> dict[str, Any]:
    delegate(node, "slow", SLOW)
    return network(node, **keys) | {"ipam": {"type": "slow"}}


# Who may speak to it


def test_only_root_reaches_the_socket(agent: Agent) -> None:
    assert stat.filemode(agent.socket.stat().st_mode) == "srw-------"


def test_another_user_is_turned_away_even_where_the_mode_lets_him_in() -> None:
    code = "import socket, sys; s = socket.socket(1); s.connect(sys.argv[1]); print(s.recv(9))"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        with start_agent(directory / "a.sock") as agent:
            agent.socket.chmod(0o666)
            command = ["/usr/bin/python3", "-c", code, str(agent.socket)]
            done = subprocess.run(command, user=65534, capture_output=True, text=True, check=True)
            assert done.stdout == "b''\n"
            assert 'refused="a client of uid 65534"' in agent.lines()[-1]


def test_it_needs_no_more_capabilities_than_its_unit_gives_it(plain_node: Node) -> None:
    node, pod = served_node(plain_node), plain_node.pod()
    unit = (ROOT / "conf/systemd/podwire.service").read_text()
    named = re.findall("CAP_([A-Z_]+)", re.search("^CapabilityBoundingSet=(.*)", unit, re.MULTILINE)[1])
    bounds = ",".join(["-all", *(f"+{name.lower()}" for name in named)])
    config = dual_stack(node, ipMasq=True, spoofCheck="ip", sysctl={"net.core.somaxconn": "99"})
    config["runtimeConfig"] = {
        "portMappings": [{"hostPort": 8080, "containerPort": 80}],
        "bandwidth": {"ingressRate": 10**6, "ingressBurst": 10**6, "egressRate": 10**6, "egressBurst": 10**6},
    }
    limited = ("setpriv", f"--bounding-set={bounds}", "--no-new-privs")
    with start_agent(node.tmp / "a.sock", inside=node, before=limited) as agent:
        status = Path(f"/proc/{agent.process.pid}/status").read_text()
        assert int(re.search("CapEff:\t(.*)", status)[1], 16).bit_count() == len(named)
        result = node.add(config, pod)
        assert node.check(config, result, pod).stdout == ""
        node.delete(config, pod)
        node.delete(config, pod)  # which asks iptables for what the Go plugins may have left
        assert [" outcome=done" in line for line in agent.lines() if " verb=" in line] == [True] * 4


# What it refuses, and survives


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\nHost: podwire\r\n\r\n", b"\0" * 20, b"podw", b"\xff" * 4096]
)
def test_garbage_is_answered_with_an_error_object(agent: Agent, sent: bytes) -> None:
    assert say(agent, sent, finish=True)["code"] == 6
    assert is_well(agent)


def test_an_announced_gigabyte_is_refused_before_it_is_sent(agent: Agent) -> None:
    error = say(agent, HEAD.pack(b"podw", 1, 0, 10, 2**30))
    assert error["msg"] == "podwire agent: stdin: wanted at most 4194305 bytes, found 1073741824 announced"
    assert is_well(agent)


def test_a_newer_wire_version_is_told_why_not(agent: Agent) -> None:
    error = say(agent, render_request("podwire", VERSION, version=2))
    assert error["code"] == 11
    assert "wanted a request of wire version 1, found version 2" in error["msg"]


@pytest.mark.parametrize("length", [0, 3, 20, 30])
def test_a_client_that_vanishes_harms_nobody(agent: Agent, length: int) -> None:
    with agent.connect() as connection:
        connection.sendall(render_request("podwire", VERSION)[:length])
    assert is_well(agent)


def test_descriptors_that_nobody_asked_for_are_closed(agent: Agent) -> None:
    directory = Path(f"/proc/{agent.process.pid}/fd")
    assert is_well(agent)
    before = len(list(directory.iterdir()))
    for _ in range(20):
        with agent.connect() as connection, Path("/dev/null").open() as null:
            socket.send_fds(connection, [render_request("podwire", VERSION)], [null.fileno()] * 9)
            assert read_reply(connection)[0] == 0
    assert is_well(agent)
    assert len(list(directory.iterdir())) <= before + 1  # the last one's may just be closing


def test_beyond_workers_and_queue_a_call_is_told_at_once_to_try_again(tmp_path: Path) -> None:
    with start_agent(tmp_path / "a.sock", "--workers", 1, "--queue", 1) as agent:
        agent.wait_ready()
        time.sleep(0.1)  # the connection that found it there has left by then
        with agent.connect(), agent.connect():
            begun = time.monotonic()
            error = say(agent, render_request("podwire", VERSION))
        assert error["code"] == 11
        assert time.monotonic() - begun < 1
        time.sleep(0.1)
        assert is_well(agent)


# How it begins and ends


def test_a_second_agent_refuses_to_start(agent: Agent) -> None:
    command = [sys.executable, "-m", "cni_plugin", "agent", "--socket", str(agent.socket)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 1
    assert done.stderr == (f"podwire: {agent.socket}: wanted to be the only agent, found another running\n")
    assert is_well(agent)


def test_after_kill_the_executable_works_alone_and_the_next_agent_takes_over(plain_node: Node) -> None:
    node = served_node(plain_node)
    config, pods = dual_stack(node), [node.pod() for _ in range(3)]
    with start_agent(node.tmp / "a.sock") as first:
        node.add(config, pods[0])
        first.kill()
        assert first.socket.exists()
        node.add(config, pods[1])
    with start_agent(node.tmp / "a.sock") as second:
        node.add(config, pods[2])
        for pod in pods:
            node.delete(config, pod)
        assert len([line for line in second.lines() if "verb=" in line]) == 5
    assert node.held() == {}
    assert [name for name in node.links() if name.startswith("veth")] == []


def test_sigterm_lets_what_runs_finish(plain_node: Node) -> None:
    node = served_node(plain_node)
    config, pod = slow_network(node), node.pod()
    with start_agent(node.tmp / "a.sock") as agent, ThreadPoolExecutor() as pool:
        added = pool.submit(node.add, config, pod)
        time.sleep(0.5)
        assert agent.stop() == 0
        assert not agent.socket.exists()
        assert added.result()["ips"][0]["address"] == "10.22.0.9/24"


def test_systemd_keeps_the_socket_and_is_told_the_state(tmp_path: Path) -> None:
    path, told = tmp_path / "s.sock", tmp_path / "notify.sock"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        notify.bind(str(told))
        notify.settimeout(20)
        listener.bind(str(path))
        listener.listen()
        activated = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid());"
            "os.execv(sys.argv[2], sys.argv[2:])"
        )
        before = (sys.executable, "-c", activated, str(listener.fileno()))
        environ = os.environ | {"LISTEN_FDS": "1", "NOTIFY_SOCKET": str(told)}
        with start_agent(path, before=before, env=environ, pass_fds=[listener.fileno()]) as agent:
            assert notify.recv(99) == b"READY=1"
            assert is_well(agent)
            assert agent.stop() == 0
            assert notify.recv(99) == b"STOPPING=1"
        assert path.exists()


# What it does is what the executable does


def test_the_namespace_is_the_descriptor_not_the_path(plain_node: Node) -> None:
    """An agent in a container does not see the runtime's /run/netns."""
    node = served_node(plain_node)
    config, pod = dual_stack(node), node.pod()
    hide = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /run/netns && exec "$@"', "sh")
    with start_agent(node.tmp / "a.sock", before=hide) as agent:
        result = node.add(config, pod)
        assert pod.ping("10.22.0.1")
        assert node.check(config, result, pod).status == 0
        absent = node.call("ADD", config, pod, environ={"CNI_NETNS": "/run/netns/absent"})
        assert absent.json["msg"] == "CNI_NETNS /run/netns/absent: No such file or directory"
        node.delete(config, pod)
        assert len([line for line in agent.lines() if "verb=" in line]) == 4
    assert node.held() == {}


def give_up_an_add(node: Node, config: dict[str, Any], pod: Pod) -> None:
    """Kill the executable in the middle of an ADD, as a runtime does that loses patience."""
    environ = os.environ | {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": pod.container_id,
        "CNI_NETNS": pod.path,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(node.bin_dir),
    }
    command = ["nsenter", f"--net={node.path}", str(node.bin_dir / "podwire")]
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE) as impatient:
        assert impatient.stdin is not None
        impatient.stdin.write(json.dumps(config).encode())
        impatient.stdin.close()
        time.sleep(0.4)
        impatient.send_signal(signal.SIGKILL)


def test_a_del_waits_for_the_add_that_its_runtime_gave_up(plain_node: Node) -> None:
    node = served_node(plain_node)
    config, pod = slow_network(node), node.pod()
    with start_agent(node.tmp / "a.sock"):
        give_up_an_add(node, config, pod)
        node.delete(config, pod)
        assert [name for name in node.links() if name.startswith("veth")] == []


def test_an_add_that_nobody_waits_for_is_undone(plain_node: Node) -> None:
    node = served_node(plain_node)
    config, pod = slow_network(node), node.pod()
    with start_agent(node.tmp / "a.sock") as agent:
        give_up_an_add(node, config, pod)
        assert agent.stop() == 0
        assert 'outcome="undone: its caller left"' in agent.lines()[-2]
    assert [name for name in node.links() if name.startswith("veth")] == []
    assert "eth0" not in pod.links()


def test_a_hung_delegate_costs_its_time_limit_and_nobody_else(plain_node: Node) -> None:
    node = served_node(plain_node)
    delegate(node, "hung", "sleep 60")
    hung = network(node, name="hung", delegateTimeout=1) | {"ipam": {"type": "hung"}}
    with start_agent(node.tmp / "a.sock", "--workers", 2), ThreadPoolExecutor() as pool:
        pod, other = node.pod(), node.pod()
        waiting = pool.submit(node.call, "ADD", hung, pod)
        node.add(dual_stack(node), other)
        assert not waiting.done()
        assert waiting.result().json["code"] == 11


def test_a_delegate_that_cannot_be_executed_is_named(plain_node: Node) -> None:
    node = served_node(plain_node)
    (node.bin_dir / "broken").write_text("#!/nowhere/sh\n")
    (node.bin_dir / "broken").chmod(0o755)
    with start_agent(node.tmp / "a.sock"):
        answer = node.call("ADD", network(node) | {"ipam": {"type": "broken"}}, node.pod())
    assert answer.json["code"] == 5
    assert str(node.bin_dir / "broken") in answer.json["msg"]


def test_debug_lines_go_to_the_caller_who_asked(node: Node) -> None:
    config, pod, quiet = dual_stack(node), node.pod(), node.pod()
    answer = node.call("ADD", config, pod, environ={"PODWIRE_LOG": "debug"})
    assert f"podwire {pod.container_id} eth0: ip link add veth" in answer.stderr
    assert node.call("ADD", config, quiet).stderr == ""


def test_our_own_executable_as_ipam_needs_no_second_slot(plain_node: Node) -> None:
    """Every slot is taken by a call whose IPAM type is found in CNI_PATH and is ours."""
    node = served_node(plain_node, "--drop-in")
    config = dual_stack(node)
    config["ipam"]["type"] = "host-local"
    pods = [node.pod() for _ in range(8)]
    with start_agent(node.tmp / "a.sock", "--workers", 2) as agent, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda pod: node.add(config, pod, program="bridge"), pods))
        assert len(node.held()) == 16
        list(pool.map(lambda pod: node.delete(config, pod, program="bridge"), pods))
        assert len([line for line in agent.lines() if "verb=" in line]) == 16
    assert node.held() == {}


def test_a_foreign_delegate_that_calls_us_in_its_turn_needs_no_slot_of_its_callers(plain_node: Node) -> None:
    node = served_node(plain_node)
    delegate(node, "wrapper", f"exec {node.bin_dir}/podwire-ipam")
    config = dual_stack(node, delegateTimeout=8)
    config["ipam"]["type"] = "wrapper"
    pods = [node.pod() for _ in range(6)]
    with start_agent(node.tmp / "a.sock", "--workers", 2), ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda pod: node.add(config, pod), pods))
        assert len(node.held()) == 12
        list(pool.map(lambda pod: node.delete(config, pod), pods))
    assert node.held() == {}


def test_without_a_thread_to_be_had_a_client_is_told_to_try_again(tmp_path: Path) -> None:
    door = Admission(AgentSettings(socket=str(tmp_path / "a.sock"), workers=1, queue=1), Calls(1, Journal()))
    threading.stack_size(1 << 47)  # more than a process can have, so that the kernel refuses
    try:
        for _ in range(4):  # more than there are places
            status, stdout, _ = let_in(door, b"")
            assert (status, json.loads(stdout)["code"]) == (1, 11)
    finally:
        threading.stack_size(0)
    assert let_in(door, render_request("podwire", VERSION))[0] == 0
    door.wait()


def let_in(door: Admission, sent: bytes) -> tuple[int, bytes, bytes]:
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(sent)
        door.admit(theirs)
        return read_reply(ours)


def test_each_call_is_one_line_of_pairs(plain_node: Node) -> None:
    node = served_node(plain_node)
    pod = node.pod()
    with start_agent(node.tmp / "a.sock") as agent:
        node.add(dual_stack(node), pod)
        line = agent.lines()[-1]
    assert line.startswith(
        f"container_id={pod.container_id} ifname=eth0 network=test verb=ADD type=podwire duration="
    )
    assert line.endswith(" outcome=done")


def test_a_status_is_a_line_when_it_says_why_not(plain_node: Node) -> None:
    node = served_node(plain_node)
    with start_agent(node.tmp / "a.sock") as agent:
        agent.wait_ready()
        before = agent.lines()
        assert node.call("STATUS", dual_stack(node)).status == 0
        assert agent.lines() == before
        assert node.call("STATUS", network(node, bridge="lo")).json["code"] == 50
        assert "verb=STATUS" in agent.lines()[-1]
        assert 'outcome="error 50: ' in agent.lines()[-1]


def test_an_oversized_configuration_is_answered_as_without_the_agent(node: Node) -> None:
    answer = node.call("STATUS", b" " * (5 * 1024 * 1024))
    assert answer.json["code"] == 6
    assert "found 4194305 bytes or more" in answer.json["msg"]
