"""Per-namespace and per-link switches (forwarding, route_localnet), read over netlink.

Each namespace that somebody has looked into leaves names of its own in the kernel's cache of /proc/sys, and a
node's are searched for behind those of all pods: a millisecond each with 1,000 of them. What is
to be changed is written there all the same. By hand: `ip netconf show`, `ip -d -j link show`.
linux/netconf.h, linux/ip.h
"""

from __future__ import annotations

import errno
import struct
import sys
from typing import TYPE_CHECKING

from cni_plugin.kernel import netlink
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.link import IFLA_IFNAME, get_link_by_index, link_body, read_link
from cni_plugin.kernel.message import (
    AF_INET,
    AF_INET6,
    FAMILY,
    find_attribute,
    nested,
    parse_attributes,
    parse_number,
    text,
    u32,
)
from cni_plugin.kernel.netlink import HEADER, Query
from cni_plugin.kernel.sysctl import (
    FORWARDING,
    ensure_sysctl,
    has_sysctl,
    prefer_sysctl,
    require_family,
    require_sysctl,
)

if TYPE_CHECKING:
    from collections.abc import Collection

_RTM_GETNETCONF = 82
_NETCONFA_IFINDEX, _NETCONFA_FORWARDING, _ALL = 1, 2, -1
_NETCONFMSG = struct.Struct("=Bxxx")  # family
_IFINDEX = struct.Struct("=HHi")
_IFLA_AF_SPEC, _IFLA_INET_CONF, _IFLA_INET6_CONF = 26, 1, 2
# Places in the arrays of switches: IPV4_DEVCONF_ROUTE_LOCALNET, which counts from 1, and DEVCONF_ACCEPT_RA.
_ROUTE_LOCALNET, _RP_FILTER, _ACCEPT_RA, _DISABLE_IPV6 = 25, 7, 3, 26
_LOOSE = 2  # RFC 3704
_UNLESS_FORWARDING, _ALTHOUGH_FORWARDING = 1, 2


def ensure_forwarding(nl: netlink.Netlink, version: int) -> None:
    """Let the thread's namespace, which is that of `nl`, forward packets of one family (4 or 6)."""
    if is_forwarding(nl, version):
        return
    require_family(version)
    if version == 6:
        _keep_routers(nl)
    ensure_sysctl(FORWARDING[version], 1)


def require_forwarding(version: int, link: str) -> None:
    """Raise CNIError 50 when the thread's namespace cannot be made to forward a family over a link.

    Where there is no such link yet the switches of new ones count.
    """
    require_family(version)
    require_sysctl(FORWARDING[version], 1)
    if version == 6:
        key = _disable_ipv6(link)
        require_sysctl(key if has_sysctl(key) else _disable_ipv6("default"), 0)


def _keep_routers(nl: netlink.Netlink) -> None:
    """Let the node keep its own routes that came by router advertisement when it begins to forward.

    The kernel removes them then, the default route among them, wherever `accept_ra` is not 2
    (rt6_purge_dflt_routers in net/ipv6/route.c), and takes no new ones. Where it is 0 a program of the node
    takes the advertisements itself, and its routes stay.
    """
    from cni_plugin.kernel.route import list_advertised

    for index in sorted({route.index for route in list_advertised(nl)}):
        link = get_link_by_index(nl, index)
        if link is not None and accepts_unless_forwarding(nl, link.name):
            prefer_sysctl(
                accept_ra(link.name),
                _ALTHOUGH_FORWARDING,
                "the node loses its routes that a router advertised",
            )


def accepts_unless_forwarding(nl: netlink.Netlink, link: str) -> bool:
    """Tell whether a link takes router advertisements only as long as the node does not forward."""
    return _get_switch(nl, link, (AF_INET6, _IFLA_INET6_CONF), _ACCEPT_RA) == _UNLESS_FORWARDING


def accept_ra(link: str) -> str:
    """Return the key of the switch."""
    return f"net/ipv6/conf/{link}/accept_ra"


def ensure_family(nl: netlink.Netlink, link: str, version: int) -> None:
    """Let a link of ours in the thread's namespace have addresses and routes of a family (4 or 6).

    The node may have IPv6 switched off for all new links; the others stay without.
    """
    if not has_family(nl, link, version):
        ensure_sysctl(_disable_ipv6(link), 0)


def has_family(nl: netlink.Netlink, link: str, version: int) -> bool:
    """Tell whether a link can have addresses and routes of a family (4 or 6)."""
    return version == 4 or not _get_switch(nl, link, (AF_INET6, _IFLA_INET6_CONF), _DISABLE_IPV6)


def _disable_ipv6(link: str) -> str:
    return f"net/ipv6/conf/{link}/disable_ipv6"


def is_forwarding(nl: netlink.Netlink, version: int) -> bool:
    """Tell whether a namespace forwards packets of a family (4 or 6)."""
    body = _NETCONFMSG.pack(FAMILY[version]) + _IFINDEX.pack(8, _NETCONFA_IFINDEX, _ALL)
    try:
        raw = nl.get(Query(f"ip -{version} netconf show all", _RTM_GETNETCONF, body))
    except KernelError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False  # a kernel without IPv6: that there is no such file says it better
    return bool(parse_number(find_attribute(raw[HEADER.size + _NETCONFMSG.size :], _NETCONFA_FORWARDING)))


def find_switched(raw: bytes) -> int:
    """Return the index of the link whose switches a message is about; below 0 for all links."""
    found = find_attribute(raw[HEADER.size + _NETCONFMSG.size :], _NETCONFA_IFINDEX)
    return int.from_bytes(found, sys.byteorder, signed=True)


def ensure_route_localnet(nl: netlink.Netlink, link: str) -> None:
    """Let packets for 127.0.0.0/8 pass by a link of the thread's namespace, which is that of `nl`."""
    if not lets_localnet_pass(nl, link):
        nl.change(_set_switch(link, route_localnet(link), _ROUTE_LOCALNET, 1))


def lets_localnet_pass(nl: netlink.Netlink, link: str) -> bool:
    """Tell whether packets for 127.0.0.0/8 pass by a link."""
    return bool(_get_switch(nl, link, (AF_INET, _IFLA_INET_CONF), _ROUTE_LOCALNET))


def loosen_rp_filter(nl: netlink.Netlink, link: str) -> None:
    """Let a link of the namespace of `nl` take packets from sources that it has no route to."""
    nl.change(_set_switch(link, f"net/ipv4/conf/{link}/rp_filter", _RP_FILTER, _LOOSE))


def _set_switch(link: str, key: str, place: int, value: int) -> netlink.Change:
    """Return the change of an IPv4 switch, which needs no /proc/sys that can be written to; IPv6 has none."""
    switches = nested(_IFLA_INET_CONF, u32(place + 1, value))
    body = link_body(text(IFLA_IFNAME, link), nested(_IFLA_AF_SPEC, nested(AF_INET, switches)))
    return netlink.Change(f"sysctl -w {key}={value}", netlink.RTM_SETLINK, body)


def _get_switch(nl: netlink.Netlink, link: str, array: tuple[int, int], place: int) -> int:
    """Return a switch of a link, 0 where the kernel has none of this family."""
    raw = nl.get(Query(f"ip link show {link}", netlink.RTM_GETLINK, link_body(text(IFLA_IFNAME, link))))
    family, kind = array
    switches = find_attribute(parse_attributes(read_link(raw).get(_IFLA_AF_SPEC, b"")).get(family, b""), kind)
    return parse_number(switches[place * 4 :][:4])


def answer_for_others(link: str, versions: Collection[int]) -> None:
    """Let the thread's namespace answer on a link, at once, for the addresses it has proxy neighbours for.

    By itself the kernel waits up to 0.8 s (`proxy_delay`), so that others may answer first. linux/neighbour.h
    """
    for version in versions:
        ensure_sysctl(f"net/ipv{version}/neigh/{link}/proxy_delay", 0)
    if 6 in versions:
        ensure_sysctl(f"net/ipv6/conf/{link}/proxy_ndp", 1)


def ignore_routers(nl: netlink.Netlink, link: str) -> None:
    """Let no pod behind a link of the thread's namespace, which is that of `nl`, become the node's router.

    A node that forwards takes router advertisements only where `accept_ra` is 2, which is what nodes have as
    their default that get their own addresses so.
    """
    if follows_routers(nl, link):
        prefer_sysctl(accept_ra(link), 0, "a pod behind it can make itself the node's router")


def follows_routers(nl: netlink.Netlink, link: str) -> bool:
    """Tell whether a link takes router advertisements although the node forwards."""
    return _get_switch(nl, link, (AF_INET6, _IFLA_INET6_CONF), _ACCEPT_RA) == _ALTHOUGH_FORWARDING


def route_localnet(link: str) -> str:
    """Return the key of the switch."""
    return f"net/ipv4/conf/{link}/route_localnet"
