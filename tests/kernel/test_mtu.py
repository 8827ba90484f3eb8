"""The MTU of a pod: explicit, or what the interface that carries the traffic can carry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.cluster import sync
from tests.harness.networks import (
    V4,
    V6,
    add_foreign_port,
    add_uplink,
    dual_stack,
    host_end,
    network,
    print_result,
    scripted,
    write_delegate,
)

if TYPE_CHECKING:
    from tests.harness.node import Node, Pod


def mtus(node: Node, pod: Pod, name: str) -> set[int]:
    """Return the MTUs of bridge, host end and pod end."""
    return {node.links()["cni0"]["mtu"], node.links()[name]["mtu"], pod.links()["eth0"]["mtu"]}


@pytest.mark.parametrize("mtu", [1280, 1400, 9000, 65535])
def test_explicit_mtu_is_on_bridge_and_both_ends_and_in_the_result(node: Node, mtu: int) -> None:
    pod = node.pod()
    result = node.add(dual_stack(node, mtu=mtu), pod)
    assert mtus(node, pod, host_end(result)) == {mtu}
    assert {interface["mtu"] for interface in result["interfaces"]} == {mtu}


def test_explicit_mtu_may_be_above_the_uplinks(node: Node) -> None:
    pod = node.pod()
    add_uplink(node, 1400)
    assert mtus(node, pod, host_end(node.add(dual_stack(node, mtu=1500), pod))) == {1500}


@pytest.mark.parametrize("keys", [{}, {"mtu": 0}], ids=["absent", "zero"])
def test_automatic_mtu_is_the_default_routes_interface(node: Node, keys: dict[str, int]) -> None:
    pod = node.pod()
    add_uplink(node, 1400)
    assert mtus(node, pod, host_end(node.add(dual_stack(node, **keys), pod))) == {1400}


def test_automatic_mtu_is_1500_without_a_default_route(node: Node) -> None:
    pod = node.pod()
    assert mtus(node, pod, host_end(node.add(dual_stack(node), pod))) == {1500}


def test_automatic_mtu_is_the_smallest_of_the_families_in_use(node: Node) -> None:
    add_uplink(node, 1400, name="up4", families=(4,))
    add_uplink(node, 1300, name="up6", families=(6,))
    for ranges, expected in (((V4,), 1400), ((V6,), 1300), ((V4, V6), 1300)):
        pod = node.pod()
        node.add(network(node, *ranges), pod)
        assert pod.links()["eth0"]["mtu"] == expected


def test_automatic_mtu_is_that_of_the_best_of_several_default_routes(node: Node) -> None:
    pod = node.pod()
    add_uplink(node, 1400, families=(4,))
    node.run("ip", "link", "add", "wifi0", "mtu", "1300", "type", "veth", "peer", "name", "wifi0-far")
    node.run("ip", "link", "set", "wifi0", "up")
    node.run("ip", "route", "add", "default", "dev", "wifi0", "metric", "600")
    node.add(network(node, V4), pod)
    assert pod.links()["eth0"]["mtu"] == 1400


DETOURS = {
    "a route to what nobody has": [["route", "add", "240.0.0.0/4", "dev", "other0"]],
    "a refused one": [["route", "add", "unreachable", "240.0.0.0/4"]],
    "another table first": [
        ["route", "add", "default", "dev", "other0", "table", "100"],
        ["rule", "add", "priority", "100", "lookup", "100"],
    ],
}


@pytest.mark.parametrize("detour", DETOURS.values(), ids=DETOURS)
def test_automatic_mtu_is_the_main_tables_default_route_in_spite_of(
    node: Node, detour: list[list[str]]
) -> None:
    pod = node.pod()
    add_uplink(node, 1400, families=(4,))
    add_uplink(node, 1300, name="other0", families=())
    for words in detour:
        node.run("ip", *words)
    node.add(network(node, V4), pod)
    assert pod.links()["eth0"]["mtu"] == 1400


def test_automatic_mtu_of_pods_on_the_uplinks_own_bridge_is_that_bridges(node: Node) -> None:
    pod = node.pod()
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    node.run("ip", "link", "set", "cni0", "up")
    add_foreign_port(node, "cni0", mtu=1400)
    node.run("ip", "route", "add", "default", "dev", "cni0")
    node.add(network(node, V4), pod)
    assert pod.links()["eth0"]["mtu"] == 1400


UPLINKS = {
    "below the default route's": (9000, 1500, (V4,)),
    "below 1500": (1500, 1450, (V4, V6)),
    "below 1500, no addresses": (1450, 1450, ()),
}


def add_bridge_with_uplink(node: Node, *, default: int, port: int) -> None:
    """Give the node default routes over one interface, and a bridge with another one in it."""
    add_uplink(node, default)
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    node.run("ip", "link", "set", "cni0", "up")
    add_foreign_port(node, "cni0", mtu=port)


@pytest.mark.parametrize(("default", "port", "ranges"), UPLINKS.values(), ids=UPLINKS)
def test_automatic_mtu_is_at_most_that_of_a_bridge_that_is_not_ours_to_change(
    node: Node, default: int, port: int, ranges: tuple[list[dict[str, str]], ...]
) -> None:
    pod, config = node.pod(), network(node, *ranges)
    add_bridge_with_uplink(node, default=default, port=port)
    result = node.add(config, pod)
    assert mtus(node, pod, host_end(result)) == {port}
    assert node.check(config, result, pod).status == 0
    node.delete(config, pod)
    assert node.links()["cni0"]["mtu"] == port


def test_podwire_mtu_and_sync_know_of_a_bridge_that_is_not_ours_to_change(plain_node: Node) -> None:
    add_bridge_with_uplink(plain_node, default=9000, port=1500)
    config = network(plain_node, V4)
    assert sync(plain_node, config).returncode == 0
    assert sync(plain_node, config, "mtu").stdout.splitlines() == [
        "network test:",
        "  IPv4: the default route's interface carries 9000",
        "  mtuOverhead takes 0",
        "  bridge cni0 carries 1500, and a port of somebody else makes it not ours to change",
        "  pods get 1500",
    ]
    explicit = sync(plain_node, config | {"mtu": 9000})
    assert explicit.returncode == 1
    assert "bridge cni0: wanted mtu 9000, found 1500" in explicit.stderr


def test_ipv6_over_an_uplink_below_1280_is_refused_before_anything_is_made(node: Node) -> None:
    add_uplink(node, 1200, families=(4,))
    before = node.transcript()
    answer = node.call("ADD", dual_stack(node), node.pod())
    assert (answer.status, answer.json["code"]) == (1, 7)
    assert "1280" in answer.json["msg"]
    assert "1200" in answer.json["msg"]
    assert node.transcript() == before


def test_ipv4_alone_over_an_uplink_below_1280_is_fine(node: Node) -> None:
    pod = node.pod()
    add_uplink(node, 1200, families=(4,))
    node.add(network(node, V4), pod)
    assert pod.links()["eth0"]["mtu"] == 1200


def test_ipv6_from_a_foreign_delegate_below_1280_is_refused_and_undone(node: Node) -> None:
    environ = write_delegate(node, add=print_result("fd00:22::5/64"))
    answer = node.call("ADD", scripted(node, mtu=1200), node.pod(), environ=environ)
    assert (answer.status, answer.json["code"]) == (1, 7)
    assert not [name for name in node.links() if name.startswith("veth")]


def test_bridge_ignores_router_advertisements_also_after_it_grew_past_1280(node: Node) -> None:
    for mtu in (1200, 1500):
        node.add(network(node, V4, mtu=mtu), node.pod())
    assert node.run("sysctl", "-n", "net.ipv6.conf.cni0.accept_ra").stdout.strip() == "0"
