"""Permanent neighbours and forwarding entries of VXLAN devices: one message, two tables.

`ip neigh replace ADDRESS lladdr MAC dev LINK nud permanent` tells a node where a next hop
is; `bridge fdb append MAC dev VXLAN dst VTEP` tells a VXLAN device behind which tunnel
endpoint a MAC is. The all-zero MAC means "everything without an entry": head-end replication
has one per peer, so its entries are appended; any other MAC is behind one, so its entry replaces what
was there. Linux: drivers/net/vxlan/vxlan_core.c.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netaddr import IPAddress

from cni_plugin.kernel import netlink
from cni_plugin.kernel.addr import FAMILY
from cni_plugin.kernel.netlink import Change, Message, Netlink, ndmsg

if TYPE_CHECKING:
    from collections.abc import Callable


ALL_ZERO = "00:00:00:00:00:00"
_AF_BRIDGE = 7
# linux/neighbour.h
_NUD_NOARP, _NUD_PERMANENT = 0x40, 0x80
_NTF_SELF = 0x02
# What a removal answers when there is nothing to remove.
ABSENT = frozenset({errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL})
_STATE_OFFSET, _FLAGS_OFFSET = 8, 10  # in struct ndmsg


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
    message = _neighbour_message(index, neighbour.address)
    message["attrs"].append(("NDA_LLADDR", neighbour.mac))
    command = f"ip neigh replace {neighbour.address} lladdr {neighbour.mac} dev index {index} nud permanent"
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
    return Change(command, message, netlink.RTM_NEWNEIGH, flags)


def remove_neighbour(index: int, neighbour: Neighbour) -> Change:
    """Return the change that forgets the neighbour."""
    message = _neighbour_message(index, neighbour.address)
    return Change(f"ip neigh del {neighbour.address} dev index {index}", message, netlink.RTM_DELNEIGH)


def _neighbour_message(index: int, address: IPAddress) -> Message:
    message = ndmsg()
    message["family"] = FAMILY[address.version]
    message["ifindex"] = index
    message["state"] = _NUD_PERMANENT
    message["attrs"] = [("NDA_DST", str(address))]
    return message


def set_fdb(index: int, entry: FdbEntry) -> Change:
    """Return the change that makes the endpoint a destination of its MAC; of ALL_ZERO one of many."""
    verb, mode = (
        ("append", netlink.NLM_F_APPEND) if entry.mac == ALL_ZERO else ("replace", netlink.NLM_F_REPLACE)
    )
    command = f"bridge fdb {verb} {entry.mac} dev index {index} dst {entry.vtep}"
    return Change(command, _fdb_message(index, entry), netlink.RTM_NEWNEIGH, netlink.NLM_F_CREATE | mode)


def remove_fdb(index: int, entry: FdbEntry) -> Change:
    """Return the change that removes one destination of a MAC."""
    command = f"bridge fdb del {entry.mac} dev index {index} dst {entry.vtep}"
    return Change(command, _fdb_message(index, entry), netlink.RTM_DELNEIGH)


def _fdb_message(index: int, entry: FdbEntry) -> Message:
    message = ndmsg()
    message["family"] = _AF_BRIDGE
    message["ifindex"] = index
    message["state"] = _NUD_NOARP | _NUD_PERMANENT
    message["flags"] = _NTF_SELF
    message["attrs"] = [("NDA_LLADDR", entry.mac), ("NDA_DST", str(entry.vtep))]
    return message


def list_neighbours(nl: Netlink, index: int, version: int) -> set[Neighbour]:
    """Return the permanent neighbours of one family (4 or 6) on the link with this index."""
    found = nl.dump(*_neighbour_query(index, version), keep=_is_permanent)
    return {Neighbour(address=IPAddress(m.get_attr("NDA_DST")), mac=m.get_attr("NDA_LLADDR")) for m in found}


def count_neighbours(nl: Netlink, index: int, version: int) -> int:
    """Return how many permanent neighbours of one family the link has, without reading them."""
    return nl.count(*_neighbour_query(index, version), keep=_is_permanent)


def _neighbour_query(index: int, version: int) -> tuple[str, Message, int]:
    message = ndmsg()
    message["family"] = FAMILY[version]
    message["attrs"] = [("NDA_IFINDEX", index)]
    return f"ip -{version} neigh show dev index {index} nud permanent", message, netlink.RTM_GETNEIGH


def list_fdb(nl: Netlink, index: int) -> set[FdbEntry]:
    """Return the permanent entries of the VXLAN device with this index; learned ones are its own."""
    found = nl.dump(*_fdb_query(index), keep=_is_own_permanent(index))
    with_dst = [(m.get_attr("NDA_LLADDR"), m.get_attr("NDA_DST")) for m in found]
    return {FdbEntry(mac=mac, vtep=IPAddress(vtep)) for mac, vtep in with_dst if vtep}


def count_fdb(nl: Netlink, index: int) -> int:
    """Return how many permanent entries the VXLAN device has, without reading them."""
    return nl.count(*_fdb_query(index), keep=_is_own_permanent(index))


def _fdb_query(index: int) -> tuple[str, Message, int]:
    message = ndmsg()
    message["family"] = _AF_BRIDGE
    message["ifindex"] = index
    return f"bridge fdb show dev index {index}", message, netlink.RTM_GETNEIGH


def _is_permanent(raw: bytes) -> bool:
    return bool(raw[_STATE_OFFSET] & _NUD_PERMANENT)


def _is_own_permanent(index: int) -> Callable[[bytes], bool]:
    """Return the test for entries of the device itself: a bridge keeps entries for its ports too."""
    ifindex = index.to_bytes(4, "little")

    def keep(raw: bytes) -> bool:
        return raw[4:8] == ifindex and bool(raw[_FLAGS_OFFSET] & _NTF_SELF) and _is_permanent(raw)

    return keep
