"""The node's gateway addresses: several of one network, and link-local ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.answers import assert_ok, assert_refused
from tests.harness.clinic import examine
from tests.harness.cluster import write_conflist
from tests.harness.networks import V4, V6, network

if TYPE_CHECKING:
    from tests.harness.node import Node

TWO_SUBNETS = [
    {"subnet": "10.22.0.0/24", "rangeStart": "10.22.0.2", "rangeEnd": "10.22.0.2"},
    {"subnet": "10.23.0.0/24"},
]


@pytest.mark.parametrize("force", [False, True])
def test_gateways_of_all_subnets_of_a_range_set_stand_beside_each_other(node: Node, *, force: bool) -> None:
    config = network(node, TWO_SUBNETS, isGateway=True, forceAddress=force)
    pods = [node.pod(), node.pod()]
    results = []
    for pod in pods:
        results.append(node.add(config, pod))
        assert_ok(node.call("STATUS", config))
    assert [ip["address"] for result in results for ip in result["ips"]] == ["10.22.0.2/24", "10.23.0.2/24"]
    assert set(node.addresses("cni0")) == {"10.22.0.1/24", "10.23.0.1/24"}
    for pod, result in zip(pods, results, strict=True):
        assert_ok(node.check(config, result, pod))
        assert pod.ping(result["ips"][0]["gateway"])


def test_pod_with_addresses_of_two_subnets_of_a_family_reaches_both_gateways(node: Node) -> None:
    pod = node.pod()
    config = network(node, *([each] for each in TWO_SUBNETS), isGateway=True)
    assert_ok(node.check(config, node.add(config, pod), pod))
    assert pod.ping("10.22.0.1")
    assert pod.ping("10.23.0.1")


def test_foreign_address_beside_a_gateway_of_ours_still_keeps_the_other_away(node: Node) -> None:
    config = network(node, TWO_SUBNETS, isGateway=True)
    node.add(config, node.pod())
    node.run("ip", "addr", "add", "10.99.0.1/24", "dev", "cni0")
    assert_refused(node.call("STATUS", config), 50, "it has 10.99.0.1/24", "10.23.0.1/24 belongs")
    assert_refused(node.call("ADD", config, node.pod()), 7, "different from 10.23.0.1/24: 10.99.0.1/24")


SAME_SUBNET = {"v4": (V4, "10.22.0.99/24", "10.22.0.1"), "v6": (V6, "fd00:22::99/64", "fd00:22::1")}


@pytest.mark.parametrize(("ranges", "other", "gateway"), SAME_SUBNET.values(), ids=SAME_SUBNET)
def test_another_address_of_the_gateways_subnet_is_not_taken_for_the_gateway(
    node: Node, ranges: list[dict[str, str]], other: str, gateway: str
) -> None:
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    node.run("ip", "addr", "add", other, "dev", "cni0", "nodad")
    config = network(node, ranges, isGateway=True)
    assert_refused(node.call("STATUS", config), 50, f"it has {other}", f"gateway {gateway}/")
    assert_refused(node.call("ADD", config, node.pod()), 7, f"different from {gateway}/", other)
    pod = node.pod()
    node.add(config | {"forceAddress": True}, pod)
    assert pod.ping(gateway)


def test_doctor_takes_no_gateway_of_the_network_for_a_stale_address(plain_node: Node) -> None:
    config = network(plain_node, TWO_SUBNETS, isGateway=True)
    write_conflist(plain_node, config)
    plain_node.add(config, plain_node.pod())
    assert examine(plain_node) == []


LINK_LOCAL = [{"subnet": "fd00:22::/64", "gateway": "fe80::1"}]


@pytest.mark.parametrize("force", [False, True])
def test_link_local_gateway_stands_beside_the_links_own_address(node: Node, *, force: bool) -> None:
    config = network(node, LINK_LOCAL, isDefaultGateway=True, forceAddress=force)
    pods = [node.pod(), node.pod()]
    for pod in pods:
        result = node.add(config, pod)
        assert_ok(node.call("STATUS", config))
        assert_ok(node.check(config, result, pod))
        assert pod.ping("fe80::1%eth0")
    assert "fe80::1/64" in link_local(node)
    assert len(link_local(node)) == 2
    node.run("ip", "addr", "del", "fe80::1/64", "dev", "cni0")
    assert_refused(
        node.check(config, result, pods[1]), 100, "wanted gateway address fe80::1/64, found ['fe80:"
    )
    assert_ok(node.call("STATUS", config))
    for pod in pods:
        node.delete(config, pod)
    assert node.held() == {}


def test_link_local_gateway_leaves_other_networks_addresses(node: Node) -> None:
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    node.run("ip", "addr", "add", "fd00:22::99/56", "dev", "cni0", "nodad")
    node.add(network(node, LINK_LOCAL, isGateway=True, forceAddress=True), node.pod())
    assert node.addresses("cni0") == ["fd00:22::99/56"]


def link_local(node: Node) -> list[str]:
    """Return the link-local addresses of the bridge."""
    said = node.ip("-6", "addr", "show", "dev", "cni0", "scope", "link")
    return [f"{a['local']}/{a['prefixlen']}" for a in said[0]["addr_info"]]


OUTSIDE = {
    4: ({"subnet": "10.22.0.0/24", "gateway": "10.99.0.1"}, "10.22.0.0/24"),
    6: ({"subnet": "fd00:71:1::/64", "gateway": "fe80::1"}, "fd00:71:1::/64"),
}


@pytest.mark.parametrize("family", OUTSIDE)
def test_a_gateway_outside_of_its_subnet_has_a_way_to_the_pods(node: Node, family: int) -> None:
    known, subnet = OUTSIDE[family]
    config, pod = network(node, [known], isDefaultGateway=True), node.pod()
    result = node.add(config, pod)
    address = result["ips"][0]["address"].split("/")[0]
    assert node.ping(address, within=3)
    assert_ok(node.check(config, result, pod))
    node.run("ip", f"-{family}", "route", "del", subnet, "dev", "cni0")
    assert_refused(node.check(config, result, pod), 100, f"route to {address}", "cni0")
    node.add(config, node.pod())
    assert_ok(node.check(config, result, pod))
