"""Pods of different nodes reach each other over both families, without NAT."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.harness.cluster import TUNNEL, TUNNELLED, Cluster, address_of, exchange, make_cluster, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node

# Over hostGateway each inner family takes the underlay of its own.
FORMS = [
    *((form, v) for form in ("flat", *TUNNELLED) for v in (4, 6)),
    ("bridgegw", 4),
    ("hostgw", 4),
]


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


def tracked(node: Node, *words: str) -> list[str]:
    return [
        line
        for family in ("ipv4", "ipv6")
        for line in node.run("conntrack", "-L", "-f", family, "-p", "udp", *words).stdout.splitlines()
    ]


@pytest.mark.parametrize(("form", "version"), [(form, v) for form, v in FORMS if form[-2:] != "gw"])
def test_conntrack_has_no_entry_of_the_tunnel_itself(cluster: Cluster, form: str, version: int) -> None:
    pods = cluster.start_pods(form, version)
    for node in cluster.nodes.values():
        node.run("nft", "add table inet t; add chain inet t c { type filter hook input priority 0; }")
        node.run("nft", "add rule inet t c ct state new accept")  # from now on the kernel tracks
    with serving(pods[2]):
        exchange(pods[1], *(address_of(pods[2], v) for v in (4, 6)))
    for i in (1, 2):
        assert tracked(cluster.nodes[i], "--dport", "4789") == []
    # Without the rules the node would track it.
    cluster.nodes[1].run("nft", "flush", "chain", "inet", "podwire", f"untracked_{TUNNEL}")
    assert pods[1].ping(address_of(pods[2], 4))
    assert tracked(cluster.nodes[1], "--dport", "4789")
