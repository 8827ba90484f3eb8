"""Sets, chains and rules of nftables that are packed by hand: the kernel takes them, and `nft` lists them."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest

from cni_plugin.kernel.nft_message import Element, pack_pairs
from cni_plugin.kernel.nft_rules import PackedRule, pack_chain
from cni_plugin.kernel.nft_sets import TypedSet, declare_table
from tests.conftest import in_process
from tests.harness.networks import open_pod

if TYPE_CHECKING:
    from tests.harness.node import Node

TABLE = "podwire_test"
ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}
TEXT = {4: "192.0.2.1", 6: "2001:db8::1"}
FAMILY = {4: "ip", 6: "ip6"}

pytestmark = in_process


def frontend(version: int) -> tuple[str, ...]:
    return (ADDRESS[version], "inet_proto", "inet_service")


def sets(version: int) -> list[TypedSet]:
    where = {"family": "inet", "table": TABLE}
    address = ADDRESS[version]
    kept = (address, *frontend(version))
    target = (address, "inet_service")
    return [
        TypedSet(**where, name="plain", key=(address,)),
        TypedSet(**where, name="ranges", key=(address,), interval=True),
        TypedSet(**where, name="verdicts", key=frontend(version), data=("verdict",)),
        TypedSet(**where, name="targets", key=(*frontend(version), "mark"), data=target),
        TypedSet(**where, name="kept", key=kept, data=target, dynamic=True, size=1024),
    ]


def packed_address(version: int) -> bytes:
    return socket.inet_pton(socket.AF_INET if version == 4 else socket.AF_INET6, TEXT[version])


def make_rules(version: int) -> list[PackedRule]:
    pick = PackedRule.of(version)
    pick.load_destination()
    pick.load_protocol()
    pick.load_port()
    pick.load_random(3)
    pick.look_up("targets")
    pick.translate()
    sticky = PackedRule.of(version)
    sticky.load_source()
    sticky.load_destination()
    sticky.load_protocol()
    sticky.load_port()
    sticky.look_up("kept")
    sticky.translate()
    onward = PackedRule.of(version)
    onward.go_to("other")
    return [sticky, pick, *make_original_rules(version), onward]


def make_original_rules(version: int) -> list[PackedRule]:
    """Return rules about where a connection was sent to before it was translated."""
    verdict, keep = PackedRule.of(version), PackedRule.of(version)
    for rule in (verdict, keep):
        if rule is keep:
            rule.load_source()
        rule.load_original_destination()
        rule.load_protocol()
        rule.load_original_port()
    verdict.look_up_verdict("verdicts")
    value = keep.register
    keep.load_destination()
    keep.load_port()
    keep.update("kept", value, 10800)
    return [verdict, keep]


@pytest.mark.parametrize("version", [4, 6])
def test_every_nft_lists_what_is_packed_by_hand(node: Node, version: int) -> None:
    address, family = packed_address(version), FAMILY[version]
    key = address + bytes([17, 0, 0, 0]) + struct.pack("!Hxx", 53)
    with open_pod(node.path) as host:
        other = pack_chain("inet", TABLE, "other", [], "")
        picking = pack_chain("inet", TABLE, "pick", make_rules(version), "how it is picked")
        place = Element(family="inet", table=TABLE, set_name="targets", key=b"")
        targets = [(key + struct.pack("=I", i), address + struct.pack("!Hxx", 8053)) for i in range(1000)]
        host.nftables.apply([declare_table("inet", TABLE), *(each.declare() for each in sets(version))])
        host.nftables.apply([*other, *picking, *pack_pairs(place, targets, present=True)])
        verdicts = Element(family="inet", table=TABLE, set_name="verdicts", key=b"")
        goto = [(key, ("goto pick", "shop/web:dns"))]
        host.nftables.apply(list(pack_pairs(verdicts, goto, present=True)))
        # A second time nothing is wrong with it.
        host.nftables.apply([declare_table("inet", TABLE), *(each.declare() for each in sets(version))])
        assert host.nftables.list_pairs("inet", "verdicts", table=TABLE) == dict(goto)
        assert host.nftables.list_pairs("inet", "targets", table=TABLE) == dict(targets)
        host.nftables.apply(list(pack_pairs(place, targets[3:], present=False)))
        assert host.nftables.list_pairs("inet", "targets", table=TABLE) == dict(targets[:3])
    said = node.run("nft", "list", "table", "inet", TABLE).stdout
    text = TEXT[version]
    assert f'{text} . udp . 53 comment "shop/web:dns" : goto pick' in said
    assert f"{text} . udp . 53 . 0x00000002 : {text} . 8053" in said
    chosen = f"{family} daddr . meta l4proto . th dport . numgen random mod 3 map @targets"
    assert f'dnat {family} to {chosen} comment "how it is picked"' in said
    assert f"{family} saddr . {family} daddr . meta l4proto . th dport map @kept" in said
    original = f"ct original {family} daddr . meta l4proto . ct original proto-dst"
    assert f"{original} vmap @verdicts" in said
    assert f"update @kept {{ {family} saddr . {original} timeout 3h : {family} daddr . th dport }}" in said
    assert "flags dynamic,timeout" in said
    assert "size 1024" in said


@pytest.mark.parametrize("version", [4, 6])
def test_nft_s_own_rules_name_packed_sets(node: Node, version: int) -> None:
    family = FAMILY[version]
    with open_pod(node.path) as host:
        host.nftables.apply([declare_table("inet", TABLE), *(each.declare() for each in sets(version))])
    script = f"""
table inet {TABLE} {{
    chain used {{
        {family} saddr @plain accept
        {family} saddr @ranges accept
        {family} daddr . meta l4proto . th dport vmap @verdicts
    }}
}}
add element inet {TABLE} ranges {{ {TEXT[version]}/{24 if version == 4 else 64} }}
"""
    node.run("nft", "-f", "-", input=script)
    said = node.run("nft", "list", "table", "inet", TABLE).stdout
    assert "vmap @verdicts" in said
