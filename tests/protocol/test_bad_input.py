"""Bad input gets a clear error and changes nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.answers import assert_refused, refusal, unchanged, warm
from tests.harness.foreign import delegated, foreign, says
from tests.harness.networks import V4, V6, dual_stack, network

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Node

START_AFTER_END = {"subnet": "10.22.0.0/24", "rangeStart": "10.22.0.9", "rangeEnd": "10.22.0.8"}
ONLY_THE_GATEWAY = {"subnet": "10.22.0.0/30", "rangeStart": "10.22.0.1", "rangeEnd": "10.22.0.1"}
ENDLESS = f"10.22.0.0/{'1' * 5000}"
RANGES = {
    "overlapping sets": ([V4, [{"subnet": "10.22.0.128/25"}]], ["overlap", "10.22.0.129-10.22.0.254"]),
    "overlapping ranges": ([[{"subnet": "fd00::/64"}, {"subnet": "fd00::/80"}]], ["overlap", "fd00::"]),
    "mixed families": ([[*V4, *V6]], ["one family", "IPv4 and IPv6"]),
    "start outside": ([[V4[0] | {"rangeStart": "10.23.0.1"}]], ["range start", "10.22.0.0/24", "10.23.0.1"]),
    "end outside": ([[V4[0] | {"rangeEnd": "10.23.0.1"}]], ["range end", "10.22.0.0/24", "10.23.0.1"]),
    "end of another family": ([[V4[0] | {"rangeEnd": "fd00::5"}]], ["range end", "IPv4", "fd00::5"]),
    "start after end": ([[START_AFTER_END]], ["above the end", "10.22.0.9-10.22.0.8"]),
    "only the gateway": ([[ONLY_THE_GATEWAY]], ["at least one allocatable", "10.22.0.1"]),
    "host bits": ([[{"subnet": "10.22.0.1/24"}]], ["host bits", "10.22.0.0/24", "10.22.0.1/24"]),
    "no subnet": ([[{"rangeStart": "10.22.0.1"}]], ["subnet"]),
    "a gateway of another family": ([[V4[0] | {"gateway": "fd00::1"}], V6], ["isGateway", "10.22.0.0/24"]),
    "no gateway": ([[V4[0] | {"gateway": "none"}]], ["isGateway", "10.22.0.0/24"]),
    "no room for a gateway": ([[{"subnet": "10.22.0.0/31"}]], ["isGateway", "10.22.0.0/31"]),
    "an empty set": ([[]], ["range set 0", "none"]),
    "a group's addresses": ([[{"subnet": "224.0.0.0/24"}]], ["a host can have", "224.0.0.1"]),
    "a group's addresses in IPv6": ([[{"subnet": "ff00::/64"}]], ["a host can have", "ff00::1"]),
    "nobody's addresses": ([[{"subnet": "0.0.0.0/24"}]], ["a host can have", "0.0.0.1"]),
    "loopback": ([[{"subnet": "::/64"}]], ["a host can have", "::1"]),
    "a gateway that is a group": ([[V4[0] | {"gateway": "224.0.0.1"}]], ["a host can have", "224.0.0.1"]),
    "a gateway that is everybody": ([[V4[0] | {"gateway": "255.255.255.255"}]], ["255.255.255.255"]),
}


def test_ranges_that_cannot_be_are_code_7_with_what_was_wanted_and_found(node: Node) -> None:
    pod = node.pod()
    with unchanged(node):
        for ranges, words in RANGES.values():
            assert_refused(node.call("ADD", network(node, *ranges, isGateway=True), pod), 7, *words)
    assert not node.data_dir.exists()


@pytest.mark.parametrize("gateway", ["0.0.0.0", "224.0.0.1", "255.255.255.255"])
def test_a_route_over_a_gateway_that_no_host_can_be_is_code_7(node: Node, gateway: str) -> None:
    config = network(node, V4)
    config["ipam"]["routes"] = [{"dst": "10.9.0.0/16", "gw": gateway}]
    answer = node.call("ADD", config, node.pod())
    assert_refused(answer, 7, f"route 10.9.0.0/16: wanted a gateway that a host can be, found {gateway}")
    assert node.held() == {}


@pytest.mark.parametrize("mode", ["bridge", "routed"])
@pytest.mark.parametrize("address", ["224.0.0.5/24", "ff02::5/64", "::1/64"])
def test_an_address_of_another_plugin_that_no_host_can_have_is_code_7(
    node: Node, mode: str, address: str
) -> None:
    plugin = foreign(node, add=says({"cniVersion": "1.1.0", "ips": [{"address": address}]}))
    answer = node.call("ADD", delegated(mode=mode), node.pod(), environ=plugin.environ)
    found = address.partition("/")[0]
    assert_refused(answer, 7, f"address {found}: wanted one that a host can have")


def test_a_prefix_length_of_more_digits_than_a_number_has_is_code_7_and_shortened(node: Node) -> None:
    cases = {
        "subnet": {"ranges": [[{"subnet": ENDLESS}]]},
        "excluded block": {"ranges": [[V4[0] | {"exclude": [ENDLESS]}]]},
        "gateway": {"ranges": [[V4[0] | {"gateway": ENDLESS}]]},
        '"ipam.routes[0].dst"': {"ranges": [V4], "routes": [{"dst": ENDLESS}]},
        '"nonMasqueradeCIDRs"': {"ranges": [V4]},
    }
    for key, ipam in cases.items():
        config = network(node, V4, ipMasq=True)
        config["ipam"] |= ipam
        config["nonMasqueradeCIDRs"] = [ENDLESS] if "CIDRs" in key else []
        answer = node.call("ADD", config, node.pod())
        assert_refused(answer, 7, key, "10.22.0.0/111")
        assert len(answer.stdout) < 400
    assert not node.data_dir.exists()


KEYS = {
    "MTU too small for IPv6": ({"mtu": 68}, ['"mtu"', "1280", "68"]),
    "MTU below any": ({"mtu": 67}, ['"mtu"', "68..65535", "67"]),
    "MTU too large": ({"mtu": 70000}, ['"mtu"', "65535", "70000"]),
    "negative MTU": ({"mtu": -1}, ['"mtu"', "-1"]),
    "MTU as text": ({"mtu": "1500"}, ['"mtu"', "an integer", '"1500"']),
    "VLAN 4095": ({"vlan": 4095}, ['"vlan"', "0..4094", "4095"]),
    "negative VLAN": ({"vlan": -1}, ['"vlan"', "-1"]),
    "hairpin with promisc": ({"hairpinMode": True, "promiscMode": True}, ["hairpinMode", "promiscMode"]),
    "no interface but addresses": (
        {"disableContainerInterface": True},
        ["disableContainerInterface", "ipam"],
    ),
    "a bridge called as the kernel calls all links": ({"bridge": "all"}, ['"bridge"', '"all"']),
    "a bridge called as the kernel calls new links": ({"bridge": "default"}, ['"bridge"', '"default"']),
    "a VLAN interface with too long a name": ({"bridge": "bridge-of-15-by", "vlan": 10}, ["15 bytes"]),
}


def test_keys_that_cannot_be_are_code_7_with_what_was_wanted_and_found(node: Node) -> None:
    pod, config = node.pod(), dual_stack(node)
    with unchanged(node):
        for keys, words in KEYS.values():
            assert_refused(node.call("ADD", config | keys, pod), 7, *words)
    assert not node.data_dir.exists()


def test_an_automatic_mtu_that_ipv6_cannot_use_is_refused_before_anything_is_made(node: Node) -> None:
    node.run("ip", "link", "add", "up0", "mtu", "1200", "type", "veth", "peer", "name", "up1")
    for words in (["link", "set", "up0", "up"], ["addr", "add", "192.0.2.2/24", "dev", "up0"]):
        node.run("ip", *words)
    node.run("ip", "route", "add", "default", "via", "192.0.2.1")
    with unchanged(node):
        assert_refused(node.call("ADD", dual_stack(node), node.pod()), 7, '"mtu"', "1280", "1200")


@pytest.mark.parametrize("keys", [{"vlan": 10}, {"vlanTrunk": [{"minID": 10, "maxID": 20}]}])
def test_a_vlan_that_this_kernel_cannot_filter_is_refused_for_a_new_and_for_an_existing_bridge(
    node: Node, keys: dict[str, Any]
) -> None:
    """See tests/known_absences.py: on a kernel that can, this test has nothing to show."""
    config, pod = dual_stack(node, **keys), node.pod()
    words = ["VLAN", "cni0", "CONFIG_BRIDGE_VLAN_FILTERING"]
    with unchanged(node):
        assert_refused(node.call("ADD", config, pod), 50, *words)
    assert list(node.links()) == ["lo"]
    node.run("ip", "link", "add", "cni0", "mtu", "1400", "type", "bridge")
    # Not even its MTU, its state or its promiscuous mode is brought in line.
    with unchanged(node):
        assert_refused(node.call("ADD", config | {"promiscMode": True}, pod), 50, *words)
    assert_refused(node.call("STATUS", config), 50, "VLAN")
    assert node.held() == {}


def test_an_interface_that_the_pod_has_already_is_left_alone(node: Node) -> None:
    config, pod = dual_stack(node), node.pod()
    pod.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "theirs")
    with unchanged(node):
        assert_refused(node.call("ADD", config, pod), 4, "CNI_IFNAME eth0", pod.path)
    assert {"eth0", "theirs"} < set(pod.links())


def test_a_second_add_without_a_del_changes_nothing(node: Node) -> None:
    config, pod = dual_stack(node), node.pod()
    node.add(config, pod)
    with unchanged(node):
        assert_refused(node.call("ADD", config, pod), 4, "eth0", pod.path)
        # The same attachment with a new namespace: the runtime forgot the DEL of the old one.
        answer = node.call("ADD", config, pod, environ={"CNI_NETNS": node.pod().path})
        assert_refused(answer, 4, pod.container_id, "DEL it first")
    assert pod.ping("10.22.0.1")


def test_a_link_of_the_bridges_name_that_is_no_bridge_is_left_alone(node: Node) -> None:
    node.run("ip", "link", "add", "cni0", "type", "veth", "peer", "name", "other")
    with unchanged(node):
        assert_refused(node.call("ADD", dual_stack(node), node.pod()), 7, '"bridge" cni0', "veth")
        assert_refused(node.call("ADD", dual_stack(node, bridge="lo"), node.pod()), 7, '"bridge" lo')


def test_a_gateway_address_that_differs_is_named_and_the_pod_rolled_back(node: Node) -> None:
    warm(node)
    config = network(node, [{"subnet": "10.99.0.0/24"}], isGateway=True)
    with unchanged(node):
        words = ["cni0", "already has an IP address different from 10.99.0.1/24", "10.22.0.1/24"]
        assert_refused(node.call("ADD", config, node.pod()), 7, *words)


@pytest.mark.parametrize("netns", ["a plain file", "a directory", "absent", "not a network's"])
def test_a_namespace_path_that_leads_to_none_is_refused(node: Node, tmp_path: Path, netns: str) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    paths = {"a plain file": plain, "a directory": tmp_path, "absent": "/run/netns/none"}
    path = str(paths.get(netns, "/proc/self/ns/mnt"))
    with unchanged(node):
        answer = node.call("ADD", dual_stack(node), node.pod(), environ={"CNI_NETNS": path})
        assert_refused(answer, 4, f"CNI_NETNS {path}")


def test_a_full_pool_is_to_be_tried_again_and_leaves_no_link(node: Node) -> None:
    warm(node)
    config = network(node, [ONLY_THE_GATEWAY | {"rangeEnd": "10.22.0.2"}], V6)
    node.add(config, node.pod())
    pod = node.pod()
    with unchanged(node):
        answer = node.call("ADD", config, pod)
        assert_refused(answer, 11, "no IP addresses available in range set: 10.22.0.1-10.22.0.2")
    # The second set's address is not held either when the order is the other one.
    config["ipam"]["ranges"].reverse()
    with unchanged(node):
        assert refusal(node.call("ADD", config, pod))[0] == 11
    assert list(pod.links()) == ["lo"]


def test_whatever_is_said_stdout_is_one_document(node: Node) -> None:
    """An error after the first link was made, and with the log switched on, is no exception."""
    config = network(node, V4, isGateway=True) | {"runtimeConfig": {"ips": ["10.99.0.5"]}}
    answer = node.call("ADD", json.dumps(config), node.pod(), environ={"PODWIRE_LOG": "debug"})
    assert_refused(answer, 7, "10.99.0.5")
    assert "ip link add cni0" in answer.stderr
    assert "ip link del veth" in answer.stderr
