"""The agent collects by itself, in a child process that never outlives its will."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.agents import Agent, start_agent
from tests.harness.garbage import configure, kill
from tests.harness.networks import dual_stack, eventually

if TYPE_CHECKING:
    from tests.harness.node import Node, Pod


def agent_on(node: Node, *options: str) -> Agent:
    words = ("--conf-dir", str(node.tmp / "net.d"), "--gc-interval", "0.2", *options)
    return start_agent(node.tmp / "a.sock", *words, inside=node)


def children(agent: Agent) -> list[int]:
    tasks = Path(f"/proc/{agent.process.pid}/task").glob("*/children")
    return [int(word) for task in tasks for word in task.read_text().split()]


@pytest.fixture
def dead(plain_node: Node) -> Pod:
    """Return a pod that died beside one that lives."""
    config, pods = dual_stack(plain_node, ipMasq=True), [plain_node.pod(), plain_node.pod()]
    configure(plain_node, config)
    for pod in pods:
        plain_node.add(config, pod)
    kill(plain_node, pods[1])
    return pods[1]


def owners(node: Node) -> set[str]:
    """Return who holds an address; one may be released while we read."""
    found = set()
    for path in (node.data_dir / "test").glob("[1f]*"):
        with suppress(FileNotFoundError):
            found.add(path.read_text().split()[0])
    return found


def test_what_a_dead_pod_has_left_is_reclaimed_and_told_in_one_line(plain_node: Node, dead: Pod) -> None:
    with agent_on(plain_node, "--gc-grace", "0") as agent:
        living = owners(plain_node) - {dead.container_id}
        assert eventually(lambda: owners(plain_node), living, within=20) == living
        assert agent.stop() == 0
    told = [line for line in agent.lines() if "gc=" in line]
    assert told == ["gc=done found=1 reclaimed=1 failed=0 kept=0"]


def test_an_agent_that_cannot_collect_says_so_and_serves_on(plain_node: Node, dead: Pod) -> None:
    options = ("--gc-grace", "0", "--runtime-endpoint", f"unix://{plain_node.tmp}/none.sock")
    with agent_on(plain_node, *options) as agent:
        said = "gc=failed status=2"
        assert eventually(lambda: said in agent.lines(), wanted=True, within=20), agent.lines()
        assert any("none.sock" in line for line in agent.lines())
        assert dead.container_id in owners(plain_node)
        assert agent.stop() == 0


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_collection_ends_with_its_agent_and_reclaims_nothing_more(
    plain_node: Node, dead: Pod, end: str
) -> None:
    with agent_on(plain_node, "--gc-grace", "60") as agent:
        assert eventually(lambda: len(children(agent)), 1, within=10) == 1
        [child] = children(agent)
        if end == "stop":
            assert agent.stop() == 0
        else:
            agent.kill()
    assert eventually(Path(f"/proc/{child}").exists, wanted=False, within=10) is False
    assert dead.container_id in owners(plain_node)


def test_without_the_option_there_is_no_collection(plain_node: Node, dead: Pod) -> None:
    with start_agent(plain_node.tmp / "a.sock", inside=plain_node) as agent:
        assert children(agent) == []
        assert dead.container_id in owners(plain_node)
        assert agent.stop() == 0
