"""A pod joins the network: addresses, routes and reachability, as the kernel shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import both_filterings
from tests.harness.networks import (
    FAMILIES,
    V4,
    address_of,
    dual_stack,
    network,
    print_result,
    routed,
    scripted,
    write_delegate,
)

if TYPE_CHECKING:
    from tests.harness.node import Node, Pod


@pytest.mark.parametrize("families", FAMILIES)
def test_pod_gets_address_and_default_route_of_each_family(node: Node, families: str) -> None:
    pod = node.pod()
    node.add(network(node, *FAMILIES[families], isDefaultGateway=True), pod)
    expected = (
        {"10.22.0.2/24", "fd00:22::2/64"}
        if families == "dual-stack"
        else {
            "v4": {"10.22.0.2/24"},
            "v6": {"fd00:22::2/64"},
        }[families]
    )
    assert set(pod.addresses("eth0")) == expected
    gateways = {r["gateway"] for f in ("-4", "-6") for r in pod.ip(f, "route", "show", "default")}
    assert gateways == {address.split("/")[0][:-1] + "1" for address in expected}


@both_filterings
@pytest.mark.parametrize("families", FAMILIES)
def test_pods_reach_their_gateway_and_each_other(node: Node, families: str) -> None:
    config = network(node, *FAMILIES[families], isDefaultGateway=True)
    first, second = node.pod(), node.pod()
    results = [node.add(config, pod) for pod in (first, second)]
    for ip in results[1]["ips"]:
        family = 6 if ":" in ip["address"] else 4
        assert second.ping(ip["gateway"])
        assert second.ping(address_of(results[0], family))
        assert first.ping(address_of(results[1], family))
        assert node.ping(address_of(results[1], family))


def test_layer_2_pod_has_an_interface_that_is_up_and_no_address(node: Node) -> None:
    pod = node.pod()
    result = node.add(network(node), pod)
    assert pod.addresses("eth0") == []
    assert pod.links()["eth0"]["operstate"] == "UP"
    assert "ips" not in result
    assert node.held() == {}


@both_filterings
def test_layer_2_pods_reach_each_other_with_addresses_of_their_own(node: Node) -> None:
    pods = [node.pod(), node.pod()]
    for number, pod in enumerate(pods, 1):
        node.add(network(node), pod)
        pod.run("ip", "addr", "add", f"192.0.2.{number}/24", "dev", "eth0")
    assert pods[0].ping("192.0.2.2")


def routes_to(pod: Pod, dst: str, *, family: int = 4) -> Any:
    return pod.ip(f"-{family}", "route", "show", "table", "all", "to", "exact", dst)


def test_route_mtu_and_advmss_are_installed(node: Node) -> None:
    pod = node.pod()
    node.add(
        routed(
            node,
            {"dst": "192.0.2.0/24", "mtu": 1400, "advmss": 1300},
            {"dst": "2001:db8::/32", "mtu": 1399, "advmss": 1299},
        ),
        pod,
    )
    for dst, family, metrics in (
        ("192.0.2.0/24", 4, {"mtu": 1400, "advmss": 1300}),
        ("2001:db8::/32", 6, {"mtu": 1399, "advmss": 1299}),
    ):
        (route,) = routes_to(pod, dst, family=family)
        assert {key: value for part in route["metrics"] for key, value in part.items()} == metrics


def test_route_priority_table_and_scope_are_installed(node: Node) -> None:
    pod = node.pod()
    node.add(
        routed(
            node,
            {"dst": "192.0.2.0/24", "priority": 50, "table": 100},
            {"dst": "2001:db8::/32", "priority": 51, "table": 70000},
            {"dst": "198.51.100.0/24", "scope": 253},
        ),
        pod,
    )
    (v4,) = routes_to(pod, "192.0.2.0/24")
    assert (v4["metric"], v4["table"], v4["gateway"]) == (50, "100", "10.22.0.1")
    (v6,) = routes_to(pod, "2001:db8::/32", family=6)
    assert (v6["metric"], v6["table"], v6["gateway"]) == (51, "70000", "fd00:22::1")
    (link,) = routes_to(pod, "198.51.100.0/24")
    assert (link["scope"], link.get("gateway")) == ("link", None)


@pytest.mark.parametrize("scope", [253, 254])
def test_what_is_on_the_link_of_a_routed_pod_is_behind_the_node(node: Node, scope: int) -> None:
    pod, own = node.pod(), {4: "192.0.2.9", 6: "2001:db8::9"}
    for address in own.values():  # before the ADD: the kernel takes packets for them from a work queue
        node.run("ip", "addr", "add", address, "dev", "lo")
    routes = [{"dst": "192.0.2.0/24", "scope": scope}, {"dst": "2001:db8::/32", "scope": scope}]
    config = routed(node, *routes, mode="routed")
    result = node.add(config, pod)
    assert result["routes"][:2] == routes
    answer = node.check(config, result, pod)
    assert (answer.status, answer.stdout) == (0, "")
    for family, address in own.items():
        pod.run("ip", f"-{family}", "route", "del", "default")
        assert pod.ping(address)


def test_several_next_hops_of_one_prefix_stand_side_by_side(node: Node) -> None:
    pod = node.pod()
    hops = {
        4: ("192.0.2.0/24", ["10.22.0.8", "10.22.0.9"]),
        6: ("2001:db8::/32", ["fd00:22::8", "fd00:22::9"]),
    }
    routes = [{"dst": dst, "gw": gw} for dst, gateways in hops.values() for gw in gateways]
    config = routed(node, *routes)
    result = node.add(config, pod)
    for family, (dst, gateways) in hops.items():
        found = routes_to(pod, dst, family=family)
        assert sorted(h["gateway"] for r in found for h in r.get("nexthops", [r])) == gateways
    assert node.check(config, result, pod).status == 0


def test_route_given_twice_is_installed_once(node: Node) -> None:
    pod = node.pod()
    twice = [{"dst": "192.0.2.0/24"}, {"dst": "192.0.2.0/24", "gw": "10.22.0.1"}, {"dst": "2001:db8::/32"}]
    node.add(routed(node, *twice, *twice), pod)
    assert len(routes_to(pod, "192.0.2.0/24")) == 1
    assert len(routes_to(pod, "2001:db8::/32", family=6)) == 1


def test_gateway_outside_the_subnet_is_reached_over_the_interface(node: Node) -> None:
    pod = node.pod()
    ips = {
        "ips": [
            {"address": "10.9.0.2/32", "gateway": "10.22.0.1"},
            {"address": "fd00:9::2/128", "gateway": "fd00:22::1"},
        ]
    }
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    environ = write_delegate(node, add=print_result(**ips, routes=routes))
    config = scripted(node)
    result = node.add(config, pod, environ=environ)
    for family, gateway in ((4, "10.22.0.1"), (6, "fd00:22::1")):
        (route,) = pod.ip(f"-{family}", "route", "show", "default")
        assert (route["gateway"], route["flags"]) == (gateway, ["onlink"])
    assert node.check(config, result, pod, environ=environ).status == 0


@pytest.mark.parametrize("gw", [{}, {"gw": "10.22.0.9"}], ids=["without-gw", "with-gw"])
def test_configured_default_route_takes_the_place_of_is_default_gateway(
    node: Node, gw: dict[str, str]
) -> None:
    pod = node.pod()
    config = routed(node, {"dst": "0.0.0.0/0"} | gw, isDefaultGateway=True)
    result = node.add(config, pod)
    (v4,) = pod.ip("-4", "route", "show", "default")
    (v6,) = pod.ip("-6", "route", "show", "default")
    assert v4["gateway"] == gw.get("gw", "10.22.0.1")
    assert v6["gateway"] == "fd00:22::1"
    assert [r["dst"] for r in result["routes"]] == ["0.0.0.0/0", "::/0"]
    assert node.check(config, result, pod).status == 0


def test_gateway_without_default_gateway_leaves_the_pod_without_default_route(node: Node) -> None:
    pod = node.pod()
    node.add(network(node, V4, isGateway=True), pod)
    assert pod.ip("-4", "route", "show", "default") == []
    assert node.addresses("cni0") == ["10.22.0.1/24"]


def test_without_gateway_the_node_has_no_address_on_the_bridge(node: Node) -> None:
    pod = node.pod()
    node.add(dual_stack(node, isDefaultGateway=False), pod)
    assert node.addresses("cni0") == []
    assert node.run("sysctl", "-n", "net.ipv4.ip_forward").stdout.strip() == "0"


def test_result_names_bridge_host_end_and_pod_end_with_their_mac_and_mtu(node: Node) -> None:
    pod = node.pod()
    result = node.add(dual_stack(node, mtu=1400), pod)
    here, there = node.links(), pod.links()
    bridge, outer, inner = result["interfaces"]
    assert bridge == {"name": "cni0", "mac": here["cni0"]["address"], "mtu": 1400}
    assert outer == {"name": outer["name"], "mac": here[outer["name"]]["address"], "mtu": 1400}
    assert inner == {"name": "eth0", "mac": there["eth0"]["address"], "mtu": 1400, "sandbox": pod.path}
    assert [ip["interface"] for ip in result["ips"]] == [2, 2]
