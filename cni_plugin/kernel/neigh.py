"""Permanent neighbours and forwarding entries of VXLAN devices: one message, two tables.

`ip neigh replace ADDRESS lladdr MAC dev LINK nud permanent` tells a node where a next hop
is; `bridge fdb append MAC dev VXLAN dst VTEP` tells a VXLAN device behind which tunnel
endpoint a MAC is. The all-zero MAC means "everything without an entry": head-end replication
has one per peer, so its entries are appended; any other MAC is behind one, so its entry replaces what
was there. Linux: drivers/net/vxlan/vxlan_core.c.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.kernel import netlink
from cni_plugin.kernel.message import (
    AF_BRIDGE,
    FAMILY,
    ip,
    lladdr,
    parse_address,
    parse_attributes,
    parse_mac,
    u8,
    u32,
)
from cni_plugin.kernel.netlink import HEADER, Change, Query

if TYPE_CHECKING:
    from netaddr import IPAddress

    from cni_plugin.kernel.netlink import Netlink

ALL_ZERO = "00:00:00:00:00:00"
# linux/neighbour.h
_NDMSG = struct.Struct("=BxxxiHBx")  # family, index, state, flags
_NDA_DST, _NDA_LLADDR, _NDA_IFINDEX, _NDA_PROTOCOL = 1, 2, 8, 12
_NUD_NOARP, _NUD_PERMANENT = 0x40, 0x80
_NTF_SELF, _NTF_PROXY = 0x02, 0x08
_PROTOCOL = 112  # as of routes: who made it
# What a removal answers when there is nothing to remove.
ABSENT = frozenset({errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL})


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A next hop and the MAC it is at."""

    address: IPAddress
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FdbEntry:
    """A MAC (or ALL_ZERO) and the tunnel endpoint it is behind."""

    mac: str
    vtep: IPAddress


def set_neighbour(index: int, neighbour: Neighbour) -> Change:
    """Return the change that makes the neighbour permanent, whatever was known before."""
    body = _neighbour_body(index, neighbour.address) + lladdr(_NDA_LLADDR, neighbour.mac)
    command = f"ip neigh replace {neighbour.address} lladdr {neighbour.mac} dev index {index} nud permanent"
    return Change(command, netlink.RTM_NEWNEIGH, body, netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE)


def remove_neighbour(index: int, neighbour: Neighbour) -> Change:
    """Return the change that forgets the neighbour."""
    body = _neighbour_body(index, neighbour.address)
    return Change(f"ip neigh del {neighbour.address} dev index {index}", netlink.RTM_DELNEIGH, body)


def _neighbour_body(index: int, address: IPAddress) -> bytes:
    return _NDMSG.pack(FAMILY[address.version], index, _NUD_PERMANENT, 0) + ip(_NDA_DST, address)


def add_proxy(index: int, address: IPAddress) -> Change:
    """Return the change that lets the node answer on a link for an address that is behind another one."""
    head = _NDMSG.pack(FAMILY[address.version], index, _NUD_PERMANENT, _NTF_PROXY)
    body = head + ip(_NDA_DST, address) + u8(_NDA_PROTOCOL, _PROTOCOL)
    command = f"ip neigh replace proxy {address} dev index {index} protocol {_PROTOCOL}"
    return Change(command, netlink.RTM_NEWNEIGH, body, netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE)


def remove_proxy(index: int, address: IPAddress) -> Change:
    """Return the change that ends that."""
    body = _NDMSG.pack(FAMILY[address.version], index, _NUD_PERMANENT, _NTF_PROXY) + ip(_NDA_DST, address)
    return Change(f"ip neigh del proxy {address} dev index {index}", netlink.RTM_DELNEIGH, body)


def list_proxies(nl: Netlink, index: int, version: int) -> set[IPAddress]:
    """Return the addresses of one family (4 or 6) that `add_proxy` lets the node answer for on a link."""
    body = _NDMSG.pack(FAMILY[version], 0, 0, _NTF_PROXY)
    raws = nl.dump(Query(f"ip -{version} neigh show proxy dev index {index}", netlink.RTM_GETNEIGH, body))
    here = (_parse(raw) for raw in raws if _NDMSG.unpack_from(raw, HEADER.size)[1] == index)
    return {
        parse_address(found[_NDA_DST]) for found in here if found.get(_NDA_PROTOCOL) == bytes([_PROTOCOL])
    }


def set_fdb(index: int, entry: FdbEntry) -> Change:
    """Return the change that makes the endpoint a destination of its MAC; of ALL_ZERO one of many."""
    verb, mode = (
        ("append", netlink.NLM_F_APPEND) if entry.mac == ALL_ZERO else ("replace", netlink.NLM_F_REPLACE)
    )
    command = f"bridge fdb {verb} {entry.mac} dev index {index} dst {entry.vtep}"
    return Change(command, netlink.RTM_NEWNEIGH, _fdb_body(index, entry), netlink.NLM_F_CREATE | mode)


def remove_fdb(index: int, entry: FdbEntry) -> Change:
    """Return the change that removes one destination of a MAC."""
    command = f"bridge fdb del {entry.mac} dev index {index} dst {entry.vtep}"
    return Change(command, netlink.RTM_DELNEIGH, _fdb_body(index, entry))


def _fdb_body(index: int, entry: FdbEntry) -> bytes:
    head = _NDMSG.pack(AF_BRIDGE, index, _NUD_NOARP | _NUD_PERMANENT, _NTF_SELF)
    return head + lladdr(_NDA_LLADDR, entry.mac) + ip(_NDA_DST, entry.vtep)


def list_neighbours(nl: Netlink, index: int, version: int) -> set[Neighbour]:
    """Return the permanent neighbours of one family (4 or 6) on the link with this index."""
    found = map(_parse, _list_raw_neighbours(nl, index, version))
    return {Neighbour(address=parse_address(a[_NDA_DST]), mac=parse_mac(a.get(_NDA_LLADDR))) for a in found}


def count_neighbours(nl: Netlink, index: int, version: int) -> int:
    """Return how many permanent neighbours of one family the link has, without reading them."""
    return len(_list_raw_neighbours(nl, index, version))


def _list_raw_neighbours(nl: Netlink, index: int, version: int) -> list[bytes]:
    body = _NDMSG.pack(FAMILY[version], 0, 0, 0) + u32(_NDA_IFINDEX, index)
    command = f"ip -{version} neigh show dev index {index} nud permanent"
    return [raw for raw in nl.dump(Query(command, netlink.RTM_GETNEIGH, body)) if _is_permanent(raw)]


def list_fdb(nl: Netlink, index: int) -> set[FdbEntry]:
    """Return the permanent entries of the VXLAN device with this index; learned ones are its own."""
    found = map(_parse, _list_raw_fdb(nl, index))
    with_dst = [(a.get(_NDA_LLADDR), a[_NDA_DST]) for a in found if _NDA_DST in a]
    return {FdbEntry(mac=parse_mac(mac), vtep=parse_address(vtep)) for mac, vtep in with_dst}


def count_fdb(nl: Netlink, index: int) -> int:
    """Return how many permanent entries the VXLAN device has, without reading them."""
    return len(_list_raw_fdb(nl, index))


def _list_raw_fdb(nl: Netlink, index: int) -> list[bytes]:
    """Return the entries of the device itself: a bridge keeps entries for its ports too."""
    query = Query(
        f"bridge fdb show dev index {index}", netlink.RTM_GETNEIGH, _NDMSG.pack(AF_BRIDGE, index, 0, 0)
    )
    return [raw for raw in nl.dump(query) if _is_permanent(raw) and _is_own(raw, index)]


def _is_permanent(raw: bytes) -> bool:
    _, _, state, _ = _NDMSG.unpack_from(raw, HEADER.size)
    return bool(state & _NUD_PERMANENT)


def _is_own(raw: bytes, index: int) -> bool:
    _, ifindex, _, flags = _NDMSG.unpack_from(raw, HEADER.size)
    return bool(ifindex == index and flags & _NTF_SELF)


def _parse(raw: bytes) -> dict[int, bytes]:
    return parse_attributes(raw, HEADER.size + _NDMSG.size)
