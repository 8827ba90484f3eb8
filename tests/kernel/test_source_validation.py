"""Who can speak as a pod: the table of docs/reliability.md, tried from everywhere with rp_filter off."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.cluster import ROUTED_RANGES, TUNNEL, Cluster, address_of, make_cluster, sync
from tests.harness.hostile import OUTCOME, documented, outcomes, sends_as, start_three
from tests.harness.networks import dual_stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.node import Node, Pod

VALIDATED = {"sourceValidation": True}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "tunnel": ("tunnel", {}),
    "tunnel, `sourceValidation`": ("tunnel", VALIDATED),
    "gateways": ("hostgw", {}),
    "gateways, `sourceValidation`": ("hostgw", VALIDATED),
}
FAMILIES = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    """Two nodes whose kernels ask for no way back."""
    made = make_cluster(tmp_path, bin_dir, 2)
    for node in made.nodes.values():
        for link in ("all", "default", "u0"):
            node.run("sysctl", "-qw", f"net.ipv4.conf.{link}.rp_filter=0")
    yield made
    made.remove()


def start_pods(cluster: Cluster, form: str, **keys: Any) -> dict[int, Pod]:
    """Make two pods on node 1, which has the keys, and one on node 2; the first one's number is 0."""
    pods = start_three(cluster, lambda i: config_of(cluster, form, i) | (keys if i == 1 else {}))
    for subnet, version in zip(ROUTED_RANGES, (4, 6), strict=True):
        via = cluster.address(1, version)
        cluster.underlay.run("ip", "route", "replace", subnet.format(i=1), "via", via)
    return pods


def config_of(cluster: Cluster, form: str, i: int) -> dict[str, Any]:
    """Return node i's configuration, with all addresses of both nodes as a cluster's follower writes it."""
    if form in {"hostgw", "bridgegw"}:
        return cluster.config(form, i)
    addresses = {n: [cluster.address(n, 4), cluster.address(n, 6)] for n in cluster.nodes}
    [other] = [n for n in cluster.nodes if n != i]
    peer = {"addresses": addresses[other], "subnets": [subnet.format(i=other) for subnet in ROUTED_RANGES]}
    return cluster.config(form, i, addresses=addresses[i], peers=[peer])


def attacks_of(cluster: Cluster, pods: dict[int, Pod], version: int) -> dict[str, Callable[[], bool]]:
    own = {n: address_of(pod, version) for n, pod in pods.items()}
    return {
        "a pod as its neighbour": partial(sends_as, pods[0], own[1], pods[2], own[2]),
        "a pod of another node as one of this node": partial(sends_as, pods[2], own[0], pods[1], own[1]),
        "the underlay as a pod of this node": partial(sends_as, cluster.underlay, own[0], pods[1], own[1]),
        "the underlay as a pod of another node": partial(sends_as, cluster.underlay, own[2], pods[1], own[1]),
    }


@FAMILIES
@pytest.mark.parametrize("setting", SETTINGS)
def test_each_forgery_ends_as_documented(cluster: Cluster, setting: str, version: int) -> None:
    form, keys = SETTINGS[setting]
    pods = start_pods(cluster, form, **keys)
    assert outcomes(attacks_of(cluster, pods, version), documented(setting)) == documented(setting)
    for one in pods.values():
        for other in pods.values():
            assert one.ping(address_of(other, version))
    for pod in pods.values():
        assert pod.ping(cluster.address(1, version))
        assert pod.ping(cluster.address(2, version))


@FAMILIES
def test_it_is_the_rules_that_stop_it_and_sync_makes_them_again(cluster: Cluster, version: int) -> None:
    pods, node = start_pods(cluster, "tunnel", **VALIDATED), cluster.nodes[1]
    [chain] = [line.split()[1] for line in chains(node) if line.startswith("chain source_")]
    node.run("nft", "flush", "chain", "inet", "podwire", chain)
    attacks = attacks_of(cluster, pods, version)
    assert set(outcomes(attacks, dict.fromkeys(attacks, OUTCOME[True])).values()) == {OUTCOME[True]}
    done = sync(node, config_of(cluster, "tunnel", 1) | VALIDATED)
    assert done.returncode == 0, done.stderr
    assert set(outcomes(attacks, {}).values()) == {OUTCOME[False]}


def chains(node: Node) -> list[str]:
    return [line.strip() for line in node.run("nft", "list", "table", "inet", "podwire").stdout.splitlines()]


def test_said_to_be_off_it_is_gone_and_nobody_is_stopped(cluster: Cluster) -> None:
    pods, node = start_pods(cluster, "tunnel", **VALIDATED), cluster.nodes[1]
    off = config_of(cluster, "tunnel", 1) | {"sourceValidation": False}
    assert "source_" in str(chains(node))
    named = sync(node, off, "status")
    assert (named.returncode, "wanted none without sourceValidation" in named.stdout) == (1, True)
    assert sync(node, off).returncode == 0
    assert "source_" not in str(chains(node))
    assert sync(node, off, "status").returncode == 0
    attacks = attacks_of(cluster, pods, 6)
    assert set(outcomes(attacks, dict.fromkeys(attacks, OUTCOME[True])).values()) == {OUTCOME[True]}
    assert sync(node, off).stdout == "network test: 0 changes\n"


def test_check_asks_for_the_rules(plain_node: Node) -> None:
    node, pod = plain_node, plain_node.pod()
    config = dual_stack(node, mode="routed", **VALIDATED)
    result = node.add(config, pod)
    assert node.check(config, result, pod).status == 0
    [chain] = [line.split()[1] for line in chains(node) if line.startswith("chain source_")]
    node.run("nft", "flush", "chain", "inet", "podwire", chain)
    assert (node.check(config, result, pod).status, node.check(config, result, pod).json["code"]) == (1, 100)


def test_on_bridges_nobody_elsewhere_speaks_as_a_pod_of_this_node(cluster: Cluster) -> None:
    for form in ("routed", "bridgegw"):
        pods = start_pods(cluster, form, **VALIDATED)
        for version in (4, 6):
            attacks = attacks_of(cluster, pods, version)
            del attacks["a pod as its neighbour"], attacks["the underlay as a pod of another node"]
            assert set(outcomes(attacks, {}).values()) == {OUTCOME[False]}, (form, version)
            assert pods[0].ping(address_of(pods[1], version))
            assert pods[2].ping(address_of(pods[0], version))
        for n, pod in pods.items():
            node = cluster.nodes[2 if n == 2 else 1]
            node.delete(config_of(cluster, form, 2 if n == 2 else 1), pod)
        for node in cluster.nodes.values():
            node.run("ip", "link", "del", "cni0")
            node.run("ip", "link", "del", TUNNEL, check=False)


def test_an_uplink_that_is_called_like_a_pods_link_is_none(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        node.run("ip", "link", "set", "u0", "down")
        node.run("ip", "link", "set", "u0", "name", "veth0", "up")
    pods = start_pods(cluster, "tunnel", **VALIDATED)
    # From an address that the node has no route to over that link: its default route is gone with the link.
    assert sends_as(cluster.underlay, "203.0.113.9", pods[1], address_of(pods[1], 4))


def test_without_addresses_there_is_nothing_to_ask_routes_for(plain_node: Node) -> None:
    config = {key: value for key, value in dual_stack(plain_node, **VALIDATED).items() if key != "ipam"}
    error = plain_node.call("ADD", config, plain_node.pod()).json
    assert (error["code"], "sourceValidation" in error["msg"]) == (7, True)
