"""A network configuration: MACs, names, the alias, and the routes that follow from the keys."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from netaddr import IPAddress, IPNetwork

from cni_plugin.attach.bridge_plan import plan
from cni_plugin.attach.gateway import address_on_node, complete, gateway_of
from cni_plugin.attach.interface import Outfit, plan_routes
from cni_plugin.config.network import (
    Addressing,
    Attachment,
    alias_prefix,
    parse_ifname,
    parse_mac,
    parse_network,
    render_alias,
)
from cni_plugin.contract.errors import CNIError
from cni_plugin.contract.request import parse_request
from cni_plugin.contract.result import IPConfig, Result, Route
from cni_plugin.kernel.vlan import Vlan

if TYPE_CHECKING:
    from cni_plugin.attach.bridge_plan import BridgePlan

ENVIRON = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0"}


def planned(addressing: Addressing | None = None, **keys: Any) -> BridgePlan:
    config = {"cniVersion": "1.1.0", "name": "test", "type": "podwire"} | keys
    request = parse_request(ENVIRON, json.dumps(config).encode())
    return plan(request.config, parse_network(request), addressing or Addressing())


def refused(*words: str) -> pytest.RaisesExc[CNIError]:
    return pytest.raises(CNIError, match=".*".join(words), check=lambda error: error.code == 7)


@pytest.mark.parametrize(("key", "value"), [("strictStatus", "yes"), ("stateFile", 1)])
def test_what_status_reads_is_refused_by_every_verb_when_it_is_of_another_type(key: str, value: Any) -> None:
    with refused(f'"{key}"', f"{value}"):
        planned(**{key: value})


@pytest.mark.parametrize("text", ["02:00:5e:10:00:aF", "02-00-5E-10-00-AF", "0200.5e10.00aF"])
def test_a_mac_is_read_in_every_spelling_of_go_and_written_as_the_kernel_does(text: str) -> None:
    assert parse_mac(text, "mac") == "02:00:5e:10:00:af"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "02:00:5e:10:00",
        "02:00:5e:10:00:01:02",
        "2:0:5e:10:0:1",
        "02:00:5e:10:00:0g",
        "0200.5e10.001",
        "0200.5e10.00:01",
        "0200.5e10.0001.0203",
        "0200:5e10:0001",
        "01:00:5e:10:00:01",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
        "02:00:5e:10:00:01\n",
        "02:00:5e:10:00:٣٣",
    ],
)
def test_what_is_no_mac_of_one_interface_is_refused(text: str) -> None:
    with refused("mac"):
        parse_mac(text, "mac")


def test_an_interface_name_is_up_to_15_bytes_that_the_kernel_takes() -> None:
    for name in ("a", "x" * 15, "é" * 7, "br-1.100", "a@b"):
        assert parse_ifname(name, "bridge") == name
    for name in ("", "x" * 16, "é" * 8, ".", "..", "a/b", "a:b", "a b", "a\n", "br%d", "a\x7f"):
        with refused("bridge"):
            parse_ifname(name, "bridge")


ATTACHMENT = Attachment(network="test", container_id="c" * 64, ifname="eth0", netns="/run/netns/x")


def test_an_alias_begins_with_the_identity_and_names_network_container_interface_and_pod() -> None:
    alias = render_alias(ATTACHMENT, "default/web-1")
    assert alias == f"podwire:{ATTACHMENT.identity} test {'c' * 64} eth0 default/web-1"
    assert alias.startswith(alias_prefix(ATTACHMENT.identity, "test"))
    assert ATTACHMENT.host_ifname == f"veth{ATTACHMENT.identity[:11]}"
    assert len(ATTACHMENT.host_ifname) == 15


@pytest.mark.parametrize("letter", ["x", "é", "€", "𐍈"])
def test_an_alias_is_cut_at_254_bytes_and_never_inside_a_letter(letter: str) -> None:
    for padding in range(4):
        alias = render_alias(ATTACHMENT, "p" * padding + letter * 300)
        assert 254 - len(letter.encode()) < len(alias.encode()) <= 254
        assert set(alias[-20:]) == {letter}


def test_an_alias_of_a_pod_that_is_no_text_can_still_be_set() -> None:
    assert render_alias(ATTACHMENT, "default/\udcff").endswith("default/?")


def test_identities_tell_attachments_apart() -> None:
    others = {"container_id": "c1e", "ifname": "th0"}, {"container_id": "c1", "ifname": "eth0"}
    pairs = {Attachment(network="n", netns="", **each).identity for each in others}
    assert len(pairs) == 2


def routes(*made: tuple[str, dict[str, Any]]) -> tuple[Route, ...]:
    return tuple(Route(dst=IPNetwork(dst), **keys) for dst, keys in made)


IPS = (
    IPConfig(address=IPNetwork("10.1.0.5/16"), gateway=IPAddress("10.1.0.1")),
    IPConfig(address=IPNetwork("10.2.0.5/16"), gateway=IPAddress("10.2.0.1")),
    IPConfig(address=IPNetwork("fd00::5/64"), gateway=IPAddress("fe80::1")),
    IPConfig(address=IPNetwork("fd02::5/128"), gateway=IPAddress("fd03::1")),
)


@pytest.mark.parametrize(
    ("route", "gateway", "onlink"),
    [
        (("192.0.2.0/24", {}), "10.1.0.1", False),
        (("192.0.2.0/24", {"gw": IPAddress("10.2.0.9")}), "10.2.0.9", False),
        (("192.0.2.0/24", {"gw": IPAddress("172.16.0.1")}), "172.16.0.1", True),
        (("192.0.2.0/24", {"scope": 0}), "10.1.0.1", False),
        (("192.0.2.0/24", {"scope": 253}), None, False),
        (("2001:db8::/32", {}), "fe80::1", False),
        (("2001:db8::/32", {"gw": IPAddress("fd03::1")}), "fd03::1", True),
    ],
)
def test_a_route_without_a_gateway_goes_over_the_first_of_its_family(
    route: tuple[str, dict[str, Any]], gateway: str | None, onlink: bool
) -> None:
    (spec,) = plan_routes(7, Outfit(ips=IPS, routes=routes(route)))
    assert (spec.index, spec.gw and str(spec.gw), spec.onlink) == (7, gateway, onlink)


def test_a_route_of_a_family_without_a_gateway_goes_over_the_link() -> None:
    (spec,) = plan_routes(7, Outfit(ips=IPS[:2], routes=routes(("::/0", {}))))
    assert spec.gw is None


def test_equal_routes_are_installed_once_and_metrics_are_kept() -> None:
    metrics = {"mtu": 1400, "advmss": 1360, "priority": 5, "table": 100}
    made = plan_routes(7, Outfit(ips=IPS, routes=routes(("::/0", metrics), ("::/0", metrics), ("::/0", {}))))
    assert [(spec.mtu, spec.advmss, spec.priority, spec.table) for spec in made] == [
        (1400, 1360, 5, 100),
        (None, None, None, None),
    ]


def default_routes(
    ips: tuple[IPConfig, ...] = IPS, given: tuple[Route, ...] = (), **keys: Any
) -> list[tuple[str, str | None]]:
    done = complete(planned(**({"isDefaultGateway": True} | keys)), Result(ips=ips, routes=given))
    return [(str(route.dst), route.gw and str(route.gw)) for route in done.routes]


def test_the_default_gateway_gives_one_default_route_per_family() -> None:
    assert default_routes() == [("0.0.0.0/0", "10.1.0.1"), ("::/0", "fe80::1")]
    assert default_routes(isDefaultGateway=False, isGateway=True) == []


def test_a_default_route_that_is_configured_stands_with_or_without_a_gateway() -> None:
    """In the reference one without a gateway and isDefaultGateway give two equal routes and a failure."""
    given = routes(("0.0.0.0/0", {}), ("10.0.0.0/8", {}))
    assert default_routes(given=given) == [("0.0.0.0/0", None), ("10.0.0.0/8", None), ("::/0", "fe80::1")]
    assert default_routes(given=routes(("::/0", {"gw": IPAddress("fd00::9")})))[0] == ("::/0", "fd00::9")


def test_a_default_route_of_another_table_does_not_stand_for_the_main_one() -> None:
    given = routes(("0.0.0.0/0", {"table": 100}))
    assert default_routes(given=given) == [
        ("0.0.0.0/0", None),
        ("0.0.0.0/0", "10.1.0.1"),
        ("::/0", "fe80::1"),
    ]


@pytest.mark.parametrize(
    ("address", "gateway", "on_node"),
    [
        ("10.1.2.3/16", "10.1.0.1", "10.1.0.1/16"),
        ("10.1.2.3/30", "10.1.2.1", "10.1.2.1/30"),
        ("fd00::5/64", "fd00::1", "fd00::1/64"),
        ("fd00::7/126", "fd00::5", "fd00::5/126"),
    ],
)
def test_without_a_gateway_it_is_the_networks_first_address(
    address: str, gateway: str | None, on_node: str
) -> None:
    ip = IPConfig(address=IPNetwork(address))
    assert (str(gateway_of(ip)), str(address_on_node(ip))) == (gateway, on_node)


@pytest.mark.parametrize("address", ["10.1.2.3/32", "10.1.2.3/31", "fd00::5/128", "fd00::5/127"])
def test_a_network_without_room_has_no_gateway(address: str) -> None:
    with refused("isGateway", address):
        gateway_of(IPConfig(address=IPNetwork(address)))


@pytest.mark.parametrize(
    ("keys", "vlans"),
    [
        ({}, []),
        ({"vlan": 0}, []),
        ({"vlan": 10}, ["vid 10 pvid untagged"]),
        ({"vlanTrunk": [{"id": 5}]}, ["vid 5", "vid 1 pvid untagged"]),
        ({"vlanTrunk": [{"minID": 5, "maxID": 7}, {"id": 9}]}, ["vid 5-7", "vid 9", "vid 1 pvid untagged"]),
        ({"vlan": 10, "vlanTrunk": [{"id": 10}, {"id": 9}]}, ["vid 9", "vid 10 pvid untagged"]),
        (
            {"vlan": 10, "vlanTrunk": [{"id": 3, "minID": 5, "maxID": 5}]},
            ["vid 3", "vid 5", "vid 10 pvid untagged"],
        ),
    ],
)
def test_the_vlans_of_a_port_follow_from_access_and_trunk(keys: dict[str, Any], vlans: list[str]) -> None:
    assert [str(vlan) for vlan in planned(**keys).port.vlans] == vlans


@pytest.mark.parametrize("first", [5, 10])
def test_a_trunk_that_covers_the_access_vlan_leaves_it_untagged(first: int) -> None:
    """The kernel takes the last word on a VLAN: the range must not come after and make it tagged."""
    vlans = planned(vlan=10, vlanTrunk=[{"minID": first, "maxID": 20}]).port.vlans
    last_word = [vlan for vlan in vlans if vlan.vid <= 10 <= vlan.last][-1]
    assert last_word == Vlan(vid=10, last=10, pvid=True, untagged=True)


def test_a_plan_has_the_references_defaults() -> None:
    made = planned()
    assert (made.bridge, made.pod.mtu, made.gateway.vlan, made.port.vlans) == ("cni0", 0, 0, ())
    off = [made.promisc, made.pod.dad, made.port.hairpin, made.port.isolated, made.port.preserve_default_vlan]
    off += [made.gateway.wanted, made.gateway.default, made.gateway.force_address]
    assert off == [False] * 8
    assert made.container_interface_up
    assert planned(isDefaultGateway=True).gateway.wanted
