"""Switches of a namespace and of its links that every ADD asks for, read over netlink.

Each namespace that somebody has looked into leaves names of its own in the kernel's cache of /proc/sys, and a
node's are searched for behind those of all pods: a millisecond each with 1,000 of them. What is
to be changed is written there all the same. By hand: `ip netconf show`, `ip -d -j link show`.
linux/netconf.h, linux/ip.h
"""

from __future__ import annotations

import struct

from cni_plugin.kernel import netlink
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.link import IFLA_IFNAME, link_body, read_link
from cni_plugin.kernel.message import AF_INET, FAMILY, find_attribute, parse_attributes, parse_number, text
from cni_plugin.kernel.netlink import HEADER, Query
from cni_plugin.kernel.sysctl import FORWARDING, ensure_sysctl

_RTM_GETNETCONF = 82
_NETCONFA_IFINDEX, _NETCONFA_FORWARDING, _ALL = 1, 2, -1
_NETCONFMSG = struct.Struct("=Bxxx")  # family
_IFINDEX = struct.Struct("=HHi")
_IFLA_AF_SPEC, _IFLA_INET_CONF = 26, 1
_ROUTE_LOCALNET = 25  # IPV4_DEVCONF_ROUTE_LOCALNET of an array that begins with number 1


def ensure_forwarding(nl: netlink.Netlink, version: int) -> None:
    """Let the thread's namespace, which is that of `nl`, forward packets of one family (4 or 6)."""
    if not _is_forwarding(nl, version):
        ensure_sysctl(FORWARDING[version], 1)


def _is_forwarding(nl: netlink.Netlink, version: int) -> bool:
    body = _NETCONFMSG.pack(FAMILY[version]) + _IFINDEX.pack(8, _NETCONFA_IFINDEX, _ALL)
    try:
        raw = nl.get(Query(f"ip -{version} netconf show all", _RTM_GETNETCONF, body))
    except KernelError:
        return False  # the file says why
    return bool(parse_number(find_attribute(raw[HEADER.size + _NETCONFMSG.size :], _NETCONFA_FORWARDING)))


def ensure_route_localnet(nl: netlink.Netlink, link: str) -> None:
    """Let packets for 127.0.0.0/8 pass by a link of the thread's namespace, which is that of `nl`."""
    if not _routes_localnet(nl, link):
        ensure_sysctl(route_localnet(link), 1)


def _routes_localnet(nl: netlink.Netlink, link: str) -> bool:
    raw = nl.get(Query(f"ip link show {link}", netlink.RTM_GETLINK, link_body(text(IFLA_IFNAME, link))))
    of_families = parse_attributes(read_link(raw).get(_IFLA_AF_SPEC, b""))
    switches = find_attribute(of_families.get(AF_INET, b""), _IFLA_INET_CONF)
    return bool(parse_number(switches[_ROUTE_LOCALNET * 4 :][:4]))


def route_localnet(link: str) -> str:
    """Return the key of the switch."""
    return f"net/ipv4/conf/{link}/route_localnet"
