"""The tunnel of a VXLAN network: its device, and what it must hold for the peers.

Two forms. Flat: the device is a port of the pods' bridge and floods what it does not know to every
peer (or to a multicast group). Routed: the device stands alone, every peer has subnets of its own and
is one FDB entry, one neighbour per inner family and one route per subnet. A tunnel endpoint's MAC is
derived from VNI and address, so that nobody has to be told it.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from netaddr import IPAddress, IPNetwork

from cni_plugin.backend import node_traffic
from cni_plugin.backend.peer_list import Peer, PeerSource, find_peers, refuse_conflicts
from cni_plugin.backend.peers import Desired, network_priority, peer_route
from cni_plugin.backend.shared_facts import PeerPath
from cni_plugin.backend.stamp import read_stamp, stamp_path_of
from cni_plugin.backend.underlay import (
    VXLAN_OVERHEAD,
    Underlay,
    UnderlayOptions,
    find_underlay,
    ourselves,
    overlay_mtu,
)
from cni_plugin.config.network import unnamed_group, wants_gateway
from cni_plugin.contract.errors import invalid_config
from cni_plugin.contract.inet import link_local, parse_ip, width
from cni_plugin.kernel.addr import list_addresses
from cni_plugin.kernel.neigh import ALL_ZERO, FdbEntry, Neighbour
from cni_plugin.kernel.route import find_path
from cni_plugin.kernel.vxlan import VxlanSpec, find_local

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.config.network import Addressing, Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.kernel.netlink import Netlink
    from cni_plugin.kernel.route import RouteSpec

MAX_VNI = 2**24 - 1
DEFAULT_PORT = 4789  # IANA's, RFC 7348


@dataclass(frozen=True, slots=True, kw_only=True)
class VxlanOptions:
    """The keys under `vxlan` that are the device's own; `ageing` in seconds."""

    vni: int
    port: int
    learning: bool
    ttl: int
    tos: int
    ageing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """The keys under `vxlan`. `mtu` and `mtu_overhead` in bytes."""

    network: str
    stamp_path: str
    vxlan: VxlanOptions
    options: UnderlayOptions
    source: PeerSource
    routed: bool
    direct_routing: bool
    mtu: int
    mtu_overhead: int
    subnets: tuple[IPNetwork, ...]
    addresses: tuple[IPAddress, ...]
    """This node's own, as its peers list them; empty for the one on the underlay."""
    followed: bool
    """As in `SyncMark`."""

    def digest(self, underlay: Underlay) -> str:
        """Return a name for everything that decides what the kernel must hold."""
        settings = (
            self.vxlan.vni,
            self.vxlan.port,
            self.routed,
            self.direct_routing,
            self.subnets,
            self.addresses,
            underlay,
        )
        return hashlib.sha256(f"{settings} {self.source.digest}".encode()).hexdigest()[:16]

    @property
    def device(self) -> str:
        """Return the name of the VXLAN device."""
        return f"vxlan{self.vxlan.vni}"


def parse_tunnel(document: Fields, network: Network, addressing: Addressing, *, segmented: bool) -> Tunnel:
    """Return the tunnel of a network, or raise CNIError 7 for what cannot be.

    `segmented` tells whether the pods share a segment, which the flat form would prolong.
    """
    fields = document.section("vxlan")
    if fields is None:
        raise invalid_config('"vxlan": wanted an object with at least "vni", found none')
    stamp_path, shared = stamp_path_of(network), _is_shared(document)
    source = find_peers(fields, read_stamp(stamp_path))
    options = _parse_underlay(fields)
    # A node without peers is the first of a routed network when its ranges cover their subnets, which
    # the flat form refuses as soon as there is a peer.
    alone = wants_gateway(document) and not shared and any(r.whole for r in addressing.ranges)
    first = options.group is None and source.nobody and (alone or not segmented)
    routed = source.with_subnets or first
    if not routed and not segmented:
        raise invalid_config(
            '"vxlan" of pods that have links of their own: wanted subnets behind the peers, found none; '
            'one segment over all nodes takes "mode" bridge'
        )
    tunnel = Tunnel(
        network=network.attachment.network,
        stamp_path=stamp_path,
        vxlan=_parse_vxlan(fields, routed=routed),
        options=options,
        source=source,
        routed=routed,
        direct_routing=fields.boolean("directRouting"),
        mtu=network.mtu,
        mtu_overhead=network.mtu_overhead,
        subnets=tuple(sorted({r.subnet for r in addressing.ranges})),
        addresses=tuple(parse_ip(text, '"vxlan.addresses"') for text in fields.strings("addresses")),
        followed=bool(network.state_file),
    )
    whole = None if shared else next((r.subnet for r in addressing.ranges if r.whole), None)
    _refuse_contradictions(tunnel, whole)
    return tunnel


def _parse_vxlan(fields: Fields, *, routed: bool) -> VxlanOptions:
    vni = fields.integer("vni", 1, MAX_VNI)
    if vni is None:
        raise invalid_config(f'"vxlan.vni": wanted a number in 1..{MAX_VNI}, found none')
    return VxlanOptions(
        vni=vni,
        port=fields.integer("port", 1, 65535) or DEFAULT_PORT,
        learning=fields.boolean("learning", default=not routed),
        ttl=fields.integer("ttl", 0, 255) or 0,
        tos=fields.integer("tos", 0, 255) or 0,
        ageing=300 if (ageing := fields.integer("ageing", 0, 2**31)) is None else ageing,
    )


def _is_shared(document: Fields) -> bool:
    ipam = document.section("ipam")
    return ipam is not None and ipam.boolean("shared")


def _parse_underlay(fields: Fields) -> UnderlayOptions:
    local, group = fields.string("local"), fields.string("group")
    options = UnderlayOptions(
        device=fields.string("device"),
        local=parse_ip(local, '"vxlan.local"') if local else None,
        group=parse_ip(group, '"vxlan.group"') if group else None,
    )
    if options.group is not None and not options.group.is_multicast():
        raise invalid_config(f'"vxlan.group" must be a multicast address, found {options.group}')
    return options


def _refuse_contradictions(tunnel: Tunnel, whole: IPNetwork | None) -> None:
    """Raise CNIError 7; `whole` is a subnet that one range has all of, though nodes may share it."""
    has_peers = tunnel.source.is_named
    if has_peers and tunnel.options.group is not None:
        raise invalid_config('"vxlan.peers" and "vxlan.group" exclude each other, found both')
    if tunnel.routed:
        if tunnel.vxlan.learning:
            raise invalid_config('"vxlan.learning": wanted it off with subnets behind the peers, found it on')
        if not tunnel.subnets:
            raise invalid_config(
                '"vxlan" with subnets behind the peers: wanted ranges of "podwire-ipam", found none'
            )
        return
    if tunnel.direct_routing:
        raise invalid_config('"vxlan.directRouting" needs subnets behind the peers, found none')
    if whole is not None and (has_peers or tunnel.options.group is not None):
        raise invalid_config(
            f'"ipam.ranges": {whole} is the whole segment and every node has a store of its own, so two '
            "nodes would give one address twice; give each node its own rangeStart and rangeEnd, or say "
            '"shared": true'
        )


def locate(tunnel: Tunnel, nl: Netlink) -> tuple[Underlay, int]:
    """Return the underlay of this node and the MTU (bytes) that the tunnel leaves."""
    kept = None if tunnel.options.local else find_local(nl, tunnel.device)
    underlay = find_underlay(nl, tunnel.options, tunnel.source.first(), kept)
    overhead = VXLAN_OVERHEAD[underlay.address.version]
    return underlay, overlay_mtu(tunnel.mtu, underlay, overhead, tunnel.mtu_overhead)


def vxlan_spec(tunnel: Tunnel, underlay: Underlay, mtu: int) -> VxlanSpec:
    """Return the device that the network needs on this node."""
    return VxlanSpec(
        name=tunnel.device,
        network=tunnel.network,
        vni=tunnel.vxlan.vni,
        port=tunnel.vxlan.port,
        underlay=underlay.index,
        local=underlay.address,
        mac=endpoint_mac(tunnel.vxlan.vni, underlay.address),
        mtu=mtu,
        group=tunnel.options.group,
        learning=tunnel.vxlan.learning,
        ttl=tunnel.vxlan.ttl,
        tos=tunnel.vxlan.tos,
        ageing=tunnel.vxlan.ageing,
        unnamed=unnamed_group(tunnel.network),
    )


def endpoint_mac(vni: int, address: IPAddress | str) -> str:
    """Return the MAC of what stands at `address` in a VNI: the same on every node that asks."""
    digest = hashlib.sha256(f"{vni} {address}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in bytes([0x02, *digest[:5]]))


def desired_state(tunnel: Tunnel, underlay: Underlay, device: int, nl: Netlink) -> Desired:
    """Return all that the kernel must hold for the peers, who are read and checked here.

    Raises CNIError 7 for a peer that is this node, of another family than the underlay, or whose
    subnets overlap another's or ours.
    """
    peers = tunnel.source.read()
    present = {address.ip for address in list_addresses(nl)}
    _check_peers(tunnel, underlay, peers, present)
    priority = network_priority(tunnel.network)
    if not tunnel.routed:
        fdb = frozenset(FdbEntry(mac=ALL_ZERO, vtep=peer.vtep) for peer in peers)
        return Desired(device=device, priority=priority, fdb=fdb)
    direct = _find_direct(nl, peers) if tunnel.direct_routing else {}
    macs = {peer: endpoint_mac(tunnel.vxlan.vni, peer.vtep) for peer in peers}
    hops = {(p, s.version): next_hop(p, macs[p], s.version) for p in peers for s in p.subnets}
    # The kernel takes no source that the node does not have.
    own = [a for a in tunnel.addresses or (underlay.address,) if a in present]
    sources = {address.version: address for address in reversed(own)}
    routes = (
        _direct_route(peer, subnet, direct[peer.vtep], priority)
        if peer.vtep in direct and subnet.version == peer.vtep.version
        else replace(
            _tunnel_route(hops[peer, subnet.version], subnet, device, priority),
            source=sources.get(subnet.version),
        )
        for peer in peers
        for subnet in peer.subnets
    )
    across = (
        replace(_tunnel_route(hops[peer, a.version], _single(a), device, priority), table=priority)
        for peer in peers
        for a in peer.addresses
        if (peer, a.version) in hops and not (peer.vtep in direct and a.version == peer.vtep.version)
    )
    return Desired(
        device=device,
        priority=priority,
        rules=node_traffic.list_rules(tunnel.subnets, priority),
        addresses=frozenset(map(inner_address, _first_of_family(tunnel.subnets))),
        fdb=frozenset(FdbEntry(mac=mac, vtep=peer.vtep) for peer, mac in macs.items()),
        neighbours=frozenset(Neighbour(address=hop, mac=macs[peer]) for (peer, _), hop in hops.items()),
        routes=frozenset(itertools.chain(routes, across)),
    )


def ways_to_peers(tunnel: Tunnel, underlay: Underlay, mtu: int) -> tuple[PeerPath, ...]:
    """Return the ways to the peers; flat, nothing inside is known to be one peer's alone."""
    overhead = VXLAN_OVERHEAD[underlay.address.version]
    own = {s.version: inner_address(s).ip for s in _first_of_family(tunnel.subnets)}
    return tuple(
        PeerPath(
            outer=peer.vtep,
            link=underlay.name,
            mtu=mtu + overhead,
            inner=tuple(
                (own[s.version], inner_address(s).ip)
                for s in _first_of_family(peer.subnets)
                if tunnel.routed and s.version in own
            ),
            inner_mtu=mtu,
            device=tunnel.device,
            port=tunnel.vxlan.port,
        )
        for peer in tunnel.source.read()
    )


def _check_peers(tunnel: Tunnel, underlay: Underlay, peers: tuple[Peer, ...], own: set[IPAddress]) -> None:
    for peer in peers:
        if peer.vtep.version != underlay.address.version:
            raise invalid_config(f"peer {peer}: wanted IPv{underlay.address.version} like {underlay.address}")
        if peer.vtep in own:
            raise ourselves(peer)
        if tunnel.routed and not peer.subnets:
            raise invalid_config(f"peer {peer}: wanted subnets behind it as behind the others, found none")
    if tunnel.routed:
        refuse_conflicts(tunnel.subnets, peers, underlay.address)


def next_hop(peer: Peer, mac: str, version: int) -> IPAddress:
    """Return what stands for a peer inside, in one family (4 or 6).

    Of IPv6 the link-local address: the kernel refuses any other on link while a route of another
    link covers it, be it one to all nodes' subnets (net/ipv6/route.c, ip6_route_check_nh_onlink).
    """
    if version == 6:
        return link_local(mac)
    return next(inner_address(subnet).ip for subnet in _first_of_family(peer.subnets))


def inner_address(subnet: IPNetwork) -> IPNetwork:
    """Return the address of a node's tunnel endpoint inside: its subnet's first, which no pod gets."""
    return IPNetwork(f"{subnet.network}/{width(subnet.ip)}")


def _first_of_family(subnets: tuple[IPNetwork, ...]) -> Iterator[IPNetwork]:
    for version in (4, 6):
        yield from [subnet for subnet in subnets if subnet.version == version][:1]


def _find_direct(nl: Netlink, peers: tuple[Peer, ...]) -> dict[IPAddress, int]:
    """Return the peers that are on a link of ours, and which."""
    paths = {peer.vtep: find_path(nl, peer.vtep) for peer in peers}
    return {vtep: path.index for vtep, path in paths.items() if path is not None and path.gateway is None}


def _direct_route(peer: Peer, subnet: IPNetwork, index: int, priority: int) -> RouteSpec:
    """Return the plain route to a peer that is a neighbour of the subnet's family."""
    return peer_route(subnet, peer.vtep, index, priority=priority, onlink=False)


def _tunnel_route(hop: IPAddress, subnet: IPNetwork, device: int, priority: int) -> RouteSpec:
    return peer_route(subnet, hop, device, priority=priority, onlink=hop.version == 4)


def _single(address: IPAddress) -> IPNetwork:
    return IPNetwork(f"{address}/{width(address)}")
