"""What a cluster feels of an agent that is replaced or killed: nodes that are Ready, and pods that start."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import TYPE_CHECKING

from tests.harness.kubernetes import pods, podwire
from tests.harness.kubernetes.host import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.kubernetes.kubernetes import Kubernetes

_READY = '{.type} {.object.metadata.name} {.object.status.conditions[?(@.type=="Ready")].status}{"\\n"}'


@dataclass
class Readiness:
    """What every change of the nodes said of their Ready: True, False, or Unknown when one is late."""

    said: list[tuple[str, str]] = field(default_factory=list)

    def assert_never_refused(self) -> None:
        """Assert that no kubelet has said that its node is not ready."""
        assert [node for node, ready in self.said if ready == "False"] == []


@contextmanager
def watching_nodes(cluster: Kubernetes) -> Iterator[Readiness]:
    """Follow the nodes' Ready during the block, change by change."""
    found = Readiness()
    words = ("--watch", "--output-watch-events", "-o", f"jsonpath={_READY}")
    process = cluster.control.follow("get", "nodes", *words)

    def read() -> None:
        assert process.stdout
        with process.stdout as lines:
            for line in lines:
                _, name, *ready = line.split()
                found.said.append((name, " ".join(ready)))

    thread = Thread(target=read)
    thread.start()
    try:
        eventually(lambda: len(found.said) >= len(cluster.workers), "a watch on the nodes")
        yield found
    finally:
        process.terminate()
        process.wait(timeout=30)
        thread.join()


def refusals(cluster: Kubernetes) -> list[str]:
    """Return what the kubelets said of sandboxes that could not be made."""
    events = cluster.get("events", "--field-selector=reason=FailedCreatePodSandBox")["items"]
    return [event["message"] for event in events]


def test_forty_pods_are_made_during_a_rollout_and_no_node_stops_being_ready(
    cluster: Kubernetes, record_property: Callable[[str, object], None]
) -> None:
    podwire.await_agents(cluster)
    before = {worker.name: podwire.processes(worker)["agent"] for worker in cluster.workers.values()}
    refused = refusals(cluster)
    with watching_nodes(cluster) as readiness:
        begun = time.monotonic()
        podwire.restart(cluster)
        cluster.apply(pods.deployment("web", 40))
        cluster.await_pods("web", 40, within=240)
        running = time.monotonic() - begun
        podwire.await_agents(cluster)
        rolled = time.monotonic() - begun
        readiness.assert_never_refused()
    assert refusals(cluster) == refused
    after = {worker.name: podwire.processes(worker)["agent"] for worker in cluster.workers.values()}
    assert not set(before.items()) & set(after.items())
    record_property(
        "figures",
        f"40 pods made during a rollout: all Running after {running:.1f} s, rolled out after {rolled:.1f} s, "
        f"no sandbox refused, nodes always Ready",
    )


def test_thirty_pods_start_while_their_node_s_agent_is_killed(
    cluster: Kubernetes, record_property: Callable[[str, object], None]
) -> None:
    with watching_nodes(cluster) as readiness:
        record_property("figures", measure_a_kill(cluster))
        podwire.await_agents(cluster)
        readiness.assert_never_refused()


def measure_a_kill(cluster: Kubernetes) -> str:
    """Kill the agent of a node on which thirty pods start; return how long they took beside those before."""
    worker = cluster.workers[1]
    # A container that has been killed before is started again later each time.
    podwire.restart(cluster)
    podwire.await_agents(cluster)
    seconds, lost = [], 0
    for app, kills in (("calm", False), ("killed", True)):
        refused = len(refusals(cluster))
        begun = time.monotonic()
        cluster.apply(pods.deployment(app, 30, node=worker.name))
        if kills:
            eventually(lambda: len(podwire.left(worker)["veths"]) > 3, "pods that start")
            podwire.kill_agent(worker)
        cluster.await_pods(app, 30, within=240)
        seconds.append(time.monotonic() - begun)
        lost = len(refusals(cluster)) - refused
        cluster.delete("deployment", app)
        podwire.assert_nothing_left(worker)
    calm, killed = seconds
    return f"30 pods: {calm:.1f} s, with the agent killed meanwhile: {killed:.1f} s, {lost} sandboxes refused"
