"""NetworkPolicy on a real cluster: what the API's server makes of policies, kubelets' probes, Services."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.kubernetes import pods, podwire
from tests.harness.kubernetes.host import eventually
from tests.harness.kubernetes.reach import address_of, spaces
from tests.harness.services import ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.kubernetes.kubernetes import Kubernetes
    from tests.harness.kubernetes.pods import RunningPod
    from tests.harness.node import Space

FAMILIES = (4, 6)
WEB = {"matchLabels": {"app": "web"}}


@pytest.fixture(scope="module")
def enforced(cluster: Kubernetes) -> Iterator[Kubernetes]:
    """Let the cluster enforce policies for a while; pods of before stay reachable."""
    cluster.apply(pods.deployment("early", 2))
    early = cluster.await_pods("early", 2)
    places = spaces(cluster, early)
    podwire.configure(cluster, networkPolicy=True)
    with pods.all_offering(places):
        source, target = early
        for version in FAMILIES:
            address = address_of(target, version)
            eventually(lambda a=address: ask(places[source.name], a, pods.PORT).startswith("early"), address)
    yield cluster
    podwire.configure(cluster, networkPolicy=False)
    for worker in cluster.workers.values():
        tables = lambda w=worker: w.space.run("nft", "list", "tables").stdout  # noqa: E731
        eventually(lambda t=tables: "podwire_policy" not in t(), tables)


@pytest.fixture(autouse=True)
def _no_policies(cluster: Kubernetes) -> Iterator[None]:
    yield
    cluster.delete("networkpolicies", "--all")


def policy(name: str, **spec: Any) -> dict[str, Any]:
    kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
    return {**kind, "metadata": pods.meta(name), "spec": spec}


def reached(place: Space, target: RunningPod) -> set[bool]:
    """Return whether a pod is reached, over both families and protocols."""
    return {
        ask(place, address_of(target, version), pods.PORT, protocol, within=1.0).startswith(target.name)
        for version in FAMILIES
        for protocol in ("tcp", "udp")
    }


def test_policies_hold_on_both_nodes_as_they_come_change_and_go(enforced: Kubernetes) -> None:
    cluster = enforced
    cluster.apply(pods.deployment("web", 2), pods.deployment("client", 2))
    webs, clients = cluster.await_pods("web", 2), cluster.await_pods("client", 2)
    assert {pod.node for pod in webs} == {pod.node for pod in clients} == {"node-1", "node-2"}
    places = spaces(cluster, [*webs, *clients])

    def everybody() -> set[bool]:
        return {way for client in clients for web in webs for way in reached(places[client.name], web)}

    with pods.all_offering(places):
        assert everybody() == {True}
        cluster.apply(policy("nothing", podSelector=WEB))
        eventually(lambda: everybody() == {False}, "the policy")
        # A node reaches its own pods: kubelets probe them.
        for web in webs:
            assert reached(cluster.worker(web.node).space, web) == {True}
        peer = {"podSelector": {"matchLabels": {"app": "client"}}}
        ports = [{"protocol": "TCP", "port": pods.PORT}, {"protocol": "UDP", "port": pods.PORT}]
        cluster.apply(policy("some", podSelector=WEB, ingress=[{"from": [peer], "ports": ports}]))
        eventually(lambda: everybody() == {True}, "what allows it")
        cluster.delete("networkpolicy", "some")
        eventually(lambda: everybody() == {False}, "that it is gone")
        cluster.delete("networkpolicy", "nothing")
        eventually(lambda: everybody() == {True}, "that both are gone")


def test_a_policy_judges_what_a_service_leads_to(enforced: Kubernetes) -> None:
    cluster = enforced
    cluster.apply(pods.deployment("web", 1, node="node-1"), pods.service("web"), pods.deployment("client", 2))
    webs, clients = cluster.await_pods("web", 1), cluster.await_pods("client", 2)
    places = spaces(cluster, [*webs, *clients])
    addresses = cluster.get("service", "web")["spec"]["clusterIPs"]

    def served() -> set[bool]:
        return {
            ask(places[client.name], address, pods.PORT, within=1.0).startswith("web")
            for client in clients
            for address in addresses
        }

    with pods.all_offering(places):
        eventually(lambda: served() == {True}, "the Service")
        cluster.apply(policy("nothing", podSelector=WEB))
        eventually(lambda: served() == {False}, "the policy")
        every = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}}
        cluster.apply(policy("all", podSelector=WEB, ingress=[{"from": [every]}]))
        eventually(lambda: served() == {True}, "what allows it")


def test_pods_under_a_policy_start_as_fast_as_others_and_are_closed_from_the_first_packet(
    enforced: Kubernetes,
) -> None:
    cluster = enforced
    late = {"matchLabels": {"app": "late"}}
    cluster.apply(policy("shut", podSelector=late, policyTypes=["Ingress", "Egress"]))
    cluster.apply(pods.deployment("client", 1), pods.deployment("late", 10))
    [client], found = cluster.await_pods("client", 1), cluster.await_pods("late", 10)
    places = spaces(cluster, [client, *found])
    with pods.all_offering(places):
        for pod in found:
            assert reached(places[client.name], pod) == {False}
            assert reached(places[pod.name], client) == {False}
    podwire.await_agents(cluster)
    for worker in cluster.workers.values():
        state = (worker.host.machine.root / "run/podwire/policy.json").read_text()
        assert '"pending": []' in state
