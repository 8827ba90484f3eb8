"""Finds routes of others that take the packets for a network's pods: `ip route get ADDRESS`.

What another plugin or an operator has left leads elsewhere, by a better metric, a longer prefix or a
rule. And a subnet may be somebody else's from the beginning: `ip route show root SUBNET`. A route that
covers the subnet and more, such as the default, loses to ours and is no clash. Neither is one to an
address of the node itself (a tunnel's own end): the table `local` is asked before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from cni_plugin.features.damage import Damage
from cni_plugin.kernel.addr import list_addresses
from cni_plugin.kernel.link import list_links
from cni_plugin.kernel.route import (
    KERNEL_PROTO,
    MAIN_TABLE,
    PODWIRE_PROTO,
    find_path,
    find_route,
    list_main_routes,
    list_own_routes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from netaddr import IPNetwork

    from cni_plugin.kernel.netlink import Netlink
    from cni_plugin.kernel.route import RouteSpec


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


def find_detours(nl: Netlink, priority: int) -> Iterator[Damage]:
    """Yield the peers' subnets whose packets do not take the route that a sync has made for them."""
    for version in (4, 6):
        for route in list_own_routes(nl, version, priority):
            if route.table in {None, MAIN_TABLE}:
                yield from find_detour(nl, route.dst, route.index)


def find_detour(nl: Netlink, dst: IPNetwork, index: int) -> Iterator[Damage]:
    """Yield what takes the packets for `dst` by another link than the one with this index."""
    # The first address of a peer's subnet is the tunnel's end there; an address of this node is no detour.
    address = dst[1] if dst.size > 1 else dst.ip
    path = find_path(nl, address)
    if path is not None and (path.local or path.index == index):
        return
    names = {link.index: link.name for link in list_links(nl)}
    found = f"that they take {names.get(path.index, '')}" if path else "that they have no way"
    route = find_route(nl, address)
    yield Damage(
        kind="route",
        said=f"route {dst}: wanted packets for it to take {names.get(index, '')}, found {found}",
        mend=None,
        remedy=_render_removal(route, names) if route and _is_left(route) else f"ip route get {address}",
    )


def _is_left(route: RouteSpec) -> bool:
    """Tell whether the route is for these packets alone: not a link's own network, and not the default."""
    return route.dst.prefixlen > 0 and route.proto not in {PODWIRE_PROTO, KERNEL_PROTO}


def _render_removal(route: RouteSpec, names: dict[int, str]) -> str:
    words = ["ip", f"-{route.dst.version}", "route", "del", str(route.dst), "dev", names[route.index]]
    words += ["metric", str(route.priority)] if route.priority else []
    words += ["table", str(route.table)] if route.table not in {None, MAIN_TABLE} else []
    return " ".join(words)
