"""From Node objects and settings to a conflist and peers: tables, without kernel or API."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from netaddr import IPAddress, IPNetwork

from cni_plugin.cluster.objects import parse_node
from cni_plugin.cluster.settings import ClusterSettings, ServiceSettings, parse_settings, read_settings
from cni_plugin.config.state_file import ClusterState, read_state, require_ready
from cni_plugin.contract.errors import CNIError
from cni_plugin.contract.fields import Fields
from cni_plugin.dataplane.nodes.desired import (
    Places,
    plan_peers,
    render_network,
    require_address,
    require_pod_cidrs,
)
from cni_plugin.dataplane.nodes.published_files import replace_file
from tests.harness.api_server import render_node

if TYPE_CHECKING:
    from pathlib import Path

    from cni_plugin.cluster.objects import Node

PLACES = Places(peers_file="/p", state_file="/s")


def node(i: int, addresses: str = "", cidrs: str = "", created: int = 0) -> Node:
    """Return node i; `-` for none of what it would have otherwise."""
    words = (addresses or f"192.0.2.{i} 2001:db8::{i}").replace("-", "").split()
    subnets = (cidrs or f"10.244.{i}.0/24 fd00:10:244:{i}::/64").replace("-", "").split()
    return parse_node(render_node(f"node{i}", words, subnets, created=created))


ME = node(1)


def settings(**keys: Any) -> ClusterSettings:
    return parse_settings(Fields(keys))


def peers(*others: Node, me: Node = ME, **keys: Any) -> tuple[list[Any], list[str]]:
    plan = plan_peers(settings(**keys), me, [me, *others])
    written = json.loads(plan.text)
    assert plan.named == len(written)
    return [(" ".join(p["addresses"]), " ".join(p["subnets"])) for p in written], list(plan.problems)


def test_a_node_is_reduced_to_what_a_network_needs() -> None:
    assert str(ME.addresses[0]) == "192.0.2.1"
    assert ME.address(6) == IPAddress("2001:db8::1")
    assert [str(cidr) for cidr in ME.pod_cidrs] == ["10.244.1.0/24", "fd00:10:244:1::/64"]
    assert not ME.network_unavailable
    assert parse_node(render_node("n", [], [], unavailable=True)).network_unavailable
    assert not parse_node(render_node("n", [], [], unavailable=False)).network_unavailable


def test_a_node_of_which_little_is_known_is_a_node() -> None:
    assert parse_node({"metadata": {"name": "n"}}) == replace(parse_node({}), name="n")
    odd = {
        "spec": {"podCIDR": "10.0.0.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": "?"}]},
    }
    assert [str(cidr) for cidr in parse_node(odd).pod_cidrs] == ["10.0.0.0/24"]
    assert parse_node(odd).addresses == ()


def test_vxlan_peers_have_the_address_of_the_tunnel_first() -> None:
    both = [("192.0.2.2 2001:db8::2", "10.244.2.0/24 fd00:10:244:2::/64")]
    assert peers(node(2)) == (both, [])
    assert peers(node(2, "2001:db8::2 192.0.2.2")) == (both, [])
    flipped = [("2001:db8::2 192.0.2.2", "10.244.2.0/24 fd00:10:244:2::/64")]
    assert peers(node(2), underlay="ipv6") == (flipped, [])
    assert peers(node(2), me=node(1, "2001:db8::1")) == (flipped, [])


def test_who_has_no_subnet_is_no_peer_yet() -> None:
    assert peers(node(2, cidrs="-")) == ([], [])
    assert plan_peers(settings(), ME, [node(2, cidrs="-")]).wanted == 0


LEFT_OUT: dict[str, tuple[str, Node, str]] = {
    "no address": ("vxlan", node(3, "-"), "node node3: wanted an InternalIP of IPv4 like ours, found none"),
    "another family": (
        "vxlan",
        node(3, "2001:db8::3"),
        "node node3: wanted an InternalIP of IPv4 like ours, found none",
    ),
    "our subnet": (
        "vxlan",
        node(3, cidrs="10.244.1.128/25"),
        "node node3: wanted 10.244.1.128/25 for it alone, found it is node node1's",
    ),
    "our address": (
        "vxlan",
        node(3, "192.0.2.1"),
        "node node3: wanted 192.0.2.1/32 for it alone, found it is node node1's",
    ),
    "a subnet around a node": (
        "vxlan",
        node(3, cidrs="192.0.0.0/16"),
        "node node3: wanted 192.0.0.0/16 for it alone, found it is node node1's",
    ),
    "nothing but its own link": (
        "vxlan",
        node(3, "127.0.0.1 0.0.0.0 224.0.0.1 169.254.0.3"),
        "node node3: wanted an InternalIP of IPv4 like ours, found none",
    ),
    "no address of its subnets' families": (
        "hostGateway",
        node(3, "192.0.2.3", "fd00:10:244:3::/64"),
        "node node3: wanted an InternalIP of the family of ['fd00:10:244:3::/64'], found none",
    ),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_one_that_cannot_be_is_named_and_costs_the_others_nothing(name: str) -> None:
    mode, wrong, problem = LEFT_OUT[name]
    found, problems = peers(wrong, node(2), mode=mode)
    assert found == [("192.0.2.2 2001:db8::2", "10.244.2.0/24 fd00:10:244:2::/64")]
    assert problems == [problem]


def test_behind_a_host_gateway_a_family_may_be_missing() -> None:
    found, problems = peers(node(3, "192.0.2.3"), mode="hostGateway")
    assert found == [("192.0.2.3", "10.244.3.0/24")]
    assert problems == [
        "node node3: wanted an InternalIP of the family of ['fd00:10:244:3::/64'], found none"
    ]


def test_of_two_that_contradict_each_other_the_newer_is_right() -> None:
    old, new = node(2, created=1), node(3, "192.0.2.2 2001:db8::2", created=2)
    for order in ((old, new), (new, old)):
        found, problems = peers(*order)
        assert found == [("192.0.2.2 2001:db8::2", "10.244.3.0/24 fd00:10:244:3::/64")]
        assert problems == ["node node2: wanted 192.0.2.2/32 for it alone, found it is node node3's"]


def test_a_further_address_of_two_nodes_is_left_out_alone() -> None:
    """A virtual address floats from node to node, and an old Node may still list it."""
    vip = "192.0.2.100"
    two, three = node(2, f"192.0.2.2 {vip} 2001:db8::2"), node(3, f"192.0.2.3 2001:db8::3 {vip}")
    found, problems = peers(two, three)
    assert sorted(each for each, _ in found) == ["192.0.2.2 2001:db8::2", "192.0.2.3 2001:db8::3"]
    left = "its further address 192.0.2.100 is left out: 192.0.2.100 is another node's, too"
    assert problems == [f"node node2: {left}", f"node node3: {left}"]
    found, problems = peers(node(2, vip), me=replace(ME, addresses=(*ME.addresses, two.addresses[1])))
    assert ([each for each, _ in found], problems) == ([vip], [])
    floats = plan_peers(settings(), ME, [two], lambda asked: "ours" if vip in map(str, asked) else "")
    assert (floats.named, vip in floats.text) == (1, False)


def test_the_file_is_the_same_in_whatever_order_the_nodes_come() -> None:
    others = [node(i) for i in range(2, 30)]
    texts = {plan_peers(settings(), ME, order).text for order in (others, others[::-1])}
    assert len(texts) == 1


def test_what_the_kernel_says_of_a_peer_counts() -> None:
    plan = plan_peers(settings(), ME, [node(2)], lambda addresses: f"{addresses[0]} is far")
    assert (plan.named, plan.wanted, plan.problems) == (0, 1, ("node node2: 192.0.2.2 is far",))


def test_the_conflist_of_a_vxlan_node() -> None:
    conflist = render_network(
        settings(clusterCIDRs=["10.244.0.0/16"], nonMasqueradeCIDRs=["10.0.0.0/8"], mtu=1400, vni=7),
        ME,
        "eth0",
        PLACES,
    )
    (plugin,) = conflist["plugins"]
    assert (conflist["name"], conflist["cniVersion"], conflist["cniVersions"][-1]) == (
        "podwire",
        "0.4.0",
        "1.1.0",
    )
    assert plugin["vxlan"] == {
        "vni": 7,
        "port": 4789,
        "local": "192.0.2.1",
        "addresses": ["192.0.2.1", "2001:db8::1"],
        "device": "eth0",
        "peersFile": "/p",
    }
    assert plugin["ipam"]["ranges"] == [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]]
    assert (plugin["mtu"], plugin["ipMasq"], plugin["stateFile"]) == (1400, True, "/s")
    assert plugin["nonMasqueradeCIDRs"] == ["10.244.0.0/16", "10.0.0.0/8"]


def test_the_conflist_of_a_host_gateway_node() -> None:
    conflist = render_network(
        settings(mode="hostGateway", ipMasq=False), node(1, "192.0.2.1"), "eth0", PLACES
    )
    (plugin,) = conflist["plugins"]
    assert (plugin["mode"], plugin["hostGateway"]) == ("routed", {"device": "eth0", "peersFile": "/p"})
    assert not {"mtu", "mtuOverhead", "vxlan", "bridge"} & plugin.keys()


@pytest.mark.parametrize(
    ("keys", "attach", "backend"),
    [
        ({}, "routed", "vxlan"),
        ({"mode": "vxlan"}, "bridge", "vxlan"),
        ({"mode": "hostGateway"}, "routed", "hostGateway"),
        ({"attach": "bridge"}, "bridge", "vxlan"),
        ({"backend": "vxlan"}, "routed", "vxlan"),
        ({"backend": "hostGateway"}, "routed", "hostGateway"),
        ({"attach": "bridge", "backend": "hostGateway"}, "bridge", "hostGateway"),
        ({"mode": "vxlan", "attach": "bridge", "backend": "vxlan"}, "bridge", "vxlan"),
    ],
)
def test_attach_and_backend_are_two_settings_and_mode_a_word_for_both(
    keys: dict[str, str], attach: str, backend: str
) -> None:
    (plugin,) = render_network(settings(**keys), ME, "eth0", PLACES)["plugins"]
    assert (plugin["mode"], {"vxlan", "hostGateway"} & plugin.keys()) == (attach, {backend})
    assert ("bridge" in plugin) == (attach == "bridge")


@pytest.mark.parametrize(("keys", "wanted"), [({}, True), ({"sourceValidation": False}, False)])
def test_sources_are_validated_unless_the_settings_say_otherwise(
    keys: dict[str, bool], *, wanted: bool
) -> None:
    (plugin,) = render_network(settings(**keys), ME, "eth0", PLACES)["plugins"]
    # Said also when it is off, so that a node that has the rules gives them up.
    assert plugin["sourceValidation"] is wanted


def test_routed_pods_are_told_of_a_bridge_that_pods_of_before_may_be_on() -> None:
    (plugin,) = render_network(
        settings(attach="routed", bridge="br7"), ME, "eth0", PLACES, former_bridge=True
    )["plugins"]
    assert (plugin["mode"], plugin["bridge"], plugin["forceAddress"]) == ("routed", "br7", True)


def test_an_address_on_the_loopback_names_no_device() -> None:
    (plugin,) = render_network(settings(), ME, "lo", PLACES)["plugins"]
    assert "device" not in plugin["vxlan"]


def test_what_this_node_lacks_is_said() -> None:
    with pytest.raises(
        CNIError, match=r"node node1: wanted spec.podCIDRs, found none; does the controller manager"
    ):
        require_pod_cidrs(node(1, cidrs="-"))
    with pytest.raises(CNIError, match=r"wanted an InternalIP of IPv6, found \['192.0.2.1'\]"):
        require_address(settings(underlay="ipv6"), node(1, "192.0.2.1"))


WRONG_SETTINGS = (
    ({"mode": "flat"}, '"mode" must be one of'),
    ({"mode": "bridge"}, '"mode" must be one of'),
    ({"attach": "flat"}, '"attach" must be one of'),
    ({"backend": "geneve"}, '"backend" must be one of'),
    (
        {"mode": "vxlan", "attach": "routed"},
        '"mode" "vxlan" means "attach" "bridge", found "attach" "routed"',
    ),
    (
        {"mode": "hostGateway", "backend": "vxlan"},
        '"mode" "hostGateway" means "backend" "hostGateway", found',
    ),
    ({"underlay": "both"}, '"underlay" must be "ipv4" or "ipv6", found "both"'),
    ({"clusterCIDRs": ["10.0.0.1/8"]}, '"clusterCIDRs" must have no host bits set'),
    ({"clusterCIDRs": "10.0.0.0/8"}, '"clusterCIDRs" must be a list'),
    ({"vni": 0}, '"vni" must be in'),
    (
        {"services": True, "attach": "bridge"},
        '"services": wanted "attach" "routed" beside it, found "bridge"',
    ),
    ({"services": "yes"}, '"services" must be true or false, found "yes"'),
    ({"services": {"healthport": 1, "port": 2}}, "found ['healthport', 'port']"),
    ({"services": {"healthPort": 70000}}, '"services.healthPort" must be in'),
    ({"services": {"serviceCIDRs": ["10.96.0.1/12"]}}, '"serviceCIDRs" must have no host bits set'),
    ({"clusterCIDR": []}, "found ['clusterCIDR']"),
)


@pytest.mark.parametrize(("keys", "said"), WRONG_SETTINGS)
def test_settings_that_cannot_be_name_the_key(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(CNIError) as raised:
        settings(**keys)
    assert said in raised.value.msg


def test_services_are_off_unless_they_are_asked_for() -> None:
    assert settings().services == settings(services=False).services == ServiceSettings()
    assert settings(services=True).services == settings(services={}).services == ServiceSettings(on=True)
    keys = {"nodePortAddresses": ["192.0.2.0/24"], "masqueradeAll": True, "healthPort": 0}
    assert settings(services={**keys, "serviceCIDRs": ["fd00::/108"]}).services == ServiceSettings(
        on=True,
        node_port_cidrs=(IPNetwork("192.0.2.0/24"),),
        masquerade_all=True,
        health_port=0,
        cidrs=(IPNetwork("fd00::/108"),),
    )
    assert settings(services={"nodePortAddresses": ["primary"]}).services.node_port_cidrs == ()


def test_settings_may_be_missing_and_a_wrong_file_is_named(tmp_path: Path) -> None:
    assert read_settings(str(tmp_path / "none")) == ClusterSettings()
    (tmp_path / "wrong").write_text('{"mode": "flat"}')
    with pytest.raises(CNIError, match=f'{tmp_path}/wrong: "mode" must be'):
        read_settings(str(tmp_path / "wrong"))


def test_a_file_is_replaced_whole_and_only_when_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "net.d" / "10-podwire.conflist"
    assert replace_file(str(path), "one")
    before = path.stat()
    assert not replace_file(str(path), "one")
    assert path.stat().st_ino == before.st_ino
    assert replace_file(str(path), "two")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("two", 0o644)
    assert path.stat().st_ino != before.st_ino
    assert list(path.parent.iterdir()) == [path]


def test_the_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    state = ClusterState(node="n", reasons=("why",), pod_cidrs=("10.0.0.0/24",), last_sync_seconds=0.5)
    (tmp_path / "state").write_text(state.render())
    assert set(json.loads(state.render())) == {
        *("node", "ready", "reasons", "mode", "network", "podCIDRs", "peersWanted", "peersProgrammed"),
        *("syncs", "repairs", "repairsByKind", "errors", "lastSyncSeconds", "lastSync", "updated"),
    }
    assert read_state(str(tmp_path / "state")) == state
    with pytest.raises(CNIError, match=r"^why$"):
        require_ready(str(tmp_path / "state"))


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '"ready"', '{"node": "n", "reasons": [1]}', '{"node": 5}', "[" * 100_000]
)
def test_a_state_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "state").write_text(text)
    assert read_state(str(tmp_path / "state")) is None
    with pytest.raises(
        CNIError, match=r'"stateFile" .*: wanted the word of podwire agent --kubernetes, found none'
    ):
        require_ready(str(tmp_path / "state"))
