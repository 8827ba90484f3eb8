"""The attach mode `bridge`: a veth on a Linux bridge, with the reference plugin's keys and results.

The bridge, its gateway address and forwarding are shared: ensured by every ADD, undone by
none. The veth pair is the pod's. By hand: `ip link add cni0 type bridge`, `ip link add VETH
master cni0 type veth peer name eth0 netns POD`, `ip addr add GATEWAY dev cni0`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cni_plugin.attach import gateway, interface
from cni_plugin.attach.bridge_plan import BridgePlan, plan
from cni_plugin.attach.mode import Mode
from cni_plugin.attach.veth import BridgeConnection, add_bridge_veth
from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.contract.result import Interface, Result
from cni_plugin.kernel.bridge import BridgeSpec, attainable_mtu, ensure_bridge
from cni_plugin.kernel.link import Link, get_link, list_links, set_mtu
from cni_plugin.kernel.vlan import vlans_can_be_filtered
from ipam.seam import waits

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from contextlib import ExitStack

    from netaddr import IPNetwork

    from cni_plugin.backend.backend import Segment
    from cni_plugin.backend.shared_facts import Survey
    from cni_plugin.features.damage import Damage
    from cni_plugin.features.feature import Site
    from cni_plugin.kernel.netns import Namespace

_FORWARDING_TIMEOUT = 2.0  # seconds
_FORWARDING_POLL = 0.0003


def connect(plan: BridgePlan, mtu: int, site: Site, undo: ExitStack) -> BridgeConnection:
    """Ensure the bridge and make the pod's veth on it."""
    connection, _ = ensure_shared(plan, site.host, mtu)
    add_bridge_veth(plan, connection, site.host, site.present_pod, undo)
    return connection


def ensure_shared(plan: BridgePlan, host: Namespace, mtu: int = 0) -> tuple[BridgeConnection, int]:
    """Ensure the bridge that all pods of the network are on; return the number of changes to its segment."""
    mtu = mtu or plan.pod.mtu or _automatic_mtu(plan, host)
    interface.refuse_small_mtu(mtu, plan.pod.addressing.stated_families)
    spec = BridgeSpec(
        name=plan.bridge,
        mtu=mtu,
        promisc=plan.promisc,
        vlan_filtering=bool(plan.port.vlans),
        mac=plan.bridge_mac,
    )
    connection = BridgeConnection(bridge=ensure_bridge(host.netlink, spec), mtu=mtu)
    if plan.segment is None:
        return connection, 0
    from cni_plugin.attach import segment  # for the few networks that are one over all nodes

    return connection, segment.ensure(plan, plan.segment, connection.bridge, host)


def _automatic_mtu(plan: BridgePlan, host: Namespace) -> int:
    return attainable_mtu(host.netlink, plan.bridge, _uplink_mtu(plan, host))


def _uplink_mtu(plan: BridgePlan, host: Namespace) -> int:
    return interface.automatic_mtu(host.netlink, plan.pod.addressing.families) - plan.pod.mtu_overhead


def join_segment(plan: BridgePlan, joined: Segment) -> BridgePlan:
    """Return the plan with the device as a port of the bridge."""
    from cni_plugin.attach import segment

    return segment.join(plan, joined)


def forwarded_by(plan: BridgePlan) -> str:
    """Return the link with the gateway addresses."""
    return plan.gateway.ifname if plan.gateway.wanted else ""


def synchronize(plan: BridgePlan, mtu: int, host: Namespace) -> int:
    """Bring the bridge in line; return the number of changes to what leads elsewhere."""
    from cni_plugin.attach import both_kinds

    changes = ensure_shared(plan, host, mtu)[1]
    return changes + both_kinds.ensure(plan.bridge, [r.subnet for r in plan.pod.addressing.ranges], host)


def check(plan: BridgePlan, site: Site, result: Result) -> None:
    """Raise CNIError 100 for the first thing that is not as ADD left it."""
    from cni_plugin.attach import bridge_check  # no ADD needs it

    bridge_check.check(plan, site, result)


def compare(plan: BridgePlan, mtu: int, site: Site, result: Result) -> Iterator[Damage]:
    """Yield what the node does not hold of an attachment: its bridge, its port and its gateway."""
    from cni_plugin.attach import bridge_check

    yield from bridge_check.compare(plan, mtu, site, result)


def compare_shared(plan: BridgePlan, mtu: int, host: Namespace) -> Iterator[Damage]:
    """Yield what is wrong with the bridge, as far as there is one: an ADD makes it."""
    from cni_plugin.attach import bridge_check

    yield from bridge_check.compare_shared(plan, mtu, host)


def drop_others(plan: BridgePlan, subnets: Collection[IPNetwork], host: Namespace) -> int:
    """Remove addresses of subnets that this node had before, where `forceAddress` lets them go."""
    bridge = get_link(host.netlink, plan.bridge)
    if not subnets or not plan.gateway.force_address or bridge is None:
        return 0
    return gateway.drop_other_subnets(bridge, subnets, host.netlink)


def explain_mtu(plan: BridgePlan, host: Namespace) -> list[str]:
    """Return the computation of the MTU, a step a line."""
    mtu = _automatic_mtu(plan, host)
    if plan.pod.mtu:
        return [f"pods get {plan.pod.mtu}, as configured", f"automatic would be {mtu}"]
    reason = f"bridge {plan.bridge} carries {mtu}, and a port of somebody else makes it not ours to change"
    families = sorted(plan.pod.addressing.families)
    uplinks = [interface.automatic_mtu(host.netlink, frozenset({v})) for v in families]
    return [
        *(
            f"IPv{v}: the default route's interface carries {mtu}"
            for v, mtu in zip(families, uplinks, strict=True)
        ),
        f"mtuOverhead takes {plan.pod.mtu_overhead}",
        *([reason] if mtu < _uplink_mtu(plan, host) else []),
        f"pods get {mtu}",
    ]


def configure(plan: BridgePlan, connection: BridgeConnection, site: Site, addresses: Result) -> Result:
    """Give the pod its addresses and the bridge its gateway's, and wait until packets pass."""
    host, pod = site.host, site.present_pod
    interface.refuse_unassignable(addresses.ips)
    interface.refuse_small_mtu(connection.mtu, {ip.address.version for ip in addresses.ips})
    addresses = gateway.complete(plan, addresses)
    link = interface.require_link(pod, site.attachment)
    gateway_link = gateway.ensure_gateway(plan, connection.bridge, addresses.ips, connection.mtu, host)
    if plan.container_interface_up:
        interface.dress(pod, link, _outfit(plan, addresses))
        made = _wait_until_forwarding(plan, connection, host)
        interface.announce_addresses(pod, link, addresses.ips)
    else:
        made = _read(plan, host)
    extra = [] if gateway_link.name == plan.bridge else [_interface(gateway_link)]
    return Result(
        interfaces=(*map(_interface, made), _interface(link, site.attachment.netns), *extra),
        ips=tuple(replace(ip, interface=len(made)) for ip in addresses.ips),
        routes=addresses.routes,
        dns=plan.pod.dns or addresses.dns,
    )


def _outfit(plan: BridgePlan, addresses: Result) -> interface.Outfit:
    """Return what the pod gets; routers of the segment are for a pod alone whose way out is not known."""
    settled = plan.gateway.wanted or 6 in gateway.served_by_default(addresses.routes)
    return interface.Outfit(
        ips=addresses.ips, routes=addresses.routes, dad=plan.pod.dad, follows_routers=not settled
    )


def _wait_until_forwarding(
    plan: BridgePlan, connection: BridgeConnection, host: Namespace
) -> tuple[Link, Link]:
    """Wait for the state in which the first packet of the pod is not lost; return bridge and port.

    The kernel tells the bridge of the new carrier by asynchronous work (net/core/link_watch.c),
    and the bridge's own device starts to transmit only after the same work was done for it.
    From Linux 6.8 on reading a link does the work that is due for it (rtnl_getlink). A port that the
    spanning tree holds back is the administrator's business.
    """
    for _ in waits.looks(_FORWARDING_TIMEOUT, _FORWARDING_POLL):
        bridge, port = _read(plan, host)
        if bridge.mtu < connection.mtu:
            # Another network with a smaller MTU lowered the bridge before it could see our port.
            host.netlink.change(set_mtu(bridge.name, connection.mtu))
        elif _passes_packets(bridge, port):
            return bridge, port
    raise CNIError(
        Code.TRY_AGAIN_LATER,
        f"bridge {plan.bridge}: wanted port {port.name} forwarding "
        f"in {_FORWARDING_TIMEOUT} s, found {port.port}",
    )


def _passes_packets(bridge: Link, port: Link) -> bool:
    state = port.port
    return bool(state and (state.blocked_by_stp or (state.forwarding and bridge.carrier_seen)))


def _read(plan: BridgePlan, host: Namespace) -> tuple[Link, Link]:
    """Return bridge and port as the kernel holds them now: udev may have given one another MAC."""
    # The port first: what it brings about in the bridge is seen at once.
    port = _require(host, plan.pod.attachment.host_ifname)
    return _require(host, plan.bridge), port


def _require(namespace: Namespace, name: str) -> Link:
    link = get_link(namespace.netlink, name)
    if link is None:
        raise CNIError(
            Code.TRY_AGAIN_LATER, f"link {name}: wanted it, found it removed while the pod was attached"
        )
    return link


def _interface(link: Link, sandbox: str = "") -> Interface:
    return Interface(name=link.name, mac=link.mac, mtu=link.mtu, sandbox=sandbox)


def survey(plan: BridgePlan, mtu: int, host: Namespace) -> Survey:
    """Return what keeps the gateway's address away; a bridge is made in line by every ADD."""
    from cni_plugin.attach import segment
    from cni_plugin.backend.shared_facts import Survey  # no call of a runtime needs it

    return Survey(
        undone=tuple(segment.list_undone(plan, plan.segment, host)) if plan.segment else (),
        troubles=tuple(gateway.find_stale(plan, host)),
        mtu=mtu or plan.pod.mtu or _automatic_mtu(plan, host),
    )


def ready(plan: BridgePlan, host: Namespace) -> None:
    """Raise CNIError 50 when a pod could not be attached here now."""
    bridge = get_link(host.netlink, plan.bridge)
    if bridge is not None and bridge.kind != "bridge":
        raise CNIError(
            Code.NOT_AVAILABLE, f'"bridge" {plan.bridge}: wanted a bridge, found another kind of link'
        )
    # Where bridges are a module that is not loaded yet the kernel's "no" says nothing.
    if (
        plan.port.vlans
        and list_links(host.netlink, kind="bridge")
        and not vlans_can_be_filtered(host.netlink)
    ):
        raise CNIError(
            Code.NOT_AVAILABLE, "VLANs: wanted a kernel that filters VLANs on bridges, found one that cannot"
        )
    gateway.require_families(plan)
    for trouble in gateway.find_stale(plan, host):
        raise CNIError(
            Code.NOT_AVAILABLE, f'"bridge" {trouble.object}: {trouble.found}; remove it: {trouble.remedy}'
        )


MODE = Mode(
    plan=plan,
    join_segment=join_segment,
    stated_families=lambda plan: plan.pod.addressing.stated_families,
    links=lambda plan: (plan.gateway.ifname,),
    connect=connect,
    configure=configure,
    check=check,
    ready=ready,
    forwarded_by=forwarded_by,
    synchronize=synchronize,
    drop_others=drop_others,
    explain_mtu=explain_mtu,
    survey=survey,
    compare=compare,
    compare_shared=compare_shared,
)
