"""In an agent, which remembers the store between calls, a failed step leaves nothing; nor does its death."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import install
from tests.harness.agents import Agent, start_agent
from tests.harness.networks import calm, dual_stack, eventually
from tests.harness.storm.faulting import DEATHS, FAILURES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.node import Completed, Node, Pod

RUNNER = str(Path(__file__).parents[1] / "harness/storm/faulty_agent.py")
FEATURES = {
    "ipMasq": True,
    "spoofCheck": "ip",
    "sysctl": {"net.core.somaxconn": "555"},
    "ingressRate": 8_000_000,
    "ingressBurst": 800_000,
    "egressRate": 8_000_000,
    "egressBurst": 800_000,
}


class Site:
    """A node with an agent that can be told to fail."""

    def __init__(self, node: Node) -> None:
        self.node, self.orders, self.socket = node, node.tmp / "orders", node.tmp / "a.sock"
        node.bin_dir = node.tmp / "bin"
        install(node.bin_dir, self.socket)
        self.config = dual_stack(node, **FEATURES)
        self.order(-1)

    def order(self, at: int, how: str = "EIO") -> None:
        self.orders.write_text(f"{at} {how}")

    def start(self) -> Agent:
        return start_agent(self.socket, before=(sys.executable, RUNNER, str(self.orders)))

    def add_pod(self, pod: Pod) -> list[str]:
        """ADD a pod whose steps all succeed, and return them."""
        self.order(-1)
        self.node.add(self.config, pod)
        return Path(f"{self.orders}.made").read_text().splitlines()

    def add_failing(self, pod: Pod, at: int, how: str) -> Completed:
        self.order(at, how)
        answer = self.node.call("ADD", self.config, pod)
        self.order(-1)
        return answer

    def assert_as(self, before: str, *about: Any) -> None:
        assert eventually(lambda: calm(self.node), before) == before, about


@pytest.fixture
def chosen() -> random.Random:
    seed = os.environ.get("PODWIRE_FAULTS_SEED") or str(random.SystemRandom().randrange(10**6))
    print(f"PODWIRE_FAULTS_SEED={seed}")
    return random.Random(seed)


def test_any_step_may_fail_in_an_agent_or_end_it_and_nothing_leaks(
    plain_node: Node,
    chosen: random.Random,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    site, pod = Site(plain_node), plain_node.pod()
    long = request.config.getoption("--long", default=False)
    with site.start() as agent:
        site.add_pod(pod)
        plain_node.delete(site.config, pod)
        before = calm(plain_node)
        steps = site.add_pod(pod)
        plain_node.delete(site.config, pod)
        for at, step in enumerate(steps):
            for how in FAILURES if long else [chosen.choice(FAILURES)]:
                answer = site.add_failing(pod, at, how)
                if answer.status:
                    assert "Traceback" not in answer.stderr, (step, how, answer.stderr)
                    site.assert_as(before, step, how, answer.stdout)
                plain_node.delete(site.config, pod)
                site.assert_as(before, step, how, "and DEL")
        agent.stop()
    deaths = range(len(steps)) if long else chosen.sample(range(len(steps)), 8)
    for at in deaths:
        how = chosen.choice(DEATHS)
        with site.start() as agent:
            answer = site.add_failing(pod, at, how)
            assert answer.json["code"] == 11, (steps[at], how, answer.stdout)
            agent.process.wait(timeout=10)
        with site.start():
            plain_node.delete(site.config, pod)
            site.assert_as(before, steps[at], how)
    faults = len(steps) * (len(FAILURES) if long else 1)
    counts = {"verb": "ADD, agent", "steps": len(steps), "faults": faults, "kills": len(deaths)}
    record_property("faults", counts | {"seed": ""})
