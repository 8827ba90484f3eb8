"""What a hostile pod can do by default and what stops it: the tables of docs/reliability.md, tried out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import both_filterings
from tests.harness.cluster import ROUTER, TUNNEL, Cluster, make_cluster
from tests.harness.cluster import address_of as address_in
from tests.harness.frames import IP4, packed_mac
from tests.harness.hostile import (
    ATTACKS,
    Scene,
    datagram,
    documented,
    inject,
    is_heard,
    lies_about,
    outcomes,
    sends_as,
    start_three,
)
from tests.harness.networks import GATEWAYS, V4, V6, address_of, dual_stack, network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.node import Node, Pod

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "`macspoofchk`": {"macspoofchk": True},
    '`spoofCheck: "ip"`': {"spoofCheck": "ip"},
    "`portIsolation`": {"portIsolation": True},
    "mode `routed`": {"mode": "routed"},
    "routed, `sourceValidation`": {"mode": "routed", "sourceValidation": True},
}
OTHER_MAC = "02:00:5e:00:00:99"
NEXT_HOPS = {4: "169.254.1.1", 6: "fe80::1"}
FORMS = {
    "flat": ("flat", {}),
    'flat, `spoofCheck: "ip"`': ("flat", {"spoofCheck": "ip"}),
    "routed": ("routed", {}),
    'routed, `spoofCheck: "ip"`': ("routed", {"spoofCheck": "ip"}),
}


@both_filterings
@pytest.mark.parametrize("setting", SETTINGS)
def test_each_attack_on_a_neighbour_ends_as_documented(plain_node: Node, setting: str) -> None:
    node = plain_node
    # What nodes have that get their own addresses from routers: the worst case.
    node.run("sysctl", "-qw", "net.ipv6.conf.default.accept_ra=2")
    config = dual_stack(node, **SETTINGS[setting])
    attacker, victim = node.pod(), node.pod()
    node.add(config, attacker)
    result = node.add(config, victim)
    gateways = NEXT_HOPS if config.get("mode") == "routed" else GATEWAYS
    scene = Scene(node, attacker, victim, gateways, {v: address_of(result, v) for v in (4, 6)})

    def forget() -> None:
        for space in (node, attacker, victim):
            space.run("ip", "neigh", "flush", "all")

    attacks = {name: partial(attack, scene) for name, attack in ATTACKS.items()}
    assert outcomes(attacks, documented(setting), forget) == documented(setting)


@both_filterings
def test_a_pod_with_ipv4_alone_takes_no_router_either(plain_node: Node) -> None:
    """It has a link-local address all the same, and would prefer what IPv6 its neighbour gives it."""
    node, attacker, victim = plain_node, plain_node.pod(), plain_node.pod()
    config = network(node, V4, isDefaultGateway=True)
    node.add(config, attacker)
    node.add(config, victim)
    scene = Scene(node, attacker, victim, {4: GATEWAYS[4]}, {})
    assert not ATTACKS["router advertisement to a neighbour"](scene)


ON_REQUEST = {"isGateway": True, "sysctl": {"net.ipv6.conf.IFNAME.accept_ra": "1"}}


@both_filterings
@pytest.mark.parametrize("ranges", [(V4,), (V4, V6)], ids=["v4", "dual-stack"])
@pytest.mark.parametrize("keys", [{}, ON_REQUEST], ids=["gateway elsewhere", "on request"])
def test_a_pod_that_is_meant_to_take_routers_takes_them(
    plain_node: Node, ranges: tuple[Any, ...], keys: dict[str, Any]
) -> None:
    """On a bridge whose gateway is elsewhere the segment's router is the way out; else one asks for it."""
    node, router, pod = plain_node, plain_node.pod(), plain_node.pod()
    config = network(node, *ranges, **keys)
    node.add(config, router)
    node.add(config, pod)
    scene = Scene(node, router, pod, {4: GATEWAYS[4]}, {})
    assert ATTACKS["router advertisement to a neighbour"](scene)


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 2)
    yield made
    made.remove()


def start_pods(cluster: Cluster, form: str, **keys: Any) -> dict[int, Pod]:
    """Make a pod on every node, and on the first one another, 0, that is hostile."""
    return start_three(cluster, lambda i: cluster.config(form, i) | {"ipMasq": True, **keys})


def enters_the_tunnel(cluster: Cluster, form: str, pods: dict[int, Pod], i: int) -> bool:
    """Let the hostile pod wrap a frame as nodes do for a pod of node i; tell whether that one hears it."""
    endpoint = pods[i].links()["eth0"] if form == "flat" else cluster.nodes[i].links()[TUNNEL]
    source, to = "10.244.1.200", address_in(pods[i], 4)
    frame = packed_mac(endpoint["address"]) + packed_mac(OTHER_MAC) + IP4.to_bytes(2, "big")
    vtep = cluster.address(i, 4)
    return is_heard(pods[i], to, source, lambda: inject(pods[0], vtep, frame + datagram(source, to)))


def stranger_enters(cluster: Cluster, form: str, pod: Pod, version: int = 4) -> bool:
    """Let who is no node wrap a frame for a pod of node 1, as a pod of node 2; tell whether it is heard."""
    endpoint = pod.links()["eth0"] if form == "flat" else cluster.nodes[1].links()[TUNNEL]
    source, to = "10.244.2.200", address_in(pod, 4)
    frame = packed_mac(endpoint["address"]) + packed_mac(OTHER_MAC) + IP4.to_bytes(2, "big")
    wrapped = partial(inject, cluster.underlay, cluster.address(1, version), frame + datagram(source, to))
    return is_heard(pod, to, source, wrapped)


@pytest.mark.parametrize("setting", FORMS)
def test_each_attack_across_nodes_ends_as_documented(cluster: Cluster, setting: str) -> None:
    form, keys = FORMS[setting]
    pods = start_pods(cluster, form, **keys)
    gateway = "10.244.0.1" if form == "flat" else "10.244.2.1"
    scene = Scene(cluster.nodes[1], pods[0], pods[2], {4: gateway}, {})
    others = {4: "10.244.1.200", 6: "fd00:10:244::1:c8" if form == "flat" else "fd00:10:244:1::c8"}
    attacks: dict[str, Callable[[], bool]] = {
        **{
            f"IPv{v} source of another": partial(sends_as, pods[0], other, pods[2], address_in(pods[2], v))
            for v, other in others.items()
        },
        "ARP as the gateway": partial(lies_about, scene, pods[2], gateway),
        "a tunnel packet of its own to another node": partial(enters_the_tunnel, cluster, form, pods, 2),
        "a tunnel packet of its own to its node": partial(enters_the_tunnel, cluster, form, pods, 1),
        "a tunnel packet of who is no node": partial(stranger_enters, cluster, form, pods[1]),
    }
    assert outcomes(attacks, documented(setting)) == documented(setting)


@pytest.mark.parametrize("form", ["flat", "routed"])
def test_it_is_the_guard_that_keeps_pods_out_of_the_tunnel(cluster: Cluster, form: str) -> None:
    """The pod's node has one, and so has the other, for what comes through the tunnel itself."""
    pods, node = start_pods(cluster, form), cluster.nodes[1]
    assert not enters_the_tunnel(cluster, form, pods, 2)
    for each in cluster.nodes.values():
        each.run("nft", "flush", "chain", "inet", "podwire", f"guard_{TUNNEL}")
    assert enters_the_tunnel(cluster, form, pods, 2)
    node.add(cluster.config(form, 1), node.pod())
    assert not enters_the_tunnel(cluster, form, pods, 2)


@pytest.mark.parametrize(("form", "version"), [("flat", 4), ("routed", 4), ("tunnel", 4), ("tunnel", 6)])
def test_nobody_on_the_underlay_but_peers_enters_the_tunnel(
    cluster: Cluster, form: str, version: int
) -> None:
    """Who knows address, port and VNI would be any pod of another node."""
    pods, node = cluster.start_pods(form, version), cluster.nodes[1]
    enters = partial(stranger_enters, cluster, form, pods[1], version)
    assert not enters()
    assert pods[2].ping(address_in(pods[1], 4))
    node.run("nft", "flush", "chain", "inet", "podwire", f"guard_{TUNNEL}")
    assert enters()
    # Who becomes a peer is let in.
    stranger: Any = ROUTER[version]
    if form != "flat":
        stranger = {"vtep": stranger, "subnets": ["10.244.200.0/24"]}
    peers = [cluster.peer(form, 2, version), stranger]
    node.add(cluster.config(form, 1, version, peers=peers), node.pod())
    assert enters()


def test_a_node_whose_underlay_is_named_like_a_pods_link_has_its_tunnel(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        node.run("ip", "link", "set", "u0", "down")
        node.run("ip", "link", "set", "u0", "name", "veth0", "up")
    pods = start_pods(cluster, "flat")
    assert pods[0].ping(address_in(pods[2], 4))
    assert not enters_the_tunnel(cluster, "flat", pods, 2)
