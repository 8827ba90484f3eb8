"""What a network of several nodes cannot be is refused with its reason, and nothing is made."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.cluster import FORMS, TUNNEL, TUNNELLED, Cluster, make_cluster, overlay_state, sync

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 2)
    yield made
    made.remove()


def peer(vtep: str, *subnets: str) -> dict[str, Any]:
    return {"vtep": vtep, "subnets": list(subnets)}


def neighbour(address: str, *subnets: str) -> dict[str, Any]:
    return {"addresses": [address], "subnets": list(subnets)}


NET2, NET3 = "10.244.2.0/24", "10.244.3.0/24"
P2, P3 = "192.0.2.2", "192.0.2.3"
# What is wrong: the form, what differs in its section, and the words of the error.
SECTIONS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "VNI 0": ("flat", {"vni": 0}, ['"vxlan.vni"', "1..16777215", "found 0"]),
    "VNI 2^24": ("flat", {"vni": 2**24}, ['"vxlan.vni"', "1..16777215", "found 16777216"]),
    "no VNI": ("flat", {"vni": None}, ['"vxlan.vni"', "1..16777215", "found none"]),
    "VNI as text": ("flat", {"vni": "42"}, ['"vxlan.vni"', "an integer", '"42"']),
    "port 0": ("flat", {"port": 0}, ['"vxlan.port"', "1..65535", "found 0"]),
    "port 65536": ("flat", {"port": 65536}, ['"vxlan.port"', "1..65535", "found 65536"]),
    "ourselves": ("flat", {"peers": [P2, "192.0.2.1"]}, ["peer 192.0.2.1", "another node", "this one"]),
    "ourselves behind subnets": ("routed", {"peers": [peer("192.0.2.1", NET2)]}, ["192.0.2.1", "this one"]),
    "ourselves as neighbour": (
        "hostgw",
        {"peers": [neighbour("192.0.2.1", NET2)]},
        ["192.0.2.1", "another node"],
    ),
    "two families": ("flat", {"peers": [P2, "2001:db8::3"]}, ["peer 2001:db8::3", "wanted IPv4"]),
    "a neighbour of the other family only": (
        "hostgw",
        {"peers": [neighbour(P2, "fd00:10:244:2::/64")]},
        [P2, "wanted an IPv6 address for fd00:10:244:2::/64"],
    ),
    "listed twice": (
        "routed",
        {"peers": [peer(P2, NET2), peer(P2, NET3)]},
        [f"peer {P2} is listed twice", NET2, NET3],
    ),
    "neighbour listed twice": (
        "hostgw",
        {"peers": [neighbour(P2, NET2), neighbour(P2, NET3)]},
        [f"peer {P2} is listed twice", NET2, NET3],
    ),
    "overlapping peers": (
        "routed",
        {"peers": [peer(P2, NET2), peer(P3, "10.244.2.128/25")]},
        [f"{NET2} of peer {P2} overlaps 10.244.2.128/25 of peer {P3}"],
    ),
    "overlapping neighbours": (
        "hostgw",
        {"peers": [neighbour(P2, NET2), neighbour(P3, "10.244.2.128/25")]},
        [f"{NET2} of peer {P2} overlaps 10.244.2.128/25 of peer {P3}"],
    ),
    "our own subnet behind a peer": (
        "routed",
        {"peers": [peer(P2, "10.244.1.0/25")]},
        ["10.244.1.0/24 of this node overlaps 10.244.1.0/25"],
    ),
    "our own subnet behind a neighbour": (
        "hostgw",
        {"peers": [neighbour(P2, "10.244.0.0/16")]},
        ["10.244.0.0/16 of peer 192.0.2.2 overlaps 10.244.1.0/24 of this node"],
    ),
    "the peer inside its own subnet": (
        "routed",
        {"peers": [peer(P2, "192.0.2.0/24")]},
        [P2, "192.0.2.0/24"],
    ),
    "host bits": ("routed", {"peers": [peer(P2, "10.244.2.1/24")]}, ["peers[0].subnets", "10.244.2.1/24"]),
    "some without subnets": ("routed", {"peers": [peer(P2, NET2), P3]}, [f"peer {P3}", "wanted subnets"]),
    "no address": ("flat", {"peers": ["node2"]}, ["vxlan.peers[0]", "an IP address", '"node2"']),
    "neither address nor object": ("flat", {"peers": [2]}, ["vxlan.peers[0]", "address or an object", "2"]),
    "multicast as peer": ("flat", {"peers": ["239.0.0.1"]}, ["vxlan.peers[0]", "239.0.0.1"]),
    "peers and group": (
        "flat",
        {"peers": [P2], "group": "239.1.1.1"},
        ["vxlan.peers", "vxlan.group", "exclude each other"],
    ),
    "a group that is none": ("flat", {"group": "192.0.2.9"}, ["vxlan.group", "multicast", "192.0.2.9"]),
    "an unknown device": ("flat", {"device": "nope0"}, ['"device" nope0', "found none"]),
    "an address that is not there": (
        "flat",
        {"device": "u0", "local": "192.0.2.77"},
        ['"local" 192.0.2.77', "an address of u0"],
    ),
    "a foreign address without a device": (
        "flat",
        {"local": "192.0.2.77"},
        ['"local" 192.0.2.77', "an address of"],
    ),
    "learning with subnets": ("routed", {"learning": True}, ["vxlan.learning", "wanted it off"]),
    "a segment without a bridge": (
        "tunnel",
        {"peers": [P2]},
        ["wanted subnets behind the peers", '"mode" bridge'],
    ),
    "direct routes without subnets": ("flat", {"directRouting": True}, ["directRouting", "subnets"]),
}


def refused(node: Node, config: dict[str, Any], code: int, words: list[str]) -> None:
    before = node.transcript()
    pod = node.pod()
    answer = node.call("ADD", config, pod)
    assert answer.status == 1, answer.stdout
    assert answer.json["code"] == code, answer.stdout
    missing = [word for word in words if word not in answer.json["msg"]]
    assert not missing, (missing, answer.json["msg"])
    assert node.transcript() == before
    assert sync(node, config).returncode == 1
    assert node.transcript() == before
    assert "eth0" not in pod.links()


@pytest.mark.parametrize("name", SECTIONS)
def test_what_cannot_be_is_code_7_with_what_was_wanted_and_found(cluster: Cluster, name: str) -> None:
    form, keys, words = SECTIONS[name]
    refused(cluster.nodes[1], cluster.config(form, 1, **keys), 7, words)


@pytest.mark.parametrize("form", FORMS)
def test_without_a_route_to_any_peer_the_runtime_is_to_try_again(cluster: Cluster, form: str) -> None:
    node = cluster.nodes[1]
    for version in (4, 6):
        node.run("ip", f"-{version}", "route", "flush", "default")
    peers: dict[str, Any] = {
        "flat": ["203.0.113.9"],
        **{tunnel: [peer("203.0.113.9", NET2)] for tunnel in TUNNELLED},
        **{gateway: [neighbour("203.0.113.9", NET2)] for gateway in ("bridgegw", "hostgw")},
    }
    refused(node, cluster.config(form, 1, peers=peers[form]), 11, ["203.0.113.9", "route", "found none"])


def test_a_neighbour_behind_a_router_is_refused(cluster: Cluster) -> None:
    peers = [neighbour("203.0.113.9", NET2)]
    refused(
        cluster.nodes[1], cluster.config("hostgw", 1, peers=peers), 7, ["203.0.113.9", "behind 192.0.2.254"]
    )


@pytest.mark.parametrize(
    "link",
    [
        ("other0", "type", "vxlan", "id", "42", "dev", "u0", "dstport", "4789"),
        (TUNNEL, "type", "vxlan", "id", "42", "dev", "u0", "dstport", "4789"),
        (TUNNEL, "type", "bridge"),
    ],
    ids=["same VNI", "same VNI and name", "same name"],
)
def test_a_device_that_is_not_ours_is_left_alone(cluster: Cluster, link: tuple[str, ...]) -> None:
    node = cluster.nodes[1]
    node.run("ip", "link", "add", *link)
    words = ["VNI 42 on port 4789", "in use"] if link[0] == "other0" else ["another link of that name"]
    refused(node, cluster.config("flat", 1), 7, words)


def test_a_port_in_use_by_another_program_is_named(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    program = "import socket,sys; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(('',4789)); "
    command = [
        "nsenter",
        f"--net={node.path}",
        sys.executable,
        "-c",
        program + "print(1, flush=True); sys.stdin.read()",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        refused(node, cluster.config("flat", 1), 7, ["port 4789", "in use"])


def test_a_second_network_with_the_vni_of_the_first_is_refused(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    node.add(cluster.config("routed", 1), node.pod())
    wanted = overlay_state(node)
    other = cluster.config("flat", 1, peers=["192.0.2.7"]) | {"name": "other", "bridge": "cni1"}
    refused(node, other, 7, [TUNNEL, "network other", "that of network test"])
    assert overlay_state(node) == wanted


def test_a_range_that_is_the_whole_segment_needs_a_shared_store(cluster: Cluster) -> None:
    node, config = cluster.nodes[1], cluster.config("flat", 1)
    config["ipam"]["ranges"] = [[{"subnet": "10.244.0.0/16"}]]
    refused(node, config, 7, ["10.244.0.0/16 is the whole segment", '"shared": true'])
    config["ipam"]["shared"] = True
    node.add(config, node.pod())


def test_routed_pods_without_addresses_are_refused(cluster: Cluster) -> None:
    config = cluster.config("hostgw", 1)
    del config["ipam"]["type"]
    refused(cluster.nodes[1], config, 7, ['"mode" routed', '"ipam"'])


def test_two_backends_of_one_network_are_refused(cluster: Cluster) -> None:
    config = cluster.config("tunnel", 1) | {"hostGateway": {"peers": []}}
    refused(cluster.nodes[1], config, 7, ['"vxlan" and "hostGateway" exclude each other'])


@pytest.mark.parametrize("form", ["routed", "bridgegw"])
def test_bridged_pods_that_nobody_forwards_for_have_no_peers(cluster: Cluster, form: str) -> None:
    config = cluster.config(form, 1) | {"isDefaultGateway": False}
    refused(cluster.nodes[1], config, 7, ["subnets behind the peers", '"isGateway"', "found it off"])


def test_an_mtu_below_ipv6s_is_refused(cluster: Cluster) -> None:
    for form in FORMS:
        refused(cluster.nodes[1], cluster.config(form, 1) | {"mtu": 1279}, 7, ["1280", "1279"])


@pytest.mark.parametrize("version", [4, 6])
def test_networks_of_several_vnis_share_a_port(cluster: Cluster, version: int) -> None:
    node = cluster.nodes[1]
    node.add(cluster.config("routed", 1, version), node.pod())
    other = cluster.config("flat", 1, version, vni=43) | {"name": "other", "bridge": "cni1"}
    node.add(other, node.pod())
    foreign = ("type", "vxlan", "id", "44", "dev", "u0", "dstport", "4789", "local", cluster.address(1, 4))
    node.run("ip", "link", "add", "foreign0", "up", *foreign)
    assert sync(node, cluster.config("routed", 1, version)).stdout == "network test: 0 changes\n"
    assert "network other: 0 changes" in sync(node, other).stdout
