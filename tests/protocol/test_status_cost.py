"""What a STATUS costs, which containerd asks every five seconds: on a full node, through shim and agent."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import install
from tests.harness.agents import start_agent
from tests.harness.networks import network

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.node import Node

PODS, INTERFACES = 10, 25
# What others take of the machine meanwhile makes the same work dearer: the cheapest batch counts.
BATCHES, CALLS = 8, 25
RANGES: list[dict[str, Any]] = [{"subnet": "10.22.0.0/16"}, {"subnet": "fd00:22::/64"}]


def used(pid: int) -> float:
    """Return the processor time of a process in seconds: clock_getcpuclockid(3) of another process."""
    return time.clock_gettime(~pid << 3 | 2)


@pytest.mark.parametrize("mode", ["bridge", "routed"])
def test_a_status_of_a_full_node_costs_little_and_is_no_line_in_the_log(
    plain_node: Node, mode: str, record_property: Callable[[str, object], None]
) -> None:
    node = plain_node
    node.bin_dir = node.tmp / "bin"
    install(node.bin_dir, node.tmp / "a.sock", "--shim")
    config = network(node, *([each] for each in RANGES), mode=mode, ipMasq=True) | {"cniVersion": "1.1.0"}
    pods = [node.pod() for _ in range(PODS)]
    with start_agent(node.tmp / "a.sock", inside=node) as agent, ThreadPoolExecutor(4) as pool:
        attached = [(pod, f"eth{number}") for pod in pods for number in range(INTERFACES)]
        list(pool.map(lambda each: node.add(config, each[0], environ={"CNI_IFNAME": each[1]}), attached))
        assert len(node.held()) == 2 * PODS * INTERFACES
        lines = len(agent.lines())
        costs = [cost_of_statuses(node, config, agent.process.pid) for _ in range(BATCHES)]
        assert len(agent.lines()) == lines
    cost = min(costs)
    said = (
        f"STATUS in mode {mode} with {len(attached)} pods: {cost * 1000:.2f} ms of the agent's processor time"
    )
    record_property("figures", said)
    assert cost < 0.002


def cost_of_statuses(node: Node, config: dict[str, Any], pid: int) -> float:
    """Return the processor seconds that one STATUS costs the agent, of the mean of some."""
    before = used(pid)
    for _ in range(CALLS):
        assert node.call("STATUS", config).status == 0
    return (used(pid) - before) / CALLS
