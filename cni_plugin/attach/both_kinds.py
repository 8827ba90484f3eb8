"""Pods on a bridge beside routed ones, while a network changes its mode: they reach each other.

A routed pod says everything to the node, which knows the bridge. A pod on the bridge asks the bridge for its
neighbour, so the node answers there in the routed pods' stead, at once: one proxy neighbour for each of
their addresses. By hand: `ip neigh add proxy ADDRESS dev cni0`, `ip ntable change name arp_cache dev cni0
proxy_delay 0`. They go with the routes: the next sync removes what no route is there for any more.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from cni_plugin.kernel.link import get_link, list_links
from cni_plugin.kernel.neigh import ABSENT, add_proxy, list_proxies, remove_proxy
from cni_plugin.kernel.netconf import answer_for_others
from cni_plugin.kernel.route import PODWIRE_PROTO, list_main_routes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from netaddr import IPAddress, IPNetwork

    from cni_plugin.kernel.link import Link
    from cni_plugin.kernel.netlink import Change
    from cni_plugin.kernel.netns import Namespace

HOST_ENDS = "veth*"  # of routed pods


def find_bridge(name: str, host: Namespace) -> Link | None:
    """Return the bridge that pods of the network may be on; None when there is none."""
    bridge = get_link(host.netlink, name) if name else None
    return bridge if bridge is not None and bridge.kind == "bridge" else None


def introduce(bridge: Link, addresses: Iterable[IPAddress], host: Namespace) -> None:
    """Let the pods on the bridge find a routed pod's addresses."""
    wanted = list(addresses)
    answer_for_others(bridge.name, sorted({address.version for address in wanted}))
    host.netlink.change(*(add_proxy(bridge.index, address) for address in wanted))


def ensure(name: str, subnets: Collection[IPNetwork], host: Namespace) -> int:
    """Let the pods on the bridge find all routed pods and nobody else; return the number of changes."""
    bridge = find_bridge(name, host)
    if bridge is None:
        return 0
    missing, excess = _compare(bridge, subnets, host)
    if missing:
        introduce(bridge, missing, host)
    host.netlink.change(*(remove_proxy(bridge.index, address) for address in excess), tolerate=ABSENT)
    return len(missing) + len(excess)


def list_undone(name: str, subnets: Collection[IPNetwork], host: Namespace) -> list[str]:
    """Return what `ensure` would do, as commands."""
    bridge = find_bridge(name, host)
    if bridge is None:
        return []
    missing, excess = _compare(bridge, subnets, host)
    changes: list[Change] = [add_proxy(bridge.index, address) for address in sorted(missing)]
    changes += [remove_proxy(bridge.index, address) for address in sorted(excess)]
    return [change.command for change in changes]


def _compare(
    bridge: Link, subnets: Collection[IPNetwork], host: Namespace
) -> tuple[set[IPAddress], set[IPAddress]]:
    nl = host.netlink
    ends = {link.index for link in list_links(nl, kind="veth") if fnmatchcase(link.name, HOST_ENDS)}
    versions = sorted({subnet.version for subnet in subnets})
    routed = {
        route.dst.ip
        for version in versions
        for route in list_main_routes(nl, version)
        if route.proto == PODWIRE_PROTO and route.index in ends and route.dst.size == 1
        if any(route.dst in subnet for subnet in subnets)
    }
    answered = {address for version in versions for address in list_proxies(nl, bridge.index, version)}
    return routed - answered, answered - routed
