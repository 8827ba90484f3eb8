"""An agent takes the socket and the HTTP port over from the one that runs, and no client is refused."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni_plugin.kernel.netns import inside
from tests.conftest import install
from tests.harness.agents import Agent, render_request, start_agent
from tests.harness.networks import dual_stack, eventually, network, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.node import Node

VERSION = render_request("podwire", {"CNI_COMMAND": "VERSION"})
PORT = 9113


@contextmanager
def successor(agent: Agent, *options: object, **popen: object) -> Iterator[Agent]:
    """Start an agent that takes over, and wait until it has; both write to one log."""
    before = agent.count("ready")
    with start_agent(agent.socket, "--take-over", *options, **popen) as taking:
        assert eventually(lambda: agent.count("ready"), before + 1, within=30) == before + 1, agent.lines()
        yield taking


def is_well(agent: Agent) -> bool:
    return agent.send(VERSION)[0] == 0


@contextmanager
def repeating(*calls: Callable[[], object]) -> Iterator[list[int]]:
    """Repeat each call in a thread of its own during the block; what one raises is raised at the end."""
    done, made = threading.Event(), [0] * len(calls)

    def repeat(number: int) -> None:
        while not done.is_set():
            calls[number]()
            made[number] += 1

    with ThreadPoolExecutor(len(calls)) as pool:
        running = [pool.submit(repeat, number) for number in range(len(calls))]
        try:
            yield made
        finally:
            done.set()
        for each in running:
            each.result()


def test_agents_take_over_one_after_the_other_and_every_client_is_answered(tmp_path: Path) -> None:
    """Clients that try once: they find an agent at any moment."""
    with ExitStack() as stack:
        agent = stack.enter_context(start_agent(tmp_path / "a.sock"))
        agent.wait_ready()

        def ask() -> None:
            assert agent.send(VERSION)[0] == 0

        with repeating(ask, ask, ask) as made:
            for _ in range(4):
                taking = stack.enter_context(successor(agent))
                before = made[0]
                assert eventually(lambda: made[0] > before + 5, wanted=True)  # noqa: B023 - called at once
                assert agent.stop() == 0
                agent = taking
        assert min(made) > 20


def test_pods_come_and_go_while_agents_take_over(plain_node: Node) -> None:
    node, config = plain_node, dual_stack(plain_node)
    node.bin_dir = node.tmp / "bin"
    install(node.bin_dir, node.tmp / "a.sock", "--shim")
    pods = [node.pod() for _ in range(4)]

    def live(number: int) -> None:
        result = node.add(config, pods[number])
        assert node.check(config, result, pods[number]).status == 0
        node.delete(config, pods[number])

    with ExitStack() as stack:
        agent = stack.enter_context(start_agent(node.tmp / "a.sock"))
        agent.wait_ready()
        lives = [lambda number=number: live(number) for number in range(4)]
        with repeating(*lives, lambda: node.call("STATUS", config).status) as made:
            for _ in range(3):
                taking = stack.enter_context(successor(agent))
                before = sum(made)
                assert eventually(lambda: sum(made) > before + 5, wanted=True, within=20)  # noqa: B023
                assert agent.stop() == 0
                agent = taking
        lines = [line for line in agent.lines() if "verb=" in line]
        assert {line.rpartition("outcome=")[2] for line in lines} == {"done"}
    assert node.held() == {}


def test_what_runs_is_finished_by_the_agent_that_hands_over(plain_node: Node) -> None:
    node, begun = plain_node, plain_node.tmp / "begun"
    node.bin_dir = node.tmp / "bin"
    install(node.bin_dir, node.tmp / "a.sock", "--shim")
    slow = node.bin_dir / "slow"
    slow.write_text(
        f"#!/bin/sh\ncat >/dev/null; : >{begun}; while [ ! -e {begun}.end ]; do sleep 0.05; done\n"
        'echo \'{"cniVersion":"1.1.0","ips":[{"address":"10.22.0.9/24"}]}\'\n'
    )
    slow.chmod(0o755)
    config, pod = network(node) | {"ipam": {"type": "slow"}}, node.pod()
    with start_agent(node.tmp / "a.sock") as agent, ThreadPoolExecutor() as pool:
        added = pool.submit(node.add, config, pod)
        wait_for(begun)
        with successor(agent) as taking:
            assert is_well(taking)
            assert not added.done()
            Path(f"{begun}.end").touch()
            assert added.result()["ips"][0]["address"] == "10.22.0.9/24"
            assert agent.stop() == 0
            assert is_well(taking)
            assert taking.stop() == 0


def test_who_handed_over_is_the_agent_again_when_the_next_one_ends(tmp_path: Path) -> None:
    with start_agent(tmp_path / "a.sock") as agent:
        agent.wait_ready()
        for end in (Agent.kill, Agent.stop):
            with successor(agent) as taking:
                assert taking.process.pid != agent.process.pid
                ready = agent.count("ready")
                end(taking)
                assert eventually(lambda: agent.count("ready"), ready + 1, within=20) == ready + 1
                assert is_well(agent)
        assert agent.stop() == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.sock.lock", "a.sock.seen"]


def test_who_asks_and_leaves_gets_nothing_and_harms_nobody(tmp_path: Path) -> None:
    with start_agent(tmp_path / "a.sock") as agent:
        agent.wait_ready()
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as asking:
                asking.connect(f"{agent.socket}.next")
            assert eventually(lambda: agent.count("ready") > 0 and is_well(agent), wanted=True)
        with successor(agent) as taking:
            assert is_well(taking)
            assert taking.stop() == 0


def test_only_root_may_ask_for_the_socket() -> None:
    ask = "import socket, sys; s = socket.socket(1); s.connect(sys.argv[1]); print(s.recv(9))"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        with start_agent(directory / "a.sock") as agent:
            agent.wait_ready()
            line = Path(f"{agent.socket}.next")
            assert line.stat().st_mode & 0o777 == 0o600
            line.chmod(0o666)
            command = ["/usr/bin/python3", "-c", ask, str(line)]
            done = subprocess.run(command, user=65534, capture_output=True, text=True, check=True)
            assert done.stdout == "b''\n"
            assert 'refused="a successor of uid 65534"' in agent.lines()[-1]
            assert is_well(agent)


def test_where_no_agent_runs_there_is_nothing_to_take_over(tmp_path: Path) -> None:
    with start_agent(tmp_path / "a.sock", "--take-over") as agent:
        agent.wait_ready()
        assert agent.stop() == 0


def test_settings_that_cannot_be_leave_the_socket_to_who_has_it(tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text('{"mode": "wrong"}')
    with start_agent(tmp_path / "a.sock") as agent:
        agent.wait_ready()
        command = [sys.executable, "-m", "cni_plugin", "agent", "--socket", str(agent.socket), "--take-over"]
        words = ["--kubernetes", f"--settings={settings}", f"--state-file={tmp_path}/state"]
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1
        assert '"mode"' in done.stderr
        assert agent.count("handed over") == 0
        assert is_well(agent)
        assert agent.stop() == 0


# The HTTP port


def scrape(node: Node) -> str:
    """Ask in the node as a client that tries once."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=20)
    with closing(connection), Path(node.path).open() as space, inside(space.fileno()):
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


@pytest.mark.parametrize("place", [f"127.0.0.1:{PORT}", f":{PORT}"])
def test_the_http_port_is_taken_over_with_the_socket(plain_node: Node, place: str) -> None:
    node = plain_node
    with ExitStack() as stack:
        agent = stack.enter_context(start_agent(node.tmp / "a.sock", "--http", place, inside=node))
        agent.wait_ready()

        def ask() -> None:
            assert "podwire_build_info" in scrape(node)

        with repeating(ask, ask) as made:
            for _ in range(3):
                taking = stack.enter_context(successor(agent, "--http", place, inside=node))
                before = made[0]
                assert eventually(lambda: made[0] > before + 3, wanted=True, within=20)  # noqa: B023
                assert agent.stop() == 0
                agent = taking


def test_an_agent_that_serves_elsewhere_leaves_the_old_port(plain_node: Node) -> None:
    node = plain_node
    with start_agent(node.tmp / "a.sock", "--http", f"127.0.0.1:{PORT}", inside=node) as agent:
        agent.wait_ready()
        with successor(agent, "--http", f":{PORT + 1}", inside=node) as taking:
            listening = node.run("ss", "-Htln").stdout
            assert f":{PORT} " not in listening
            assert f":{PORT + 1} " in listening
            taking.kill()
            assert eventually(lambda: f":{PORT} " in node.run("ss", "-Htln").stdout, wanted=True)


# Whose the agent is


def test_a_probe_says_whether_the_agent_is_of_its_own_container(tmp_path: Path) -> None:
    container = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    with start_agent(tmp_path / "a.sock", before=container) as agent:
        eventually(lambda: agent.count("ready"), 1, within=20)
        assert probe(agent, agent.socket) == (0, "")
        with successor(agent, before=container) as taking:
            found = f"{agent.socket}: wanted the agent of this container (PID namespace), found another's\n"
            assert probe(agent, agent.socket) == (1, found)
            assert probe(taking, agent.socket) == (0, "")
        assert eventually(lambda: probe(agent, agent.socket), (0, ""), within=20) == (0, "")


def probe(agent: Agent, path: Path) -> tuple[int, str]:
    """Ask beside the agent, as a kubelet does that executes a command in its container."""
    pid = agent.process.pid
    first = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0]
    there = ["nsenter", "--pid", f"--target={first}"]
    command = [*there, sys.executable, "-m", "cni_plugin", "probe", "--socket", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr
