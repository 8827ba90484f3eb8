"""The cluster's name server, and pods that ask it: CoreDNS and agnhost in pods of podwire."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.kubernetes import dns, pods, podwire
from tests.harness.kubernetes.dialling import NETEXEC, ask_until_answered
from tests.harness.kubernetes.reach import address_of, spaces

if TYPE_CHECKING:
    from tests.harness.kubernetes.kubernetes import Kubernetes


@pytest.mark.parametrize("protocol", ["http", "udp"])
def test_a_pod_reaches_a_service_by_its_name_and_is_seen_with_its_own_address(
    named: Kubernetes, protocol: str
) -> None:
    named.apply(
        pods.pod("web", "node-1", **NETEXEC),
        pods.service("web"),
        pods.pod("near", "node-1", **NETEXEC),
        pods.pod("far", "node-2", **NETEXEC),
    )
    found = [named.await_pods(name, 1)[0] for name in ("web", "near", "far")]
    places = spaces(named, found)
    for client in found[1:]:
        own = {address_of(client, version) for version in (4, 6)}
        for name in ("web", f"web.default.svc.{dns.DOMAIN}"):
            seen = ask_until_answered(places[client.name], name, protocol)
            [answer] = seen["responses"]
            assert answer.rpartition(":")[0].strip("[]") in own, (client, name, seen)


@pytest.fixture
def named_of_before(named: Kubernetes) -> Kubernetes:
    """Let the name server and a service's pod be on bridges, in a cluster whose pods are routed now."""
    podwire.configure(named, attach="bridge")
    restart = ("rollout", "restart", "-n", dns.NAMESPACE, "deployment/coredns")
    named.kubectl(*restart)
    status = ("rollout", "status", "-n", dns.NAMESPACE, "deployment/coredns", "--timeout=60s")
    named.kubectl(*status)
    named.apply(pods.pod("old", "node-1", **NETEXEC), pods.service("old"))
    named.await_pods("old", 1)
    podwire.configure(named, attach="routed")
    return named


def test_pods_on_a_bridge_from_before_serve_routed_ones_and_are_served(named_of_before: Kubernetes) -> None:
    cluster = named_of_before
    cluster.apply(
        *(pods.pod(name, f"node-{i}", **NETEXEC) for name, i in (("near", 1), ("far", 2))),
        pods.service("near"),
    )
    found = {name: cluster.await_pods(name, 1)[0] for name in ("old", "near", "far")}
    places = spaces(cluster, found.values())
    ways = {name: places[pod.name].run("ip", "route").stdout for name, pod in found.items()}
    routed = {name: "via 169.254.1.1" in way for name, way in ways.items()}
    assert routed == {"old": False, "near": True, "far": True}
    for client, service in (("near", "old"), ("far", "old"), ("old", "near"), ("far", "near")):
        seen = ask_until_answered(places[found[client].name], service, "http")
        [answer] = seen["responses"]
        own = {address_of(found[client], version) for version in (4, 6)}
        assert answer.rpartition(":")[0].strip("[]") in own, (client, service, seen)
