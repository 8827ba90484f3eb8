"""Compares what an ADD of the attach mode `routed` made with what the kernel holds: CHECK, and repair."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.attach import interface
from cni_plugin.attach.gateway import compare_forwarding
from cni_plugin.config.network import alias_prefix
from cni_plugin.contract.errors import broken
from cni_plugin.kernel.link import IFF_UP, Link, get_link, set_group, set_up
from cni_plugin.kernel.neigh import Neighbour, list_neighbours, set_neighbour
from cni_plugin.kernel.netconf import accept_ra, ensure_family, follows_routers, has_family, ignore_routers
from cni_plugin.kernel.nft_layout import POD_GROUP
from cni_plugin.kernel.route import PODWIRE_PROTO, RouteSpec, has_route, set_route

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.attach.routed import RoutedPlan
    from cni_plugin.contract.result import IPConfig, Result
    from cni_plugin.features.damage import Damage
    from cni_plugin.features.feature import Site
    from cni_plugin.kernel.netns import Namespace


def neighbour(ip: IPConfig, mac: str) -> Neighbour:
    """Return how the node finds an address of a pod whose interface has this MAC."""
    return Neighbour(address=ip.address.ip, mac=mac)


def host_route(ip: IPConfig, outside: Link) -> RouteSpec:
    """Return the node's route to an address behind the host's end of a veth."""
    return RouteSpec(dst=ip.address, index=outside.index, proto=PODWIRE_PROTO)


def check(plan: RoutedPlan, site: Site, result: Result) -> None:
    """Raise CNIError 100 for the first thing that is not as ADD left it."""
    from cni_plugin.features.damage import refuse

    host, pod = site.host, site.present_pod
    name = plan.pod.attachment.host_ifname
    outside = get_link(host.netlink, name)
    refuse(_compare_owner(plan, outside))
    inside = interface.require_link(pod, plan.pod.attachment)
    if outside is None or inside.index != outside.peer or inside.peer != outside.index:
        raise broken(f"interface {inside.name}: wanted the peer of {name}, found another link")
    interface.check_addresses(pod, inside, result)
    interface.check_routes(pod, inside, result)
    refuse(_compare_outside(host, outside, inside.mac, result.addresses_on(inside.name)))


def compare(plan: RoutedPlan, mtu: int, site: Site, result: Result) -> Iterator[Damage]:
    """Yield what the node does not hold of an attachment: its veth, and the way to its addresses."""
    from cni_plugin.features.damage import Damage

    del mtu
    name = plan.pod.attachment.ifname
    outside = get_link(site.host.netlink, plan.pod.attachment.host_ifname)
    yield from _compare_owner(plan, outside)
    if outside is None:
        return
    if outside.group != POD_GROUP:
        said = f"link {outside.name}: wanted it in the group {POD_GROUP}, found {outside.group}"
        join = partial(site.host.netlink.change, set_group(outside.name, POD_GROUP))
        yield Damage(kind="link", said=said, mend=join)
    macs = [each.mac.lower() for each in result.interfaces if each.sandbox and each.name == name]
    yield from _compare_outside(site.host, outside, "".join(macs[:1]), result.addresses_on(name))


def _compare_owner(plan: RoutedPlan, outside: Link | None) -> Iterator[Damage]:
    from cni_plugin.features.damage import Damage

    prefix = alias_prefix(plan.pod.attachment.identity, plan.pod.attachment.network)
    if outside is None or not outside.alias.startswith(prefix):
        found = repr(outside.alias) if outside else "none"
        said = f"link {plan.pod.attachment.host_ifname}: wanted alias {prefix!r}, found {found}"
        yield Damage(kind="link", said=said, mend=None)


def _compare_outside(host: Namespace, outside: Link, mac: str, ips: list[IPConfig]) -> Iterator[Damage]:
    """Compare the host's end and the way to the addresses behind it, whose interface has this MAC."""
    from cni_plugin.backend.route_conflicts import find_detour
    from cni_plugin.features.damage import Damage

    nl = host.netlink
    if not outside.flags & IFF_UP:
        said = f"link {outside.name}: wanted it up, found it down"
        yield Damage(kind="link", said=said, mend=partial(nl.change, set_up(outside.name)))
    if follows_routers(nl, outside.name):
        said = f"sysctl {accept_ra(outside.name)}: wanted 0, found 2"
        yield Damage(kind="sysctl", said=said, mend=partial(ignore_routers, nl, outside.name))
    yield from compare_forwarding(ips, host)
    for version in sorted({ip.address.version for ip in ips}):
        if not has_family(nl, outside.name, version):
            said = f"link {outside.name}: wanted IPv{version} on it, found it switched off"
            yield Damage(kind="sysctl", said=said, mend=partial(ensure_family, nl, outside.name, version))
        neighbours = list_neighbours(nl, outside.index, version)
        for ip in (ip for ip in ips if ip.address.version == version):
            wanted = neighbour(ip, mac)
            detours = list(find_detour(nl, ip.address, outside.index))
            if detours and not has_route(nl, ip.address.ip, outside.index):
                said = f"route {ip.address}: wanted it over {outside.name}, found none"
                way = set_route(host_route(ip, outside))
                yield Damage(kind="route", said=said, mend=partial(nl.change, way))
            else:
                yield from detours
            if wanted not in neighbours:
                said = f"neighbour {ip.address.ip}: wanted {mac} on {outside.name}, found none"
                told = set_neighbour(outside.index, wanted)
                yield Damage(kind="neighbour", said=said, mend=partial(nl.change, told))
