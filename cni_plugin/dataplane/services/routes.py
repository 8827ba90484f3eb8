"""Routes to the cluster's Service addresses, for a node that has no other route there.

Translation comes behind the first look at the routes: without one that covers the address a program of the
node is told that the network is unreachable. By hand: `ip route add CIDR dev lo proto 112 src ADDRESS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.kernel.link import get_link
from cni_plugin.kernel.nft import FAMILY
from cni_plugin.kernel.route import PODWIRE_PROTO, RouteSpec, list_own_routes, remove_route, set_route

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from netaddr import IPAddress, IPNetwork

    from cni_plugin.kernel.netlink import Netlink

_LOOPBACK = "lo"
_METRIC = 0x737663  # "svc": worse than whatever leads there already, and told from the routes to peers


def ensure_routes(nl: Netlink, cidrs: Iterable[IPNetwork], addresses: Sequence[IPAddress]) -> int:
    """Make these networks have a route, from the node's address, and no other; return the changes."""
    loopback = get_link(nl, _LOOPBACK)
    wanted = set(_plan_routes(cidrs, addresses, loopback.index)) if loopback else set()
    found = {route for version in FAMILY for route in list_own_routes(nl, version, _METRIC)}
    kept = {_essence(route) for route in wanted} & {_essence(route) for route in found}
    changes = [remove_route(route) for route in found if _essence(route) not in kept]
    changes += [set_route(route) for route in wanted if _essence(route) not in kept]
    nl.change(*changes)
    return len(changes)


def _plan_routes(
    cidrs: Iterable[IPNetwork], addresses: Sequence[IPAddress], index: int
) -> Iterable[RouteSpec]:
    for cidr in cidrs:
        source = next((each for each in addresses if each.version == cidr.version), None)
        if source is not None:
            yield RouteSpec(dst=cidr, index=index, source=source, priority=_METRIC, proto=PODWIRE_PROTO)


def _essence(route: RouteSpec) -> tuple[IPNetwork, IPAddress | None, int]:
    return route.dst, route.source, route.index
