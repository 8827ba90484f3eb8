"""Finds routes of other links that take the packets for a network's pods: `ip route show root SUBNET`.

A route that covers the subnet and more, such as the default, loses to ours and is no clash. Neither is
one to an address of the node itself (a tunnel's own end): the table `local` is asked before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from cni_plugin.kernel.addr import list_addresses
from cni_plugin.kernel.link import list_links
from cni_plugin.kernel.route import PODWIRE_PROTO, list_main_routes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netaddr import IPNetwork

    from cni_plugin.kernel.netlink import Netlink


@dataclass(frozen=True, slots=True, kw_only=True)
class Clash:
    """A subnet of ours, and a route of another link that is equal or more specific."""

    subnet: IPNetwork
    route: IPNetwork
    link: str

    def __str__(self) -> str:
        """Return it as `podwire status` says it."""
        wanted = f"subnet {self.subnet}: wanted it for this network's pods alone"
        return f"{wanted}, found {self.route} on {self.link}"


def find_clashes(nl: Netlink, links: Iterable[str], subnets: Iterable[IPNetwork]) -> list[Clash]:
    """Return the clashes of subnets whose pods are behind these links (`veth*` for all such)."""
    wanted, own_links = list(subnets), list(links)
    names = {link.index: link.name for link in list_links(nl)}
    own = {address.ip for address in list_addresses(nl)}
    return [
        Clash(subnet=subnet, route=route.dst, link=names[route.index])
        for version in sorted({subnet.version for subnet in wanted})
        for route in list_main_routes(nl, version)
        if route.proto != PODWIRE_PROTO and route.index in names
        if not any(fnmatchcase(names[route.index], link) for link in own_links)
        if not (route.dst.size == 1 and route.dst.ip in own)
        for subnet in wanted
        if subnet.version == version and route.dst in subnet
    ]
