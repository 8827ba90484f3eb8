"""What is packed by hand, read by pyroute2, which knows the kernel's structures by itself."""
# ruff: noqa: TID251 - the witness

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from netaddr import IPAddress, IPNetwork
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from cni_plugin.kernel.addr import add_address
from cni_plugin.kernel.bridge import set_port
from cni_plugin.kernel.link import set_mac, set_mtu, set_up
from cni_plugin.kernel.message import find_attribute, list_attributes, nested, text, u8, u16, u32
from cni_plugin.kernel.neigh import FdbEntry, Neighbour, set_fdb, set_neighbour
from cni_plugin.kernel.netlink import NLM_F_ACK, NetlinkSocket, pack
from cni_plugin.kernel.route import RouteSpec, add_route

if TYPE_CHECKING:
    from cni_plugin.kernel.netlink import Change


def read(kind: Any, change: Change) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields and the attributes that pyroute2 finds in a change."""
    message = kind(pack(change.kind, NLM_F_ACK | change.flags, change.body))
    message.decode()
    assert message["header"]["length"] == len(change.body) + 16
    return {key: value for key, value in message.items() if key != "attrs"}, dict(message["attrs"])


CHANGES = {
    "address": (
        ifaddrmsg,
        add_address(7, IPNetwork("10.1.2.3/24")),
        {"family": 2, "prefixlen": 24, "index": 7, "flags": 0},
        {"IFA_LOCAL": "10.1.2.3", "IFA_ADDRESS": "10.1.2.3", "IFA_BROADCAST": "10.1.2.255"},
    ),
    "address without a broadcast": (
        ifaddrmsg,
        add_address(7, IPNetwork("10.1.2.3/31")),
        {"prefixlen": 31},
        {"IFA_LOCAL": "10.1.2.3", "IFA_ADDRESS": "10.1.2.3"},
    ),
    "address nodad": (
        ifaddrmsg,
        add_address(7, IPNetwork("fd00::3/64")),
        {"family": 10, "prefixlen": 64, "flags": 2},
        {"IFA_LOCAL": "fd00::3", "IFA_ADDRESS": "fd00::3"},
    ),
    "link up": (ifinfmsg, set_up("v0"), {"index": 0, "flags": 1, "change": 1}, {"IFLA_IFNAME": "v0"}),
    "mtu": (ifinfmsg, set_mtu("v0", 1400), {"change": 0}, {"IFLA_IFNAME": "v0", "IFLA_MTU": 1400}),
    "mac": (
        ifinfmsg,
        set_mac("v0", "fe:00:00:00:00:01"),
        {},
        {"IFLA_IFNAME": "v0", "IFLA_ADDRESS": "fe:00:00:00:00:01"},
    ),
    "route": (
        rtmsg,
        add_route(
            RouteSpec(dst=IPNetwork("fd01::/64"), gw=IPAddress("fd00::1"), index=7, table=1000, mtu=1400)
        ),
        {"family": 10, "dst_len": 64, "table": 0, "scope": 0, "type": 1},
        {"RTA_TABLE": 1000, "RTA_DST": "fd01::", "RTA_GATEWAY": "fd00::1", "RTA_OIF": 7},
    ),
    "default route": (
        rtmsg,
        add_route(RouteSpec(dst=IPNetwork("0.0.0.0/0"), index=7, priority=5)),
        {"family": 2, "dst_len": 0, "table": 254, "scope": 253},
        {"RTA_TABLE": 254, "RTA_OIF": 7, "RTA_PRIORITY": 5},
    ),
    "neighbour": (
        ndmsg,
        set_neighbour(7, Neighbour(address=IPAddress("fe80::1"), mac="fe:00:00:00:00:01")),
        {"family": 10, "ifindex": 7, "state": 0x80, "flags": 0},
        {"NDA_DST": "fe80::1", "NDA_LLADDR": "fe:00:00:00:00:01"},
    ),
    "fdb": (
        ndmsg,
        set_fdb(7, FdbEntry(mac="fe:00:00:00:00:01", vtep=IPAddress("192.0.2.1"))),
        {"family": 7, "ifindex": 7, "state": 0xC0, "flags": 2},
        {"NDA_LLADDR": "fe:00:00:00:00:01"},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_pyroute2_reads_what_is_packed(name: str) -> None:
    kind, change, fields, attributes = CHANGES[name]
    found_fields, found = read(kind, change)
    assert {key: found_fields[key] for key in fields} == fields
    assert {key: found[key] for key in attributes} == attributes


def test_metrics_and_port_flags_are_nested() -> None:
    _, route = read(rtmsg, add_route(RouteSpec(dst=IPNetwork("10.0.0.0/8"), index=7, mtu=1400, advmss=1360)))
    assert dict(route["RTA_METRICS"]["attrs"]) == {"RTAX_MTU": 1400, "RTAX_ADVMSS": 1360}
    _, port = read(ifinfmsg, set_port("v0", alias="podwire: x", hairpin=True, isolated=False))
    flags = port["IFLA_LINKINFO"].get_attr("IFLA_INFO_SLAVE_DATA")
    assert port["IFLA_IFALIAS"] == "podwire: x"
    assert (flags.get_attr("IFLA_BRPORT_MODE"), flags.get_attr("IFLA_BRPORT_ISOLATED")) == (1, 0)


def test_attributes_are_padded_and_found_again() -> None:
    packed = u8(1, 5) + text(2, "ab") + u16(2, 7) + nested(3, u32(4, 9))
    assert len(packed) % 4 == 0
    assert list_attributes(packed) == [(1, b"\5"), (2, b"ab\0"), (2, b"\7\0"), (3, u32(4, 9))]
    assert (find_attribute(packed, 2), find_attribute(packed, 9)) == (b"ab\0", b"")


def test_a_message_without_a_length_ends_and_does_not_hold_the_reader() -> None:
    """The kernel sends none; who sends one in its place must not stop us."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        theirs.send(bytes(64))
        reader = object.__new__(NetlinkSocket)
        reader._socket = ours
        assert len(list(reader.receive())) == 4
