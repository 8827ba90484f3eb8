"""A route of somebody else that takes pods' packets is named, with the command that removes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.cluster import FORMS, TUNNEL, VNI, address_of, make_cluster
from tests.harness.damage import MODES, occupy, plugins_of, write_conflist
from tests.harness.networks import dual_stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.cluster import Cluster
    from tests.harness.damage import Place
    from tests.harness.node import Node

OTHER = "flannel.1"
SUBNETS = {4: "10.244.2.0/24", 6: "fd00:10:244:2::/64"}
# Of a better metric, and in a table that a rule leads to.
SHADOWS = {
    "metric": "ip -{v} route add {subnet} dev {link} metric 1",
    "rule": "ip -{v} route add {subnet} dev {link} table 77; ip -{v} rule add pref 100 to {subnet} lookup 77",
}


@pytest.fixture
def pair(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 2)
    for node in made.nodes.values():
        node.run("ip", "link", "add", OTHER, "type", "bridge")
        node.run("ip", "link", "set", OTHER, "up")
    yield made
    made.remove()


def remove_as_told(place: Place) -> None:
    """Paste what status says until it says nothing more."""
    for _ in range(4):
        status, said = place.run("status")
        if status == 0:
            return
        told = [line.partition(": ip -")[2] for line in said.splitlines() if ": ip -" in line]
        assert told, said
        place.node.run("sh", "-c", f"ip -{told[0]}")
    raise AssertionError(place.run("status")[1])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("shadow", ["metric", "rule"])
@pytest.mark.parametrize("form", [form for form in FORMS if form != "flat"])
def test_what_takes_the_packets_for_another_node_is_named(
    pair: Cluster, form: str, shadow: str, version: int
) -> None:
    place = occupy(pair, form)
    assert place.far
    assert place.run("status")[0] == 0
    line = SHADOWS[shadow].format(v=version, subnet=SUBNETS[version], link=OTHER)
    place.node.run("sh", "-ec", line)
    assert not place.pod.ping(address_of(place.far, version), within=0.3)
    status, said = place.run("status")
    assert status == 1
    assert f"found that they take {OTHER}" in said
    # A sync cannot mend it, and does not say so.
    assert "mended" not in place.run("sync")[1]
    remove_as_told(place)
    assert place.pod.ping(address_of(place.far, version), within=2)


# What carries much more than our packets: a VPN's default, the network of somebody's link.
CARRIERS = {
    "a default route": "ip -{v} route add default dev {link} table 77;"
    "ip -{v} rule add pref 100 to {subnet} lookup 77",
    "a link's network": "ip -{v} addr add {first} dev {link}",
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("carrier", CARRIERS)
def test_nobody_is_told_to_remove_what_carries_more_than_these_packets(
    pair: Cluster, carrier: str, version: int
) -> None:
    place = occupy(pair, "tunnel")
    first = {4: "10.244.2.77/24", 6: "fd00:10:244:2::77/64 nodad"}[version]
    line = CARRIERS[carrier].format(v=version, subnet=SUBNETS[version], link=OTHER, first=first)
    place.node.run("sh", "-ec", line)
    said = place.run("status")[1]
    assert f"found that they take {OTHER}: ip route get " in said
    assert "route del" not in said


def test_check_refuses_an_attachment_whose_packets_go_elsewhere(plain_node: Node) -> None:
    node, pod = plain_node, plain_node.pod()
    config = dual_stack(node, mode="routed")
    result = node.add(config, pod)
    node.run("ip", "link", "add", OTHER, "type", "bridge")
    node.run("ip", "link", "set", OTHER, "up")
    assert node.check(config, result, pod).status == 0
    node.run("ip", "route", "prepend", address_of(pod, 4), "dev", OTHER)
    refused = node.check(config, result, pod)
    assert (refused.status, refused.json["code"]) == (1, 100)
    assert f"found that they take {OTHER}" in refused.json["msg"]


def test_a_tunnel_is_left_when_the_backend_is_another(pair: Cluster) -> None:
    place = occupy(pair, "tunnel")
    write_conflist(place.node, plugins_of(pair, "hostgw", 1))
    assert place.run("sync")[0] == 0
    said = place.run("status")[1]
    assert f"link {TUNNEL}: wanted no tunnel of network test, found it: ip link del {TUNNEL}" in said


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mode", MODES)
def test_what_takes_the_packets_for_a_pod_here_is_named(pair: Cluster, mode: str, version: int) -> None:
    place = occupy(pair, mode)
    assert place.run("status")[0] == 0
    own = address_of(place.pod, version)
    # IPv4 has another route to the very address only behind the first, or before it.
    way = ["prepend", own] if version == 4 else ["add", own, "metric", "1"]
    place.node.run("ip", f"-{version}", "route", way[0], way[1], "dev", OTHER, *way[2:])
    assert not place.node.ping(own, within=0.3)
    status, said = place.run("status")
    assert status == 1
    assert f"found that they take {OTHER}" in said
    remove_as_told(place)
    assert place.node.ping(own, within=2)


def test_packets_that_have_no_way_at_all_are_named(pair: Cluster) -> None:
    place = occupy(pair, "tunnel")
    place.node.run("ip", "route", "add", "blackhole", SUBNETS[4], "metric", "1")
    status, said = place.run("status")
    assert status == 1
    assert f"route {SUBNETS[4]}: wanted packets for it to take vxlan42, found that they have no way" in said
    assert place.run("doctor")[0] == 1
    assert "somebody else takes the packets" in place.run("doctor")[1]


@pytest.mark.parametrize("form", ["flat", "routed", "tunnel"])
def test_a_tunnel_of_before_is_named(pair: Cluster, form: str) -> None:
    """Each network has one; what had another number stays until somebody removes it."""
    place = occupy(pair, form)
    conflist = place.node.tmp / "net.d/10-test.conflist"
    conflist.write_text(conflist.read_text().replace(f'"vni": {VNI}', '"vni": 43'))
    assert place.run("sync")[0] == 0
    status, said = place.run("status")
    assert status == 1
    assert (
        f"link {TUNNEL}: wanted no tunnel of network test but vxlan43, found it: ip link del {TUNNEL}" in said
    )
    place.node.run("ip", "link", "del", TUNNEL)
    assert TUNNEL not in place.run("status")[1]
