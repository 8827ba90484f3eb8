"""The attach mode `routed`: a veth with a /32 and a /128, and host routes instead of a bridge.

The pod's next hop is 169.254.1.1 and fe80::1, which nobody has: permanent neighbours on both ends
say where they are, so that no proxy ARP is needed, no address sits on the host's end, and the node
speaks to its pods from an address of its own. Strict rp_filter holds. With `hostGateway` the
pods of other nodes are behind plain routes to those nodes.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from netaddr import IPAddress, IPNetwork

from cni_plugin.attach import interface
from cni_plugin.attach.gateway import served_by_default
from cni_plugin.attach.mode import Mode
from cni_plugin.attach.veth import add_plain_veth
from cni_plugin.backend.peer_list import PeerSource, find_peers, refuse_conflicts
from cni_plugin.backend.peers import (
    Desired,
    SyncMark,
    compare,
    is_trusted,
    network_priority,
    peer_route,
    settle,
)
from cni_plugin.backend.shared_facts import PeerPath, Survey
from cni_plugin.backend.stamp import locked, read_stamp, stamp_path_of
from cni_plugin.backend.underlay import UnderlayOptions, find_underlay
from cni_plugin.config.network import RemoteNetworks, alias_prefix
from cni_plugin.contract.errors import CNIError, Code, broken, invalid_config
from cni_plugin.contract.inet import default_route, width
from cni_plugin.contract.result import Interface, IPConfig, Result, Route
from cni_plugin.kernel.link import Link, get_link, get_link_by_index
from cni_plugin.kernel.neigh import Neighbour, list_neighbours, set_neighbour
from cni_plugin.kernel.netconf import ensure_family, ensure_forwarding, ignore_routers, require_forwarding
from cni_plugin.kernel.route import PODWIRE_PROTO, RouteSpec, find_path, list_routes, set_route
from cni_plugin.kernel.sysctl import FORWARDING, get_sysctl
from ipam.seam import waits

if TYPE_CHECKING:
    from contextlib import ExitStack

    from cni_plugin.config.network import Addressing, Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.features.feature import Site
    from cni_plugin.kernel.netlink import Netlink
    from cni_plugin.kernel.netns import Namespace

log = logging.getLogger("podwire")

NEXT_HOP = {4: IPAddress("169.254.1.1"), 6: IPAddress("fe80::1")}
_CARRIER_TIMEOUT = 2.0  # seconds
_CARRIER_POLL = 0.0003


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedPlan:
    """What an attachment is to be."""

    pod: interface.InterfacePlan
    peers: PeerSource | None
    device: str
    """The link whose MTU counts; empty for the one towards the first peer."""
    stamp_path: str


def plan(fields: Fields, network: Network, addressing: Addressing) -> RoutedPlan:
    """Return the plan for one attachment, or raise CNIError 7 for what cannot be."""
    if not network.ipam_type:
        raise invalid_config('"mode" routed: wanted addresses to route to, found no "ipam"')
    gateway = fields.section("hostGateway")
    stamp_path = stamp_path_of(network)
    made = RoutedPlan(
        pod=interface.plan_interface(fields, network, addressing),
        peers=find_peers(gateway, read_stamp(stamp_path)) if gateway else None,
        device=gateway.string("device") if gateway else "",
        stamp_path=stamp_path,
    )
    if network.mtu:
        interface.refuse_small_mtu(network.mtu, addressing.stated_families)
    return made


def connect(plan: RoutedPlan, site: Site, undo: ExitStack) -> int:
    """Bring the routes to other nodes in sync and make the pod's veth; return its MTU in bytes."""
    host, pod = site.host, site.present_pod
    interface.refuse_existing(pod, site.attachment)
    if plan.peers is not None and plan.peers.problem:
        log.warning("%s; the peers of the last sync stay in force", plan.peers.problem)
    mtu = plan.pod.mtu or _automatic_mtu(plan, host)
    interface.refuse_small_mtu(mtu, plan.pod.addressing.stated_families)
    _ensure_routes(plan, host, doubt=False)
    add_plain_veth(plan.pod, mtu, host, pod, undo)
    return mtu


def _automatic_mtu(plan: RoutedPlan, host: Namespace) -> int:
    """Return the MTU of the device named, else of that towards the peers, else of the default route's."""
    if plan.peers is not None:
        first = list(plan.peers.first())[:1]
        if first or plan.device:
            options = UnderlayOptions(device=plan.device)
            return find_underlay(host.netlink, options, first).mtu - plan.pod.mtu_overhead
    return interface.automatic_mtu(host.netlink, plan.pod.addressing.families) - plan.pod.mtu_overhead


def _ensure_routes(plan: RoutedPlan, host: Namespace, *, doubt: bool) -> int:
    if plan.peers is None:
        return 0
    nl, priority = host.netlink, network_priority(plan.pod.attachment.network)
    mark = SyncMark(path=plan.stamp_path, digest=_digest(plan.peers, plan), content=plan.peers.content)
    if not doubt and is_trusted(nl, mark, 0, priority):
        return 0
    with locked(mark.path):
        return settle(nl, mark, desired_routes(plan, nl))


def _digest(peers: PeerSource, plan: RoutedPlan) -> str:
    own = [str(r.subnet) for r in plan.pod.addressing.ranges]
    return hashlib.sha256(f"{own} {peers.digest}".encode()).hexdigest()[:16]


def desired_routes(plan: RoutedPlan, nl: Netlink) -> Desired:
    """Return the routes to the peers' subnets; CNIError 7 for a peer that is no neighbour of ours."""
    priority = network_priority(plan.pod.attachment.network)
    peers = plan.peers.read() if plan.peers else ()
    refuse_conflicts((r.subnet for r in plan.pod.addressing.ranges), peers)
    hops = {address: on_link(nl, address) for peer in peers for address in peer.addresses}
    routes = set()
    for peer in peers:
        for subnet in peer.subnets:
            gateway = next((a for a in peer.addresses if a.version == subnet.version), None)
            if gateway is None:
                raise invalid_config(
                    f"peer {peer}: wanted an IPv{subnet.version} address for {subnet}, found none"
                )
            routes.add(peer_route(subnet, gateway, hops[gateway], priority=priority, onlink=False))
    return Desired(device=0, priority=priority, routes=frozenset(routes))


def on_link(nl: Netlink, address: IPAddress) -> int:
    """Return the link that a peer is a neighbour on; CNIError 7 or 11 when it is none."""
    path = find_path(nl, address)
    if path is None:
        raise CNIError(Code.TRY_AGAIN_LATER, f"peer {address}: wanted a route to it, found none")
    if path.local:
        raise invalid_config(f"peer {address}: wanted another node, found an address of this one")
    if path.gateway is not None:
        raise invalid_config(
            f'"hostGateway" peer {address}: wanted a neighbour, found it behind {path.gateway}'
        )
    return path.index


def configure(plan: RoutedPlan, connection: int, site: Site, addresses: Result) -> Result:
    """Give the pod its addresses and both ends their neighbours and routes."""
    host, pod = site.host, site.present_pod
    interface.refuse_unassignable(addresses.ips)
    interface.refuse_small_mtu(connection, {ip.address.version for ip in addresses.ips})
    addresses = narrow(addresses)
    inside = interface.require_link(pod, site.attachment)
    outside = _require(host, site.attachment.host_ifname)
    ignore_routers(host.netlink, outside.name)
    routes = tuple(map(_over_next_hop, addresses.routes))
    outfit = interface.Outfit(ips=addresses.ips, routes=routes, dad=plan.pod.dad, follows_routers=False)
    interface.dress(pod, inside, outfit)
    versions = sorted({ip.address.version for ip in addresses.ips})
    hops = [Neighbour(address=NEXT_HOP[version], mac=outside.mac) for version in versions]
    pod.netlink.change(*(set_neighbour(inside.index, hop) for hop in hops))
    for version in versions:
        ensure_family(host.netlink, outside.name, version)
        ensure_forwarding(host.netlink, version)
    host.netlink.change(
        *(set_neighbour(outside.index, _neighbour(ip, inside)) for ip in addresses.ips),
        *(set_route(_host_route(ip, outside)) for ip in addresses.ips),
    )
    _wait_for_carrier(plan, host)
    return _result(plan, outside, inside, addresses)


def narrow(addresses: Result) -> Result:
    """Return the delegate's result as a routed pod has it: single addresses behind one next hop.

    What is said to be on the link stays said so.
    """
    ips = tuple(
        IPConfig(
            address=_single(ip.address.ip), gateway=NEXT_HOP[ip.address.version], network=ip.address.cidr
        )
        for ip in addresses.ips
    )
    routes = tuple(
        route if interface.is_link_scope(route) else _over_next_hop(route) for route in addresses.routes
    )
    versions = sorted({ip.address.version for ip in ips} - served_by_default(routes))
    routes += tuple(Route(dst=default_route(version), gw=NEXT_HOP[version]) for version in versions)
    return replace(addresses, ips=ips, routes=routes)


def _over_next_hop(route: Route) -> Route:
    """Return the route as the pod gets it: on its link there is nobody but the node, whatever its scope."""
    scope = None if interface.is_link_scope(route) else route.scope
    return replace(route, gw=NEXT_HOP[route.dst.version], scope=scope)


def _single(address: IPAddress) -> IPNetwork:
    return IPNetwork(f"{address}/{width(address)}")


def _neighbour(ip: IPConfig, inside: Link) -> Neighbour:
    return Neighbour(address=ip.address.ip, mac=inside.mac)


def _host_route(ip: IPConfig, outside: Link) -> RouteSpec:
    return RouteSpec(dst=ip.address, index=outside.index, proto=PODWIRE_PROTO)


def _require(host: Namespace, name: str) -> Link:
    link = get_link(host.netlink, name)
    if link is None:
        raise CNIError(Code.TRY_AGAIN_LATER, f"link {name}: wanted it, found it removed while it was set up")
    return link


def _wait_for_carrier(plan: RoutedPlan, host: Namespace) -> None:
    """Wait until the host's end transmits: the kernel learns of the pod's carrier asynchronously."""
    for _ in waits.looks(_CARRIER_TIMEOUT, _CARRIER_POLL):
        if _require(host, plan.pod.attachment.host_ifname).carrier_seen:
            return
    raise CNIError(
        Code.TRY_AGAIN_LATER,
        f"link {plan.pod.attachment.host_ifname}: wanted a carrier in {_CARRIER_TIMEOUT} s, found none",
    )


def _result(plan: RoutedPlan, outside: Link, inside: Link, addresses: Result) -> Result:
    interfaces = (
        Interface(name=outside.name, mac=outside.mac, mtu=outside.mtu),
        Interface(name=inside.name, mac=inside.mac, mtu=inside.mtu, sandbox=plan.pod.attachment.netns),
    )
    ips = tuple(replace(ip, interface=1) for ip in addresses.ips)
    return Result(interfaces=interfaces, ips=ips, routes=addresses.routes, dns=plan.pod.dns or addresses.dns)


def check(plan: RoutedPlan, site: Site, result: Result) -> None:
    """Raise CNIError 100 for the first thing that is not as ADD left it."""
    host, pod = site.host, site.present_pod
    outside = get_link(host.netlink, plan.pod.attachment.host_ifname)
    prefix = alias_prefix(plan.pod.attachment.identity, plan.pod.attachment.network)
    if outside is None or not outside.alias.startswith(prefix):
        found = repr(outside.alias) if outside else "none"
        raise broken(f"link {plan.pod.attachment.host_ifname}: wanted alias {prefix!r}, found {found}")
    inside = interface.require_link(pod, site.attachment)
    if inside.index != outside.peer or inside.peer != outside.index:
        raise broken(f"interface {inside.name}: wanted the peer of {outside.name}, found another link")
    interface.check_addresses(pod, inside, result)
    interface.check_routes(pod, inside, result)
    _check_host_side(host, outside, inside, result.addresses_on(inside.name))
    if plan.peers is not None:
        difference = compare(host.netlink, desired_routes(plan, host.netlink))
        for change in (*difference.missing, *difference.excess):
            raise broken(
                f"network {plan.pod.attachment.network}: wanted in sync, found undone: {change.command}"
            )


def _check_host_side(host: Namespace, outside: Link, inside: Link, ips: list[IPConfig]) -> None:
    for version in sorted({ip.address.version for ip in ips}):
        key = FORWARDING[version]
        if get_sysctl(key) == "0":
            raise broken(f"sysctl {key}: wanted 1, found 0")
        routes = {r.dst for r in list_routes(host.netlink, version) if r.index == outside.index}
        neighbours = list_neighbours(host.netlink, outside.index, version)
        for ip in (ip for ip in ips if ip.address.version == version):
            if ip.address not in routes:
                raise broken(f"route {ip.address}: wanted it over {outside.name}, found none")
            if _neighbour(ip, inside) not in neighbours:
                raise broken(f"neighbour {ip.address.ip}: wanted {inside.mac} on {outside.name}, found none")


def elsewhere(plan: RoutedPlan) -> RemoteNetworks:
    """Return the networks behind the peers, and the peers, who have plain routes back."""
    return plan.peers.elsewhere(nodes=True) if plan.peers else RemoteNetworks()


def forwarded_by(plan: RoutedPlan) -> str:
    """Return the pattern of the pods' host ends."""
    del plan
    return "veth*"


def synchronize(plan: RoutedPlan, host: Namespace) -> int:
    """Compare the routes to other nodes and mend what differs; return the number of changes."""
    changes = _ensure_routes(plan, host, doubt=True)
    if plan.peers is not None and plan.peers.problem:
        raise invalid_config(f"{plan.peers.problem}; the peers of the last sync stay in force")
    return changes


def explain_mtu(plan: RoutedPlan, host: Namespace) -> list[str]:
    """Return the computation of the MTU, a step a line."""
    automatic = _automatic_mtu(plan, host)
    if plan.pod.mtu:
        return [f"pods get {plan.pod.mtu}, as configured", f"automatic would be {automatic}"]
    return [
        f"the interface towards other nodes carries {automatic + plan.pod.mtu_overhead}",
        f"mtuOverhead takes {plan.pod.mtu_overhead}",
        f"pods get {automatic}",
    ]


def survey(plan: RoutedPlan, host: Namespace) -> Survey:
    """Return how the routes to other nodes differ from what is wanted, and the ways there."""
    nl, mtu = host.netlink, plan.pod.mtu or _automatic_mtu(plan, host)
    difference = compare(nl, desired_routes(plan, nl))
    peers = plan.peers.read() if plan.peers else ()
    hops = [(address, get_link_by_index(nl, on_link(nl, address))) for p in peers for address in p.addresses]
    return Survey(
        undone=tuple(change.command for change in (*difference.missing, *difference.excess)),
        ways=tuple(PeerPath(outer=address, link=link.name, mtu=mtu) for address, link in hops if link),
        mtu=mtu,
    )


def ready(plan: RoutedPlan, host: Namespace) -> None:
    """Raise CNIError 50 when a pod could not be attached here now."""
    try:
        for version in sorted(plan.pod.addressing.families):
            require_forwarding(version, plan.pod.attachment.host_ifname)
        if plan.peers is not None:
            desired_routes(plan, host.netlink)
    except CNIError as error:
        raise CNIError(Code.NOT_AVAILABLE, error.msg, error.details) from error


MODE = Mode(
    plan=plan,
    connect=connect,
    configure=configure,
    check=check,
    ready=ready,
    elsewhere=elsewhere,
    forwarded_by=forwarded_by,
    synchronize=synchronize,
    explain_mtu=explain_mtu,
    survey=survey,
)
