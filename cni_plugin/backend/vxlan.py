"""The backend `vxlan`: a VXLAN device that leads to the other nodes, in sync with the list of peers.

Routed, each node has subnets of its own and a route to everybody else's. Flat, the device is a port of the
pods' bridge: one segment over all nodes. Device and peers are shared: every ADD ends in a network that is
in sync, none undoes it. `ip -d link show vxlan42`, `bridge fdb show dev vxlan42`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.backend.backend import Backend, Segment
from cni_plugin.backend.node_traffic import accept_answers, drops_answers, plan_marks
from cni_plugin.backend.peers import SyncMark, compare, is_trusted, network_priority, settle
from cni_plugin.backend.stamp import locked
from cni_plugin.backend.tunnel import (
    Tunnel,
    desired_state,
    endpoint_mac,
    locate,
    parse_tunnel,
    vxlan_spec,
    ways_to_peers,
)
from cni_plugin.backend.underlay import VXLAN_OVERHEAD
from cni_plugin.kernel.netconf import (
    accept_ra,
    ensure_family,
    ensure_forwarding,
    follows_routers,
    has_family,
    ignore_routers,
    is_forwarding,
    require_forwarding,
)
from cni_plugin.kernel.nft import FAMILY, Ruleset, ensure_ruleset, find_difference, hooked, require_nft
from cni_plugin.kernel.nft_layout import TUNNEL_GUARD, TUNNEL_UNTRACKED
from cni_plugin.kernel.sysctl import FORWARDING
from cni_plugin.kernel.vxlan import ensure_vxlan, find_vxlan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from netaddr import IPNetwork

    from cni_plugin.backend.shared_facts import PeerPath
    from cni_plugin.backend.underlay import Underlay
    from cni_plugin.config.network import RemoteNetworks
    from cni_plugin.kernel.link import Link
    from cni_plugin.kernel.netlink import Netlink
    from cni_plugin.kernel.netns import Namespace


def find_segment(tunnel: Tunnel) -> Segment | None:
    """Return the device of a flat network."""
    if tunnel.routed:
        return None
    return Segment(device=tunnel.device, gateway_mac=partial(endpoint_mac, tunnel.vxlan.vni))


def list_subnets(tunnel: Tunnel) -> tuple[IPNetwork, ...]:
    """Return the subnets that peers send to this node."""
    return tunnel.subnets if tunnel.routed else ()


def ensure(tunnel: Tunnel, host: Namespace, links: Iterable[str], *, doubt: bool) -> int:
    """Bring the tunnel in sync with its peers; return the number of changes.

    Without `doubt` a network whose stamp and counts are as the last sync left them is trusted.
    """
    underlay, mtu = locate(tunnel, host.netlink)
    device, changes = _ensure_device(tunnel, underlay, mtu, host, doubt=doubt)
    if tunnel.routed:
        accept_answers(host.netlink, device.name)
    return changes + sum(ensure_ruleset(host.nftables, each) for each in _rulesets(tunnel, underlay, links))


def _ensure_device(
    tunnel: Tunnel, underlay: Underlay, mtu: int, host: Namespace, *, doubt: bool
) -> tuple[Link, int]:
    nl, spec = host.netlink, vxlan_spec(tunnel, underlay, mtu)
    mark = SyncMark(
        path=tunnel.stamp_path,
        digest=tunnel.digest(underlay),
        content=tunnel.source.content,
        followed=tunnel.followed,
    )
    device = None if doubt else find_vxlan(nl, spec)
    if device is not None and is_trusted(nl, mark, device.index, network_priority(tunnel.network)):
        return device, 0
    with locked(mark.path):
        # What cannot be is found before the device is made.
        desired_state(tunnel, underlay, 0, nl)
        device, made = ensure_vxlan(nl, spec)
        if tunnel.routed:
            for version in _versions(tunnel):
                ensure_forwarding(nl, version)
                ensure_family(nl, device.name, version)
            ignore_routers(nl, device.name)
        return device, int(made) + settle(nl, mark, desired_state(tunnel, underlay, device.index, nl))


def _versions(tunnel: Tunnel) -> list[int]:
    return sorted({subnet.version for subnet in tunnel.subnets})


def _rulesets(tunnel: Tunnel, underlay: Underlay, links: Iterable[str]) -> tuple[Ruleset, ...]:
    guard = _guard_ruleset(tunnel, underlay, links)
    return (guard, plan_marks(tunnel)) if tunnel.routed else (guard,)


def _guard_ruleset(tunnel: Tunnel, underlay: Underlay, links: Iterable[str]) -> Ruleset:
    """Return what keeps pods out of the tunnel: a device takes a frame from whoever knows port and VNI.

    So a pod could send frames with any source to the pods of all nodes, past every check of its own
    port. What it sends to that port is dropped where it enters the node: by the bridge, by the veth of a
    routed pod, by the tunnel itself. A node that is a container has an underlay of such a name, too.

    Of nodes too only peers are let in, by their address on the underlay and the VNI (other networks share the
    port), where the peers are known: whoever else knew the VNI would be any pod.

    The tunnel's own packets are not tracked: each flow inside would be an entry of conntrack outside, on
    both nodes. What a pod sends to that port never passes the node's output hook, and stays tracked.
    """
    port, ours = tunnel.vxlan.port, "fib daddr type { local, multicast }"
    guarded = dict.fromkeys((*links, "veth*", tunnel.device))
    family, peers = FAMILY[underlay.address.version], f"vteps_{tunnel.device}"
    known = tunnel.options.group is None
    # The VNI is behind eight bytes of UDP and four of VXLAN (RFC 7348 section 5).
    strangers = f"udp dport {port} @th,96,24 {tunnel.vxlan.vni:#x} {family} saddr != @{peers} drop"
    entering = (
        *([f"{ours} {strangers}"] if known else []),
        f'iifname "{underlay.name}" {ours} udp dport {port} notrack accept',
        f'iifname "{underlay.name}" accept',
        *(f'iifname "{link}" udp dport {port} drop' for link in guarded),
    )
    leaving = (f'oifname "{underlay.name}" fib saddr type local udp dport {port} notrack',)
    guard = hooked(TUNNEL_GUARD, entering, tunnel.device)
    untracked = hooked(TUNNEL_UNTRACKED, leaving, tunnel.device)
    return Ruleset(
        family="inet",
        title=f"{tunnel.network} tunnel is for nodes",
        chains=(guard, untracked),
        sets=((f"set {peers}", f"typeof {family} saddr;"),) if known else (),
        filled=(peers,) if known else (),
        fingerprint=tunnel.source.digest,
        fill=lambda: {peers: [peer.vtep for peer in tunnel.source.read()]},
    )


def list_undone(tunnel: Tunnel, host: Namespace, links: Iterable[str]) -> Iterator[str]:
    """Yield the changes that would bring the tunnel in sync."""
    nl = host.netlink
    underlay, mtu = locate(tunnel, nl)
    spec = vxlan_spec(tunnel, underlay, mtu)
    device = find_vxlan(nl, spec)
    wanted = desired_state(tunnel, underlay, device.index if device else 0, nl)
    if device is None:
        yield f"ip link add {spec.name} mtu {spec.mtu} type vxlan id {spec.vni} dev {underlay.name}"
    else:
        difference = compare(nl, wanted)
        yield from (change.command for change in (*difference.missing, *difference.excess))
        yield from _list_switches(tunnel, device.name, nl) if tunnel.routed else ()
    for ruleset in _rulesets(tunnel, underlay, links):
        if name := find_difference(host.nftables, ruleset):
            yield f"nft add chain {ruleset.family} podwire {name}"


def _list_switches(tunnel: Tunnel, device: str, nl: Netlink) -> Iterator[str]:
    """Yield what lets packets pass the device of a routed network, and nobody behind it be a router."""
    for version in _versions(tunnel):
        if not is_forwarding(nl, version):
            yield f"sysctl -w {FORWARDING[version]}=1"
        if not has_family(nl, device, version):
            yield f"sysctl -w net/ipv{version}/conf/{device}/disable_ipv{version}=0"
    if follows_routers(nl, device):
        yield f"sysctl -w {accept_ra(device)}=0"
    if drops_answers(device):
        yield f"sysctl -w net/ipv4/conf/{device}/rp_filter=2"


def elsewhere(tunnel: Tunnel) -> RemoteNetworks:
    """Return the networks behind the peers, and what else is not translated: all that takes the tunnel.

    The peers' own addresses are not named: what does not take the tunnel there, because IPVS has found its
    destination behind our marks, comes back to the node's address only. A peer with direct routes knows pods.
    """
    device = tunnel.device if tunnel.routed else ""
    return tunnel.source.elsewhere(nodes=tunnel.direct_routing, device=device)


def explain_mtu(tunnel: Tunnel, nl: Netlink) -> list[str]:
    """Return the computation of the MTU, a step a line."""
    underlay, mtu = locate(tunnel, nl)
    version = underlay.address.version
    return [
        f"underlay {underlay.name} ({underlay.address}) carries {underlay.mtu}",
        f"VXLAN over IPv{version} takes {VXLAN_OVERHEAD[version]}",
        f"mtuOverhead takes {tunnel.mtu_overhead}",
        f"pods get {mtu}" + (", as configured" if tunnel.mtu else ""),
    ]


def find_ways(tunnel: Tunnel, nl: Netlink) -> tuple[PeerPath, ...]:
    """Return the ways to the peers."""
    return ways_to_peers(tunnel, *locate(tunnel, nl))


def ready(tunnel: Tunnel, host: Namespace) -> None:
    """Raise CNIError for what keeps the tunnel from being made."""
    if tunnel.routed:
        for version in _versions(tunnel):
            require_forwarding(version, tunnel.device)
    require_nft()
    locate(tunnel, host.netlink)


BACKEND = Backend(
    plan=parse_tunnel,
    problem=lambda tunnel: tunnel.source.problem,
    device=lambda tunnel: str(tunnel.device),
    segment=find_segment,
    subnets=list_subnets,
    mtu=lambda tunnel, nl: locate(tunnel, nl)[1],
    ensure=ensure,
    list_undone=list_undone,
    ready=ready,
    elsewhere=elsewhere,
    explain_mtu=explain_mtu,
    ways=find_ways,
)
