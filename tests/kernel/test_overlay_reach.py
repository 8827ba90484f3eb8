"""Pods of different nodes reach each other over both families, without NAT."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.harness.cluster import Cluster, address_of, exchange, make_cluster, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node

# Over hostGateway each inner family takes the underlay of its own.
FORMS = [("flat", 4), ("flat", 6), ("routed", 4), ("routed", 6), ("hostgw", 4)]


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 3)
    yield made
    made.remove()


def own_addresses(node: Node) -> set[str]:
    return {i["local"] for link in node.ip("addr") for i in link["addr_info"]}


@pytest.mark.parametrize(("form", "version"), FORMS)
def test_every_pod_reaches_every_pod_and_its_address_is_unchanged(
    cluster: Cluster, form: str, version: int
) -> None:
    pods = list(cluster.start_pods(form, version).values())
    addresses = {pod.name: {v: address_of(pod, v) for v in (4, 6)} for pod in pods}
    for pod in pods:
        for other in pods:
            for v in (4, 6):
                assert pod.ping(addresses[other.name][v]), f"first packet to {addresses[other.name][v]}"
    with ExitStack() as servers:
        for pod in pods:
            servers.enter_context(serving(pod))
        for pod in pods:
            others = [a for name, own in addresses.items() if name != pod.name for a in own.values()]
            for to, seen in exchange(pod, *others).items():
                source = addresses[pod.name][6 if ":" in to else 4]
                assert seen == {kind: {"source": source, "intact": True} for kind in ("tcp", "udp")}, to


@pytest.mark.parametrize(("form", "version"), FORMS)
def test_the_node_speaks_to_pods_from_an_address_of_its_own(
    cluster: Cluster, form: str, version: int
) -> None:
    pods = cluster.start_pods(form, version)
    node = cluster.nodes[1]
    reachable = [1] if form == "flat" else [1, 2, 3]
    own = own_addresses(node)
    for i in reachable:
        targets = [address_of(pods[i], v) for v in (4, 6)]
        assert all(node.ping(target) for target in targets), targets
        with serving(pods[i]):
            for to, seen in exchange(node, *targets).items():
                assert {seen["tcp"]["source"], seen["udp"]["source"]} <= own, to
                assert seen["tcp"]["intact"], to
