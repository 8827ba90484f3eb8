"""Addresses of links: `ip addr add ADDRESS dev LINK nodad`.

IPv6 addresses are set without duplicate address detection unless asked for, so that they are
usable at once: a fresh namespace cannot hold a duplicate.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from netaddr import IPNetwork

from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.kernel import netlink
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.netlink import Change, Message, Netlink, ifaddrmsg

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netaddr import IPAddress

# linux/socket.h and linux/if_addr.h
AF_INET, AF_INET6 = 2, 10
FAMILY = {4: AF_INET, 6: AF_INET6}
_IFA_F_NODAD, _IFA_F_DADFAILED, _IFA_F_TENTATIVE = 0x02, 0x08, 0x40
_RT_SCOPE_LINK = 253
_JOIN_TIMEOUT = 2.0  # seconds
_JOIN_POLL = 0.0003


def add_address(index: int, address: IPNetwork, *, dad: bool = False) -> Change:
    """Return the change that adds `address` to the link with this index."""
    message = _message(index, address)
    if address.version == 6 and not dad:
        message["flags"] = _IFA_F_NODAD
    nodad = " nodad" if message["flags"] else ""
    command = f"ip addr add {address} dev index {index}{nodad}"
    return Change(command, message, netlink.RTM_NEWADDR, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)


def _message(index: int, address: IPNetwork) -> Message:
    message = ifaddrmsg()
    message["family"] = FAMILY[address.version]
    message["prefixlen"] = address.prefixlen
    message["index"] = index
    message["attrs"] = [("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))]
    if _has_broadcast(address):
        message["attrs"].append(("IFA_BROADCAST", str(address.broadcast)))
    return message


def _has_broadcast(address: IPNetwork) -> bool:
    return address.version == 4 and address.prefixlen < 31


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
            Change(f"ip addr del {address} dev index {index}", _message(index, address), netlink.RTM_DELADDR)
        )
    except KernelError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise


def list_addresses(nl: Netlink, index: int = 0) -> list[IPNetwork]:
    """Return the addresses of the link with this index (0 for all), link-local IPv6 left out."""
    return [_parse(m) for m in _dump(nl, index) if m["scope"] != _RT_SCOPE_LINK or m["family"] == AF_INET]


def list_unsettled(nl: Netlink, index: int) -> list[tuple[IPNetwork, bool]]:
    """Return the addresses still probed for duplicates, and whether one was found."""
    found = [(_parse(m), m.get_attr("IFA_FLAGS") or m["flags"]) for m in _dump(nl, index)]
    return [(a, bool(flags & _IFA_F_DADFAILED)) for a, flags in found if flags & _IFA_F_TENTATIVE]


def wait_until_resolvable(ifname: str, addresses: Iterable[IPAddress]) -> None:
    """Wait until neighbours can resolve the IPv6 ones of `addresses`; CNIError 11 when they cannot.

    The interface is the one in the namespace that the thread is in. The kernel joins the group
    that an address is solicited at (RFC 4291 section 2.7.1) from a work queue, after the
    request that added the address was answered (addrconf_dad_begin in net/ipv6/addrconf.c).
    What is solicited before is lost, and asked for again a second later.
    """
    wanted = {f"ff0200000000000000000001ff{a.packed[-3:].hex()}" for a in addresses if a.version == 6}
    deadline = time.monotonic() + _JOIN_TIMEOUT
    while missing := wanted - (_joined_groups(ifname) if wanted else set()):
        if time.monotonic() > deadline:
            raise CNIError(
                Code.TRY_AGAIN_LATER,
                f"{ifname}: wanted {sorted(missing)} joined in {_JOIN_TIMEOUT} s, found other groups only",
            )
        time.sleep(_JOIN_POLL)


def _joined_groups(ifname: str) -> set[str]:
    """Return the IPv6 multicast groups of an interface, in hexadecimal."""
    with open("/proc/thread-self/net/igmp6", "rb") as file:
        lines = map(bytes.split, file)
        return {group.decode() for _, name, group, *_ in lines if name == os.fsencode(ifname)}


def _dump(nl: Netlink, index: int) -> list[Message]:
    message = ifaddrmsg()
    message["index"] = index
    return nl.dump(f"ip addr show dev index {index}", message, netlink.RTM_GETADDR)


def _parse(message: Message) -> IPNetwork:
    # IFA_LOCAL is the address itself; IFA_ADDRESS is the peer's on a point-to-point link.
    address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return IPNetwork(f"{address}/{message['prefixlen']}")
