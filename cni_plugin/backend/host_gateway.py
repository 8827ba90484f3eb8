"""The backend `hostGateway`: the pods of other nodes are behind plain routes to those nodes.

The peers must be neighbours on a link of this node. Packets cross the underlay as the pods sent
them, with its whole MTU. By hand: `ip route add SUBNET via NODE dev LINK proto 112`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.backend.backend import Backend
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
from cni_plugin.backend.shared_facts import PeerPath
from cni_plugin.backend.stamp import locked, read_stamp, stamp_path_of
from cni_plugin.backend.underlay import UnderlayOptions, explain_whole_mtu, find_underlay
from cni_plugin.contract.errors import CNIError, Code, invalid_config
from cni_plugin.kernel.link import get_link_by_index
from cni_plugin.kernel.route import find_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from netaddr import IPAddress, IPNetwork

    from cni_plugin.config.network import Addressing, Network, RemoteNetworks
    from cni_plugin.contract.fields import Fields
    from cni_plugin.kernel.netlink import Netlink
    from cni_plugin.kernel.netns import Namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayReach:
    """The keys under `hostGateway`. `mtu` and `mtu_overhead` in bytes."""

    network: str
    stamp_path: str
    source: PeerSource
    device: str
    """The link whose MTU counts; empty for the one towards the first peer."""
    subnets: tuple[IPNetwork, ...]
    mtu: int
    mtu_overhead: int

    @property
    def digest(self) -> str:
        """Return a name for everything that decides what the kernel must hold."""
        own = [str(subnet) for subnet in self.subnets]
        return hashlib.sha256(f"{own} {self.source.digest}".encode()).hexdigest()[:16]


def plan(document: Fields, network: Network, addressing: Addressing, *, segmented: bool) -> GatewayReach:
    """Return what the section asks for, or raise CNIError 7 for what cannot be."""
    del segmented
    fields, stamp_path = document.section("hostGateway"), stamp_path_of(network)
    if fields is None:
        raise invalid_config('"hostGateway": wanted an object, found none')
    return GatewayReach(
        network=network.attachment.network,
        stamp_path=stamp_path,
        source=find_peers(fields, read_stamp(stamp_path)),
        device=fields.string("device"),
        subnets=tuple(r.subnet for r in addressing.ranges),
        mtu=network.mtu,
        mtu_overhead=network.mtu_overhead,
    )


def find_mtu(reach: GatewayReach, nl: Netlink) -> int:
    """Return the MTU of the device named, else of that towards the peers; 0 when there is neither."""
    return reach.mtu or _automatic_mtu(reach, nl)


def _automatic_mtu(reach: GatewayReach, nl: Netlink) -> int:
    first = list(reach.source.first())[:1]
    if not first and not reach.device:
        return 0
    return find_underlay(nl, UnderlayOptions(device=reach.device), first).mtu - reach.mtu_overhead


def ensure(reach: GatewayReach, host: Namespace, links: Iterable[str], *, doubt: bool) -> int:
    """Bring the routes to the peers in sync; return the number of changes."""
    del links
    nl, priority = host.netlink, network_priority(reach.network)
    mark = SyncMark(path=reach.stamp_path, digest=reach.digest, content=reach.source.content)
    if not doubt and is_trusted(nl, mark, 0, priority):
        return 0
    with locked(mark.path):
        return settle(nl, mark, desired_routes(reach, nl))


def desired_routes(reach: GatewayReach, nl: Netlink) -> Desired:
    """Return the routes to the peers' subnets; CNIError 7 for a peer that is no neighbour of ours."""
    priority, peers = network_priority(reach.network), reach.source.read()
    refuse_conflicts(reach.subnets, peers)
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


def list_undone(reach: GatewayReach, host: Namespace, links: Iterable[str]) -> Iterator[str]:
    """Yield the changes that would bring the routes to other nodes in sync."""
    del links
    difference = compare(host.netlink, desired_routes(reach, host.netlink))
    yield from (change.command for change in (*difference.missing, *difference.excess))


def ready(reach: GatewayReach, host: Namespace) -> None:
    """Raise CNIError for a peer that cannot be routed to."""
    desired_routes(reach, host.netlink)


def elsewhere(reach: GatewayReach) -> RemoteNetworks:
    """Return the networks behind the peers, and the peers, who have plain routes back."""
    return reach.source.elsewhere(nodes=True)


def explain_mtu(reach: GatewayReach, nl: Netlink) -> list[str]:
    """Return the computation of the MTU, a step a line."""
    automatic = _automatic_mtu(reach, nl)
    return explain_whole_mtu(automatic, reach.mtu_overhead, reach.mtu) if automatic else []


def find_ways(reach: GatewayReach, nl: Netlink) -> tuple[PeerPath, ...]:
    """Return the ways to the peers, for packets of the pods' MTU."""
    mtu = find_mtu(reach, nl)
    hops = [(a, get_link_by_index(nl, on_link(nl, a))) for p in reach.source.read() for a in p.addresses]
    return tuple(PeerPath(outer=address, link=link.name, mtu=mtu) for address, link in hops if link)


BACKEND = Backend(
    plan=plan,
    problem=lambda reach: reach.source.problem,
    segment=lambda _: None,
    mtu=find_mtu,
    ensure=ensure,
    list_undone=list_undone,
    ready=ready,
    elsewhere=elsewhere,
    explain_mtu=explain_mtu,
    ways=find_ways,
)
