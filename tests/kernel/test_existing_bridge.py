"""A bridge that is there already: ours alone is brought in line, one with a foreign port never changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import both_filterings
from tests.harness.networks import (
    add_foreign_port,
    call_reference,
    dual_stack,
    eventually,
    network,
    reference,
)

if TYPE_CHECKING:
    from tests.harness.node import Node

LOW_MAC = "00:00:5e:00:53:01"


def bridge_of(node: Node) -> dict[str, Any]:
    return node.links()["cni0"]


def add_bridge(node: Node, *words: str) -> None:
    node.run("ip", "link", "add", "cni0", *words, "type", "bridge")
    node.run("ip", "link", "set", "cni0", "up")


def add_veth_port(node: Node, *, mac: str) -> None:
    node.run("ip", "link", "add", "p0", "address", mac, "type", "veth", "peer", "name", "p0-far")
    node.run("ip", "link", "set", "p0", "master", "cni0", "up")


@both_filterings
def test_bridge_of_the_go_plugin_is_brought_in_line_and_its_pods_still_answer(node: Node) -> None:
    theirs, ours = node.pod(), node.pod()
    config = reference(node)
    config["ipam"]["dataDir"] = str(node.tmp / "theirs")
    config["ipam"]["ranges"][0][0] |= {"rangeStart": "10.22.0.100"}
    config["ipam"]["ranges"][1][0] |= {"rangeStart": "fd00:22::100"}
    answer = call_reference(node, "ADD", config, theirs)
    assert answer.status == 0, answer.stdout
    result = node.add(dual_stack(node, mtu=9000), ours)
    assert bridge_of(node)["mtu"] == 9000
    assert result["interfaces"][0]["mac"] == answer.json["interfaces"][0]["mac"]
    assert ours.ping("10.22.0.100")
    assert ours.ping("fd00:22::100")


SWITCHES = ("net.ipv6.conf.cni0.accept_ra", "net.ipv6.conf.cni0.accept_dad")


def test_what_was_refused_to_who_made_the_bridge_is_set_by_the_next_add(node: Node) -> None:
    config = dual_stack(node)
    node.add(config, node.pod())
    node.run("sysctl", "-qw", *(f"{key}=1" for key in SWITCHES))
    node.add(config, node.pod())
    assert node.run("sysctl", "-n", *SWITCHES).stdout.split() == ["0", "0"]
    add_foreign_port(node, "cni0")
    node.run("sysctl", "-qw", *(f"{key}=1" for key in SWITCHES))
    node.add(config, node.pod())
    assert node.run("sysctl", "-n", *SWITCHES).stdout.split() == ["1", "1"]


def test_bridge_that_is_down_is_brought_up(node: Node) -> None:
    pod = node.pod()
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    node.add(dual_stack(node), pod)
    assert "UP" in bridge_of(node)["flags"]
    assert pod.ping("10.22.0.1")


def test_of_two_mtus_the_larger_stays_until_its_last_pod_is_gone(node: Node) -> None:
    large = dual_stack(node, name="large", mtu=9000)
    small = network(node, [{"subnet": "10.23.0.0/24"}], name="small", mtu=1400)
    pods = [node.pod() for _ in range(4)]
    node.add(small, pods[0])
    assert bridge_of(node)["mtu"] == 1400
    node.add(large, pods[1])
    assert bridge_of(node)["mtu"] == 9000
    node.add(small, pods[2])
    assert bridge_of(node)["mtu"] == 9000
    node.delete(large, pods[1])
    node.add(small, pods[3])
    assert bridge_of(node)["mtu"] == 1400


def test_larger_mtu_of_the_first_network_stays_when_a_smaller_pod_comes(node: Node) -> None:
    node.add(dual_stack(node, name="large", mtu=9000), node.pod())
    node.add(network(node, name="small", mtu=1400), node.pod())
    assert bridge_of(node)["mtu"] == 9000


@pytest.mark.parametrize("made", ["by-us", "by-hand"])
def test_layer_2_bridge_keeps_its_mac_when_a_port_with_a_lower_one_comes(node: Node, made: str) -> None:
    if made == "by-hand":
        add_bridge(node)
    result = node.add(network(node), node.pod())
    add_veth_port(node, mac=LOW_MAC)
    assert bridge_of(node)["address"] == result["interfaces"][0]["mac"]


def test_bridge_with_a_foreign_port_is_left_byte_for_byte_as_it_is(node: Node) -> None:
    add_bridge(node)
    tap = add_foreign_port(node, "cni0")
    node.run("ip", "link", "set", tap, "address", "52:54:00:12:34:56")
    before = bridge_of(node)
    pods = [node.pod(), node.pod()]
    config = network(node, mtu=1400)
    for pod in pods:
        node.add(config, pod)
    during = bridge_of(node)
    for pod in pods:
        node.delete(config, pod)
    # Carrier is the ports' doing.
    assert still(during) == still(before)
    assert eventually(lambda: still(bridge_of(node)), still(before)) == still(before)


def still(link: dict[str, Any]) -> dict[str, Any]:
    """Return a link without what its ports do to it by being there."""
    volatile = ("timer", "root_port", "root_path_cost", "topology_change")
    data = link["linkinfo"]["info_data"]
    info = {key: value for key, value in data.items() if not key.endswith(volatile)}
    flags = {"UP", "PROMISC", "ALLMULTI"} & set(link["flags"])
    return {key: value for key, value in link.items() if key not in {"operstate", "linkinfo"}} | {
        "flags": flags,
        "info": info,
    }


def test_larger_mtu_of_the_go_plugins_bridge_stays_when_a_smaller_pod_comes(node: Node) -> None:
    config = reference(node, name="theirs", mtu=9000, isDefaultGateway=False)
    config.pop("ipam")
    assert call_reference(node, "ADD", config, node.pod()).status == 0
    node.add(network(node, mtu=1400), node.pod())
    assert bridge_of(node)["mtu"] == 9000


def test_bridge_that_lost_its_mac_with_its_last_port_gets_one(node: Node) -> None:
    add_bridge(node)
    add_veth_port(node, mac=LOW_MAC)
    node.run("ip", "link", "del", "p0")
    assert bridge_of(node)["address"] == "00:00:00:00:00:00"
    result = node.add(dual_stack(node), node.pod())
    assert bridge_of(node)["address"] == result["interfaces"][0]["mac"] != "00:00:00:00:00:00"


DIFFERENCES = [
    ({"mtu": 9000}, ("mtu", "9000", "1500")),
    ({"promiscMode": True}, ("promisc", "on", "off")),
    ({"isGateway": False, "isDefaultGateway": False, "down": True}, ("state", "up", "down")),
]


@pytest.mark.parametrize(("keys", "words"), DIFFERENCES, ids=["mtu", "promisc", "down"])
@pytest.mark.parametrize("kind", ["tap", "macvlan"])
def test_difference_on_a_bridge_with_a_foreign_port_is_an_error_that_changes_nothing(
    node: Node, keys: dict[str, Any], words: tuple[str, ...], kind: str
) -> None:
    add_bridge(node)
    if kind == "tap":
        foreign = add_foreign_port(node, "cni0")
    else:
        foreign = "lan0"
        node.run("ip", "link", "add", "p0", "type", "veth", "peer", "name", "p0-far")
        node.run("ip", "link", "add", foreign, "link", "p0", "type", "macvlan")
        node.run("ip", "link", "set", foreign, "master", "cni0", "up")
    if keys.get("down"):
        node.run("ip", "link", "set", "cni0", "down")
    before = still(bridge_of(node)), node.addresses("cni0")
    answer = node.call("ADD", dual_stack(node, **keys), node.pod())
    assert (answer.status, answer.json["code"]) == (1, 7)
    for word in ("cni0", foreign, *words):
        assert word in answer.json["msg"]
    assert (still(bridge_of(node)), node.addresses("cni0")) == before
    assert not [name for name in node.links() if name.startswith("veth")]


def test_bridge_with_a_foreign_port_and_a_larger_mtu_is_accepted(node: Node) -> None:
    pod = node.pod()
    add_bridge(node)
    node.run("ip", "link", "set", "cni0", "mtu", "9000")
    add_foreign_port(node, "cni0", mtu=9000)
    config = dual_stack(node, mtu=1500)
    result = node.add(config, pod)
    assert (bridge_of(node)["mtu"], pod.links()["eth0"]["mtu"]) == (9000, 1500)
    assert node.check(config, result, pod).status == 0


def test_name_of_a_link_that_is_no_bridge_is_refused(node: Node) -> None:
    node.run("ip", "tuntap", "add", "dev", "cni0", "mode", "tap")
    before = node.transcript()
    answer = node.call("ADD", dual_stack(node), node.pod())
    assert (answer.status, answer.json["code"]) == (1, 7)
    assert "cni0: wanted a bridge, found" in answer.json["msg"]
    assert node.transcript() == before


@pytest.mark.parametrize("made_again", [False, True], ids=["deleted", "deleted and made again by somebody"])
def test_bridge_that_is_another_than_before_costs_one_attempt_at_most(node: Node, made_again: bool) -> None:
    config, pod = dual_stack(node), node.pod()
    node.add(config, node.pod())
    node.run("ip", "link", "del", "cni0")
    if made_again:
        add_bridge(node)
    if node.call("ADD", config, pod).status != 0:
        node.delete(config, pod)
        node.add(config, pod)
    assert pod.ping("10.22.0.1")
    assert pod.ping("fd00:22::1")
