"""What happens to a cluster: agents killed and upgraded, nodes that reboot, join and leave, no API."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.harness.kubernetes import pods, podwire
from tests.harness.kubernetes.host import eventually
from tests.harness.kubernetes.reach import address_of, reach_all, seen_by_all, spaces, wanted_by_all
from tests.harness.services import ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.kubernetes.kubernetes import Kubernetes
    from tests.harness.kubernetes.worker import Worker
    from tests.harness.node import Space
    from tests.kubernetes.conftest import Installed


def test_an_agent_that_is_killed_while_pods_are_replaced_loses_nothing(cluster: Kubernetes) -> None:
    cluster.apply(pods.deployment("web", 6))
    cluster.await_pods("web", 6)
    cluster.kubectl("rollout", "restart", "deployment/web")
    for worker in cluster.workers.values():
        podwire.kill_agent(worker)
    eventually(lambda: rolled_out(cluster), lambda: podwire.explain(cluster), within=150)
    podwire.await_agents(cluster)
    found = cluster.await_pods("web", 6)
    places = spaces(cluster, found)
    with pods.all_offering(places):
        reach_all(found, places)
    cluster.delete("deployment", "web")
    for worker in cluster.workers.values():
        podwire.assert_nothing_left(worker)


def rolled_out(cluster: Kubernetes) -> bool:
    words = ("rollout", "status", "deployment/web", "--timeout=20s")
    return cluster.kubectl(*words, check=False).returncode == 0


def test_an_upgrade_of_image_and_shim_while_pods_are_made_loses_nothing(cluster: Kubernetes) -> None:
    before = podwire.processes(cluster.workers[1])["agent"]
    for worker in cluster.workers.values():
        worker.ctr("images", "tag", "--force", podwire.IMAGE, podwire.NEXT_IMAGE)
        podwire.make_shim_old(worker)
    cluster.apply(pods.deployment("web", 12))
    podwire.set_image(cluster, podwire.NEXT_IMAGE)
    podwire.await_agents(cluster)
    found = cluster.await_pods("web", 12)
    assert podwire.processes(cluster.workers[1])["agent"] != before
    assert [podwire.has_old_shim(worker) for worker in cluster.workers.values()] == [False, False]
    places = spaces(cluster, found)
    with pods.all_offering(places):
        reach_all(found[:4], places)
    podwire.set_image(cluster, podwire.IMAGE)
    podwire.await_agents(cluster)


def test_without_the_api_pods_stay_connected_and_new_ones_get_networks(cluster: Kubernetes) -> None:
    cluster.apply(pods.deployment("web", 4))
    found = cluster.await_pods("web", 4)
    places = spaces(cluster, found)
    cluster.control.host.daemons["apiserver"].kill()
    try:
        with pods.all_offering(places):
            reach_all(found, places)
            worker = cluster.workers[1]
            podwire.kill_agent(worker)
            eventually(lambda: podwire.answers(worker), "an agent that is back", within=40)
            with late_pod(worker) as (space, addresses):
                for pod in found:
                    seen = ask(space, address_of(pod, 4), pods.PORT)
                    assert seen == f"{pod.name} {addresses[0]}"
    finally:
        cluster.control.return_apiserver()
    podwire.await_agents(cluster)


@contextmanager
def late_pod(worker: Worker) -> Iterator[tuple[Space, tuple[str, ...]]]:
    """Start a pod as a kubelet does that has it from a file; yield its namespace and addresses."""
    sandbox = worker.runtime.run_pod_sandbox(f"late-{uuid.uuid4()}")
    try:
        addresses = worker.runtime.pod_sandbox_status(sandbox).addresses
        yield pods.spaces_of(worker)[addresses[0]], addresses
    finally:
        worker.runtime.stop_pod_sandbox(sandbox)
        worker.runtime.remove_pod_sandbox(sandbox)


def test_a_node_that_reboots_gets_its_pods_back(cluster: Kubernetes) -> None:
    cluster.apply(pods.deployment("web", 4))
    before = cluster.await_pods("web", 4)
    cluster.power_off(2)
    cluster.power_on(2)
    eventually(lambda: "node-2" in cluster.ready_nodes(), lambda: podwire.explain(cluster))

    def restarted() -> bool:
        known = pods.spaces_of(cluster.workers[2])
        here = [pod for pod in cluster.pods("web") if pod.node == "node-2"]
        return len(here) == 2 and all(pod.addresses[0] in known for pod in here)

    eventually(restarted, lambda: podwire.explain(cluster))
    found = cluster.await_pods("web", len(before))
    places = spaces(cluster, found)
    with pods.all_offering(places):
        reach_all(found, places)
    held = {address for pod in found if pod.node == "node-2" for address in pod.addresses}
    eventually(
        lambda: set(podwire.left(cluster.workers[2])["addresses"]) == held, "no address of before", within=90
    )


def test_a_node_that_joins_leaves_and_comes_back_with_another_subnet_is_followed(
    installed: Installed,
) -> None:
    cluster = installed.kubernetes
    cluster.apply(pods.daemon_set("each"))
    cluster.join(3, installed.image)
    first = follow_third(cluster)
    forget_third(cluster, first)
    cluster.power_on(3)
    second = follow_third(cluster)
    forget_third(cluster, second)
    del cluster.workers[3]
    assert first != second


def follow_third(cluster: Kubernetes) -> str:
    """Wait until the third node's pod and all others reach each other; return the node's subnet."""
    # A kubelet that looks for its Node before the Node is there looks again after up to 140 s in all.
    eventually(lambda: "node-3" in cluster.ready_nodes(), lambda: podwire.explain(cluster), within=200)
    found = cluster.await_pods("each", 3)
    places = spaces(cluster, found)
    wanted = wanted_by_all(found)
    with pods.all_offering(places):
        eventually(lambda: seen_by_all(found, places) == wanted, lambda: podwire.explain(cluster), within=20)
    return str(cluster.nodes()["node-3"]["spec"]["podCIDRs"][0])


def forget_third(cluster: Kubernetes, subnet: str) -> None:
    """Take the third node away, and wait until the others know."""
    cluster.power_off(3)
    cluster.kubectl("delete", "node", "node-3")
    here = "--field-selector=spec.nodeName=node-3"
    cluster.kubectl("delete", "pods", "-A", here, "--force", "--grace-period=0")
    others = [cluster.workers[i].space for i in (1, 2)]
    eventually(
        lambda: not any(route_to(space, subnet) for space in others), "no route to a node that is gone"
    )


def route_to(space: Space, subnet: str) -> str:
    """Return the route to another node's subnet."""
    return space.run("ip", "route", "show", subnet).stdout
