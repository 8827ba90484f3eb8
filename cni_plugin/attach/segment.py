"""The bridge as one segment over all nodes: a port leads to the others, the gateway stays at home.

Every node is the gateway, with one address and one MAC that is derived from it, so that a pod that moves
finds it where it was. What asks for it and what is said in its name, by itself or by a pod that lies, is
dropped on its way out of the device. By hand: `ip link set vxlan42 master cni0`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import broken
from cni_plugin.contract.inet import link_local
from cni_plugin.kernel.link import get_link
from cni_plugin.kernel.nft import Ruleset, ensure_ruleset, find_difference, hooked
from cni_plugin.kernel.nft_layout import TUNNEL_GATEWAY
from cni_plugin.kernel.vxlan import ensure_master

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netaddr import IPAddress

    from cni_plugin.attach.bridge_plan import BridgePlan
    from cni_plugin.backend.backend import Segment
    from cni_plugin.kernel.link import Link
    from cni_plugin.kernel.netns import Namespace


def join(plan: BridgePlan, segment: Segment) -> BridgePlan:
    """Return the plan with the device as a port, and where the node is the gateway, with its MAC."""
    joined = replace(plan, segment=segment)
    if not plan.gateway.wanted:
        return joined
    gateways = _gateways(plan)
    return replace(joined, bridge_mac=segment.gateway_mac(gateways[0] if gateways else "gateway"))


def _gateways(plan: BridgePlan) -> list[IPAddress]:
    return [r.gateway for r in plan.pod.addressing.ranges if r.gateway is not None]


def ensure(plan: BridgePlan, segment: Segment, bridge: Link, host: Namespace) -> int:
    """Make the device a port; return the number of changes."""
    changes = bool(plan.bridge_mac) and ensure_ruleset(host.nftables, _plan_ruleset(plan, segment))
    # Last: once the device is a port, what the bridge says crosses it.
    device = get_link(host.netlink, segment.device)
    if device is None:
        raise broken(f"link {segment.device}: wanted it, found it removed while the pod was attached")
    return int(changes) + int(ensure_master(host.netlink, device, bridge))


def list_undone(plan: BridgePlan, segment: Segment, host: Namespace) -> Iterator[str]:
    """Yield what `ensure` would do, as commands."""
    bridge, device = get_link(host.netlink, plan.bridge), get_link(host.netlink, segment.device)
    if bridge is not None and device is not None and device.master != bridge.index:
        yield f"ip link set {device.name} master {plan.bridge}"
    if plan.bridge_mac and (name := find_difference(host.nftables, _plan_ruleset(plan, segment))):
        yield f"nft add chain bridge podwire {name}"


def _plan_ruleset(plan: BridgePlan, segment: Segment) -> Ruleset:
    out = f'oifname "{segment.device}"'
    gateways = sorted({*_gateways(plan), link_local(plan.bridge_mac)})
    words = [words for address in gateways for words in _render_talk(address)]
    rules = (f"{out} ether saddr {plan.bridge_mac} drop", *(f"{out} {each} drop" for each in words))
    chain = hooked(TUNNEL_GATEWAY, rules, segment.device)
    title = f"{plan.pod.attachment.network} gateway stays home"
    return Ruleset(family="bridge", title=title, chains=(chain,))


def _render_talk(address: IPAddress) -> tuple[str, ...]:
    """Return what matches a question for an address, and an answer."""
    if address.version == 4:
        return f"arp daddr ip {address}", f"arp saddr ip {address}"
    # The target of a solicitation or advertisement is at byte 8 of ICMPv6 (RFC 4861 sections 4.3, 4.4).
    target = f"@th,64,128 {int(address):#x}"
    return f"icmpv6 type nd-neighbor-solicit {target}", f"icmpv6 type nd-neighbor-advert {target}"
