"""Pods on a bridge beside routed ones on one node, as a network has them that changes its mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.cluster import Cluster, address_of, exchange, make_cluster, serving, sync
from tests.harness.hostports import WEB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node

ORDERS = [("routed", "tunnel"), ("tunnel", "routed"), ("bridgegw", "hostgw"), ("hostgw", "bridgegw")]


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 2)
    yield made
    made.remove()


def proxies(node: Node) -> list[str]:
    """Return the addresses that the node answers for on the bridge."""
    shown = [node.run("ip", f"-{v}", "neigh", "show", "proxy", "dev", "cni0").stdout for v in (4, 6)]
    return [line.split()[0] for text in shown for line in text.splitlines()]


@pytest.mark.parametrize(("before", "after"), ORDERS)
def test_old_pods_and_new_ones_reach_each_other_with_their_first_packet(
    cluster: Cluster, before: str, after: str
) -> None:
    node, far = cluster.nodes[1], cluster.nodes[2].pod()
    old, new, newer = node.pod(), node.pod(), node.pod()
    node.add(cluster.config(before, 1), old)
    cluster.nodes[2].add(cluster.config(before, 2), far)
    assert sync(node, cluster.config(after, 1)).returncode == 0
    assert sync(cluster.nodes[2], cluster.config(after, 2)).returncode == 0
    for pod in (new, newer):
        node.add(cluster.config(after, 1), pod)
    for version in (4, 6):
        for one, other in ((old, new), (newer, old), (far, new), (far, old), (new, far)):
            assert one.ping(address_of(other, version), within=0.5), (one, other, version)
    with serving(new):
        targets = [address_of(new, v) for v in (4, 6)]
        for to, seen in exchange(old, *targets).items():
            assert seen["tcp"] == {"source": address_of(old, 6 if ":" in to else 4), "intact": True}


def test_the_node_answers_for_routed_pods_alone_and_as_long_as_they_are_there(cluster: Cluster) -> None:
    node, config = cluster.nodes[1], cluster.config("tunnel", 1)
    old, new = node.pod(), node.pod()
    node.add(cluster.config("routed", 1), old)
    node.add(config, new)
    assert proxies(node) == [address_of(new, 4), address_of(new, 6)]
    node.run("ip", "neigh", "add", "proxy", "192.0.2.200", "dev", "cni0")  # somebody else's
    assert sync(node, config).stdout == "network test: 0 changes\n"
    node.run("ip", "neigh", "del", "proxy", address_of(new, 4), "dev", "cni0")
    assert sync(node, config).stdout.startswith("network test: 1 changes\n")
    node.delete(config, new)
    assert sync(node, config).stdout.startswith("network test: 2 changes\n")
    assert proxies(node) == ["192.0.2.200"]


def test_an_add_that_fails_leaves_no_proxy(cluster: Cluster) -> None:
    node, config = cluster.nodes[1], cluster.config("tunnel", 1)
    old, new, refused = node.pod(), node.pod(), node.pod()
    node.add(cluster.config("routed", 1), old)
    mapped = config | {"runtimeConfig": {"portMappings": [WEB]}}
    node.add(mapped, new)
    before = node.transcript(), proxies(node)
    assert node.call("ADD", mapped, refused).json["code"] == 11
    assert (node.transcript(), proxies(node)) == before


def test_a_pod_on_the_bridge_stays_out_of_the_tunnel_of_routed_ones(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    node.add(cluster.config("routed", 1), node.pod())
    node.add(cluster.config("tunnel", 1), node.pod())
    guard = node.run("nft", "list", "chain", "inet", "podwire", "guard_vxlan42").stdout
    assert 'iifname "cni0" udp dport 4789 drop' in guard
    assert 'iifname "veth*" udp dport 4789 drop' in guard


def test_the_former_bridge_is_no_clash_and_loses_subnets_that_are_anothers_now(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    node.add(cluster.config("routed", 1), node.pod())
    config = cluster.config("tunnel", 1) | {"forceAddress": True}
    node.add(config, node.pod())
    assert "wanted it for this network's pods alone" not in sync(node, config, "status").stdout
    assert "10.244.1.1/24" in node.addresses("cni0")
    config["ipam"]["ranges"] = [[{"subnet": "10.244.9.0/24"}], [{"subnet": "fd00:10:244:9::/64"}]]
    assert sync(node, config).returncode == 0
    assert [address for address in node.addresses("cni0") if "10.244." in address] == []
