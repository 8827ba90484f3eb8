"""The attach mode `vxlan`: mode `bridge`, with other nodes behind a VXLAN device.

Flat, the device is a port of the bridge: one segment over all nodes. Routed, each node has subnets
of its own and a route to everybody else's. Device and peers are shared: every ADD ends in a network
that is in sync, none undoes it. `ip -d link show vxlan42`, `bridge fdb show dev vxlan42`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cni_plugin.attach import bridge as bridge_mode
from cni_plugin.attach import interface
from cni_plugin.attach.bridge_check import check as check_bridge
from cni_plugin.attach.bridge_plan import BridgePlan
from cni_plugin.attach.bridge_plan import plan as plan_bridge
from cni_plugin.attach.gateway import drop_other_subnets
from cni_plugin.attach.mode import Mode
from cni_plugin.attach.veth import add_bridge_veth
from cni_plugin.backend.node_traffic import accept_answers, plan_marks
from cni_plugin.backend.peers import SyncMark, compare, is_trusted, network_priority, settle
from cni_plugin.backend.shared_facts import Survey
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
from cni_plugin.contract.errors import CNIError, Code, broken, invalid_config
from cni_plugin.contract.inet import link_local
from cni_plugin.kernel.link import get_link
from cni_plugin.kernel.netconf import ensure_family, ensure_forwarding, ignore_routers, require_forwarding
from cni_plugin.kernel.nft import Ruleset, ensure_ruleset, find_difference, hooked, require_nft
from cni_plugin.kernel.nft_layout import TUNNEL_GATEWAY, TUNNEL_GUARD, TUNNEL_UNTRACKED
from cni_plugin.kernel.vxlan import ensure_master, ensure_vxlan, find_vxlan

if TYPE_CHECKING:
    from contextlib import ExitStack

    from netaddr import IPAddress

    from cni_plugin.attach.veth import BridgeConnection
    from cni_plugin.backend.underlay import Underlay
    from cni_plugin.config.network import Addressing, Network, RemoteNetworks
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.result import Result
    from cni_plugin.features.feature import Site
    from cni_plugin.kernel.link import Link
    from cni_plugin.kernel.netns import Namespace

log = logging.getLogger("podwire")


@dataclass(frozen=True, slots=True, kw_only=True)
class VxlanPlan:
    """The pod's bridge and the tunnel to the other nodes."""

    bridge: BridgePlan
    tunnel: Tunnel
    gateways: tuple[IPAddress, ...]


def plan(fields: Fields, network: Network, addressing: Addressing) -> VxlanPlan:
    """Return the plan for one attachment, or raise CNIError 7 for what cannot be."""
    tunnel = parse_tunnel(fields, network, addressing)
    bridge = plan_bridge(fields, network, addressing)
    if tunnel.routed and not bridge.gateway.wanted:
        raise invalid_config('"vxlan": subnets behind the peers need "isGateway", found it off')
    gateways = tuple(r.gateway for r in addressing.ranges if r.gateway is not None)
    if bridge.gateway.wanted and not tunnel.routed:
        # The gateway is on every node: a pod that moves must not find another MAC there.
        mac = endpoint_mac(tunnel.vxlan.vni, gateways[0] if gateways else "gateway")
        bridge = replace(bridge, bridge_mac=mac)
        gateways += (link_local(mac),)
    return VxlanPlan(bridge=bridge, tunnel=tunnel, gateways=gateways if bridge.gateway.wanted else ())


def connect(plan: VxlanPlan, site: Site, undo: ExitStack) -> BridgeConnection:
    """Bring the network in sync and make the pod's veth on its bridge."""
    interface.refuse_existing(site.present_pod, site.attachment)
    if plan.tunnel.source.problem:
        log.warning("%s; the peers of the last sync stay in force", plan.tunnel.source.problem)
    connection, _ = _ensure_network(plan, site.host, doubt=False)
    add_bridge_veth(plan.bridge, connection, site.host, site.present_pod, undo)
    return connection


def _ensure_network(plan: VxlanPlan, host: Namespace, *, doubt: bool) -> tuple[BridgeConnection, int]:
    """Make what the pods share: the tunnel in sync with its peers, and the bridge."""
    nl = host.netlink
    underlay, mtu = locate(plan.tunnel, nl)
    interface.refuse_small_mtu(mtu, plan.bridge.pod.addressing.stated_families)
    device, changes = _ensure_tunnel(plan.tunnel, underlay, mtu, host, doubt=doubt)
    changes += ensure_ruleset(host.nftables, _guard_ruleset(plan, underlay))
    connection = bridge_mode.ensure_shared(plan.bridge, host, mtu)
    if plan.tunnel.routed:
        accept_answers(nl, device.name)
        changes += ensure_ruleset(host.nftables, plan_marks(plan.tunnel))
    else:
        # In this order: once the device is a port, what the bridge says crosses it.
        changes += bool(plan.bridge.bridge_mac) and ensure_ruleset(host.nftables, _gateway_ruleset(plan))
        changes += ensure_master(nl, device, connection.bridge)
    return connection, changes


def _guard_ruleset(plan: VxlanPlan, underlay: Underlay) -> Ruleset:
    """Return what keeps pods out of the tunnel: a device takes a frame from whoever knows port and VNI.

    So a pod could send frames with any source to the pods of all nodes, past every check of its own
    port. What it sends to that port is dropped where it enters the node: by the bridge, by the veth of a
    routed pod, by the tunnel itself. A node that is a container has an underlay of such a name, too.

    The tunnel's own packets are not tracked: each flow inside would be an entry of conntrack outside, on
    both nodes. What a pod sends to that port never passes the node's output hook, and stays tracked.
    """
    port, ours = plan.tunnel.vxlan.port, "fib daddr type { local, multicast }"
    links = (plan.bridge.gateway.ifname, "veth*", plan.tunnel.device)
    entering = (
        f'iifname "{underlay.name}" {ours} udp dport {port} notrack accept',
        f'iifname "{underlay.name}" accept',
        *(f'iifname "{link}" udp dport {port} drop' for link in links),
    )
    leaving = (f'oifname "{underlay.name}" fib saddr type local udp dport {port} notrack',)
    guard = hooked(TUNNEL_GUARD, entering, plan.tunnel.device)
    untracked = hooked(TUNNEL_UNTRACKED, leaving, plan.tunnel.device)
    return Ruleset(
        family="inet", title=f"{plan.tunnel.network} tunnel is for nodes", chains=(guard, untracked)
    )


def _gateway_ruleset(plan: VxlanPlan) -> Ruleset:
    """Return what keeps the gateway at home: every node has one, with the same address and MAC.

    What asks for it and what is said in its name, by itself or by a pod that lies, must stay on the
    node, so both are dropped on their way out of the tunnel device.
    """
    out = f'oifname "{plan.tunnel.device}"'
    words = [words for address in sorted(plan.gateways) for words in _render_talk(address)]
    rules = (f"{out} ether saddr {plan.bridge.bridge_mac} drop", *(f"{out} {each} drop" for each in words))
    chain = hooked(TUNNEL_GATEWAY, rules, plan.tunnel.device)
    return Ruleset(family="bridge", title=f"{plan.tunnel.network} gateway stays home", chains=(chain,))


def _render_talk(address: IPAddress) -> tuple[str, ...]:
    """Return what matches a question for an address, and an answer."""
    if address.version == 4:
        return f"arp daddr ip {address}", f"arp saddr ip {address}"
    # The target of a solicitation or advertisement is at byte 8 of ICMPv6 (RFC 4861 sections 4.3, 4.4).
    target = f"@th,64,128 {int(address):#x}"
    return f"icmpv6 type nd-neighbor-solicit {target}", f"icmpv6 type nd-neighbor-advert {target}"


def _ensure_tunnel(
    tunnel: Tunnel, underlay: Underlay, mtu: int, host: Namespace, *, doubt: bool
) -> tuple[Link, int]:
    """Return the device of a network that is in sync, and the number of changes that it took.

    Without `doubt` a network whose stamp and counts are as the last sync left them is trusted.
    """
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
            for version in sorted({subnet.version for subnet in tunnel.subnets}):
                ensure_forwarding(nl, version)
                ensure_family(nl, device.name, version)
            ignore_routers(nl, device.name)
        return device, int(made) + settle(nl, mark, desired_state(tunnel, underlay, device.index, nl))


def configure(plan: VxlanPlan, connection: BridgeConnection, site: Site, addresses: Result) -> Result:
    """Give the pod its addresses, as in mode `bridge`."""
    return bridge_mode.configure(plan.bridge, connection, site, addresses)


def check(plan: VxlanPlan, site: Site, result: Result) -> None:
    """Raise CNIError 100 for the first thing that is not as ADD left it, the peers included."""
    check_bridge(plan.bridge, site, result)
    host = site.host
    underlay, mtu = locate(plan.tunnel, host.netlink)
    device = find_vxlan(host.netlink, vxlan_spec(plan.tunnel, underlay, mtu))
    if device is None:
        raise broken(f"link {plan.tunnel.device}: wanted the network's VXLAN device, found none like it")
    difference = compare(host.netlink, desired_state(plan.tunnel, underlay, device.index, host.netlink))
    for change in (*difference.missing, *difference.excess):
        raise broken(
            f"peers of network {plan.tunnel.network}: wanted them in sync, found undone: {change.command}"
        )
    if find_difference(host.nftables, _guard_ruleset(plan, underlay)):
        raise broken(f"nft chain inet podwire guard_{device.name}: wanted its rules, found others")
    if not plan.tunnel.routed:
        _check_port(plan, device, host)
    elif chain := find_difference(host.nftables, plan_marks(plan.tunnel)):
        raise broken(f"nft chain inet podwire {chain}: wanted the marks for the peers, found others")


def _check_port(plan: VxlanPlan, device: Link, host: Namespace) -> None:
    """Raise CNIError 100 unless the device is a port of the bridge that keeps the gateway at home."""
    bridge, mac = get_link(host.netlink, plan.bridge.bridge), plan.bridge.bridge_mac
    if bridge is None or device.master != bridge.index:
        raise broken(
            f"link {device.name}: wanted it on bridge {plan.bridge.bridge}, found it is no port there"
        )
    if mac and find_difference(host.nftables, _gateway_ruleset(plan)):
        raise broken(f"nft chain of {device.name}: wanted the rules for the gateway {mac}, found others")


def elsewhere(plan: VxlanPlan) -> RemoteNetworks:
    """Return the networks behind the peers, and what else is not translated: all that takes the tunnel.

    The peers' own addresses are not named: what does not take the tunnel there, because IPVS has found its
    destination behind our marks, comes back to the node's address only. A peer with direct routes knows pods.
    """
    tunnel = plan.tunnel
    device = tunnel.device if tunnel.routed else ""
    return tunnel.source.elsewhere(nodes=tunnel.direct_routing, device=device)


def forwarded_by(plan: VxlanPlan) -> str:
    """Return the link with the gateway addresses."""
    return bridge_mode.forwarded_by(plan.bridge)


def synchronize(plan: VxlanPlan, host: Namespace) -> int:
    """Compare everything and mend what differs; return the number of changes."""
    connection, changes = _ensure_network(plan, host, doubt=True)
    if plan.tunnel.routed and plan.bridge.gateway.force_address:
        changes += drop_other_subnets(connection.bridge, plan.tunnel.subnets, host.netlink)
    if plan.tunnel.source.problem:
        raise invalid_config(f"{plan.tunnel.source.problem}; the peers of the last sync stay in force")
    return changes


def explain_mtu(plan: VxlanPlan, host: Namespace) -> list[str]:
    """Return the computation of the MTU, a step a line."""
    underlay, mtu = locate(plan.tunnel, host.netlink)
    version = underlay.address.version
    return [
        f"underlay {underlay.name} ({underlay.address}) carries {underlay.mtu}",
        f"VXLAN over IPv{version} takes {VXLAN_OVERHEAD[version]}",
        f"mtuOverhead takes {plan.tunnel.mtu_overhead}",
        f"pods get {mtu}" + (", as configured" if plan.tunnel.mtu else ""),
    ]


def survey(plan: VxlanPlan, host: Namespace) -> Survey:
    """Return how tunnel and bridge differ from what is wanted, and the ways to the peers."""
    nl = host.netlink
    underlay, mtu = locate(plan.tunnel, nl)
    spec = vxlan_spec(plan.tunnel, underlay, mtu)
    device = find_vxlan(nl, spec)
    wanted = desired_state(plan.tunnel, underlay, device.index if device else 0, nl)
    difference = compare(nl, wanted) if device else None
    undone = (
        tuple(change.command for change in (*difference.missing, *difference.excess))
        if difference is not None
        else (f"ip link add {spec.name} mtu {spec.mtu} type vxlan id {spec.vni} dev {underlay.name}",)
    )
    return Survey(
        undone=(*undone, *_list_unruled(plan, underlay, host)),
        troubles=bridge_mode.survey(plan.bridge, host).troubles,
        ways=ways_to_peers(plan.tunnel, underlay, mtu),
        mtu=mtu,
    )


def _list_unruled(plan: VxlanPlan, underlay: Underlay, host: Namespace) -> list[str]:
    """Return the chains that are not as wanted."""
    rulesets = [_guard_ruleset(plan, underlay)]
    if plan.tunnel.routed:
        rulesets.append(plan_marks(plan.tunnel))
    elif plan.bridge.bridge_mac:
        rulesets.append(_gateway_ruleset(plan))
    found = [(each.family, find_difference(host.nftables, each)) for each in rulesets]
    return [f"nft add chain {family} podwire {name}" for family, name in found if name]


def ready(plan: VxlanPlan, host: Namespace) -> None:
    """Raise CNIError 50 when a pod could not be attached here now."""
    bridge_mode.ready(plan.bridge, host)
    if plan.tunnel.routed:
        for version in sorted({subnet.version for subnet in plan.tunnel.subnets}):
            require_forwarding(version, plan.tunnel.device)
    require_nft()
    try:
        locate(plan.tunnel, host.netlink)
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
