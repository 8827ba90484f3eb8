"""Settings other than the shipped ones: host gateways, bridges, and a cluster without IPv4."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.kubernetes import pods, podwire
from tests.harness.kubernetes.host import eventually
from tests.harness.kubernetes.kubernetes import WORLD, Kubernetes
from tests.harness.kubernetes.reach import node_address, reach_all, spaces
from tests.harness.services import ask_all, offering
from tests.kubernetes.conftest import installing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def host_gateways(cluster: Kubernetes) -> Iterator[Kubernetes]:
    """Let the cluster have no tunnels for a while, and pods of before."""
    cluster.apply(pods.deployment("early", 2))
    cluster.await_pods("early", 2)
    podwire.configure(cluster, backend="hostGateway")
    yield cluster
    podwire.configure(cluster, backend="vxlan")


@pytest.fixture
def bridges(cluster: Kubernetes) -> Iterator[Kubernetes]:
    """Let new pods be on bridges for a while."""
    podwire.configure(cluster, attach="bridge")
    yield cluster
    podwire.configure(cluster, attach="routed")


def test_pods_reach_each_other_through_host_gateways_when_the_backend_was_changed(
    host_gateways: Kubernetes,
) -> None:
    cluster = host_gateways
    cluster.apply(pods.deployment("web", 4))
    found = cluster.await_pods("web", 4)
    early = cluster.await_pods("early", 2)
    assert {pod.node for pod in early} == {"node-1", "node-2"}
    for group in (early, found):
        places = spaces(cluster, group)
        with pods.all_offering(places):
            reach_all(group, places)
    for pod in found:
        there = 3 - int(pod.node.removeprefix("node-"))
        subnet = cluster.nodes()[f"node-{there}"]["spec"]["podCIDRs"][0]
        way = cluster.worker(pod.node).space.run("ip", "route", "show", subnet).stdout
        assert f"via {cluster.underlay.address(there, 4)} dev u0" in way
        assert places[pod.name].links()["eth0"]["mtu"] == 1500


def test_pods_on_bridges_reach_each_other_and_their_service(bridges: Kubernetes) -> None:
    cluster = bridges
    cluster.apply(pods.deployment("web", 4), pods.service("web"))
    found = cluster.await_pods("web", 4)
    places = spaces(cluster, found)
    assert not any("via 169.254.1.1" in each.run("ip", "route").stdout for each in places.values())
    service = cluster.get("service", "web")["spec"]["clusterIP"]
    with pods.all_offering(places):
        reach_all(found, places)
        names, client = set(places), places[found[0].name]
        eventually(
            lambda: {answer.split()[0] for answer in ask_all(client, service, pods.PORT)} <= names, service
        )


@pytest.fixture(scope="module")
def without_ipv4(tmp_path_factory: pytest.TempPathFactory, image: Path) -> Iterator[Kubernetes]:
    """Start a cluster whose machines, pods and services have no IPv4 address."""
    with installing(Kubernetes(tmp_path_factory.mktemp("ipv6"), (6,)), image) as made:
        yield made.kubernetes


def test_a_cluster_without_ipv4_has_everything_over_ipv6(without_ipv4: Kubernetes) -> None:
    cluster = without_ipv4
    cluster.apply(pods.deployment("web", 4), pods.service("web", "SingleStack"))
    found = cluster.await_pods("web", 4)
    assert [[":" in address for address in pod.addresses] for pod in found] == [[True]] * 4
    places = spaces(cluster, found)
    [service] = cluster.get("service", "web")["spec"]["clusterIPs"]
    with pods.all_offering(places):
        reach_all(found, places, (6,))
        names, client = set(places), places[found[0].name]
        eventually(
            lambda: {answer.split()[0] for answer in ask_all(client, service, pods.PORT)} <= names, service
        )
    with offering(cluster.underlay.nodes[WORLD], 7000, name="world "):
        for pod in found:
            seen = ask_all(places[pod.name], cluster.underlay.address(WORLD, 6), 7000)
            assert seen == {f"world {node_address(cluster, pod.node, 6)}"}
