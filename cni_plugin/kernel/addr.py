"""Addresses of links: `ip addr add ADDRESS dev LINK nodad`.

IPv6 addresses are set without duplicate address detection unless asked for, so that they are
usable at once: a fresh namespace cannot hold a duplicate.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, NamedTuple

from cni_plugin.kernel import netlink
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.message import (
    AF_INET6,
    FAMILY,
    ip,
    parse_address,
    parse_attributes,
    parse_network,
    parse_number,
    u32,
)
from cni_plugin.kernel.netlink import HEADER, Change, Query

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netaddr import IPAddress, IPNetwork

    from cni_plugin.kernel.link import Link
    from cni_plugin.kernel.netlink import Netlink

# linux/if_addr.h
_IFADDRMSG = struct.Struct("=4BI")  # family, prefix length, flags, scope, index
_ATTRIBUTES = HEADER.size + _IFADDRMSG.size
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFA_TARGET_NETNSID = 10
_IFA_F_NODAD, _IFA_F_DADFAILED, _IFA_F_TENTATIVE = 0x02, 0x08, 0x40
_PASSING = 0x01 | 0x08 | 0x20  # IFA_F_TEMPORARY, which is IFA_F_SECONDARY, too; _DADFAILED; _DEPRECATED
_IFA_F_MANAGED = 0x100  # IFA_F_MANAGETEMPADDR, which the kernel gives what it made of an advertisement
_RT_SCOPE_LINK = 253


def add_address(index: int, address: IPNetwork, *, dad: bool = False) -> Change:
    """Return the change that adds `address` to the link with this index."""
    nodad = address.version == 6 and not dad
    command = f"ip addr add {address} dev index {index}" + (" nodad" if nodad else "")
    body = _body(index, address, _IFA_F_NODAD if nodad else 0)
    return Change(command, netlink.RTM_NEWADDR, body, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)


def _body(index: int, address: IPNetwork, flags: int = 0) -> bytes:
    head = _IFADDRMSG.pack(FAMILY[address.version], address.prefixlen, flags, 0, index)
    body = head + ip(_IFA_LOCAL, address.ip) + ip(_IFA_ADDRESS, address.ip)
    broadcast = address.broadcast if address.version == 4 else None  # none of /31 and /32
    return body if broadcast is None else body + ip(_IFA_BROADCAST, broadcast)


def ensure_address(nl: Netlink, index: int, address: IPNetwork) -> None:
    """Add `address` unless the link has it; another process may add it at the same time."""
    try:
        nl.change(add_address(index, address))
    except KernelError as error:
        if error.errno != errno.EEXIST:
            raise


def delete_address(nl: Netlink, index: int, address: IPNetwork) -> None:
    """Remove `address` from the link with this index."""
    try:
        nl.change(
            Change(f"ip addr del {address} dev index {index}", netlink.RTM_DELADDR, _body(index, address))
        )
    except KernelError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise


def is_link_local(raw: bytes) -> bool:
    """Tell whether a message is about an address that every link gives itself."""
    _, _, _, scope, _ = _IFADDRMSG.unpack_from(raw, HEADER.size)
    return bool(scope == _RT_SCOPE_LINK)


def find_holder(nl: Netlink, address: IPAddress) -> int:
    """Return the index of the link that has an address, 0 for none."""
    for raw in nl.dump(Query("ip addr show", netlink.RTM_GETADDR, _IFADDRMSG.pack(0, 0, 0, 0, 0))):
        *_, index = _IFADDRMSG.unpack_from(raw, HEADER.size)
        attributes = parse_attributes(raw, _ATTRIBUTES)
        if parse_address(attributes.get(_IFA_LOCAL) or attributes[_IFA_ADDRESS]) == address:
            return int(index)
    return 0


class _Found(NamedTuple):
    address: IPNetwork
    flags: int
    scope: int


def list_addresses(nl: Netlink, index: int = 0, *, link_local: bool = False) -> list[IPNetwork]:
    """Return the addresses of the link with this index (0 for all), IPv6 link-local when asked for."""
    found = _list(nl, index)
    return [a for a, _, scope in found if link_local or a.version == 4 or scope != _RT_SCOPE_LINK]


def list_lasting(nl: Netlink, index: int, version: int) -> list[IPAddress]:
    """Return the addresses of one family (4 or 6) of a link that are there to stay.

    Temporary and deprecated ones are not, nor IPv4's secondary ones, nor one that is a duplicate.
    """
    found = _list(nl, index)
    return [
        a.ip
        for a, flags, scope in found
        if a.version == version and not flags & _PASSING and (version == 4 or scope != _RT_SCOPE_LINK)
    ]


def list_unsettled(nl: Netlink, index: int) -> list[tuple[IPNetwork, bool]]:
    """Return the addresses still probed for duplicates, and whether one was found."""
    found = _list(nl, index)
    return [(a, bool(flags & _IFA_F_DADFAILED)) for a, flags, _ in found if flags & _IFA_F_TENTATIVE]


def list_peer_addresses(nl: Netlink, link: Link) -> list[IPNetwork]:
    """Return the addresses of a veth's other end, which is in another namespace; none if that is gone."""
    if link.peer_nsid is None or link.peer_nsid < 0:
        return []
    try:
        found = list(_list(nl, link.peer, u32(_IFA_TARGET_NETNSID, link.peer_nsid)))
    except KernelError as error:
        if error.errno in {errno.ENODEV, errno.EINVAL}:
            return []
        raise
    return [a for a, _, scope in found if a.version == 4 or scope != _RT_SCOPE_LINK]


def list_advertised_links(nl: Netlink) -> set[int]:
    """Return the indexes of the links with an address that the kernel made of a router's advertisement."""
    found = nl.dump(Query("ip -6 addr show", netlink.RTM_GETADDR, _IFADDRMSG.pack(AF_INET6, 0, 0, 0, 0)))
    return {_IFADDRMSG.unpack_from(raw, HEADER.size)[4] for raw in found if _read_flags(raw) & _IFA_F_MANAGED}


def _read_flags(raw: bytes) -> int:
    return parse_number(parse_attributes(raw, _ATTRIBUTES).get(_IFA_FLAGS))


def _list(nl: Netlink, index: int, *where: bytes) -> Iterator[_Found]:
    body = _IFADDRMSG.pack(0, 0, 0, 0, index) + b"".join(where)
    for raw in nl.dump(Query(f"ip addr show dev index {index}", netlink.RTM_GETADDR, body)):
        _, prefixlen, flags, scope, _ = _IFADDRMSG.unpack_from(raw, HEADER.size)
        attributes = parse_attributes(raw, _ATTRIBUTES)
        # IFA_LOCAL is the address itself; IFA_ADDRESS is the peer's on a point-to-point link.
        address = parse_network(attributes.get(_IFA_LOCAL) or attributes[_IFA_ADDRESS], prefixlen)
        yield _Found(address, parse_number(attributes.get(_IFA_FLAGS)) or flags, scope)
