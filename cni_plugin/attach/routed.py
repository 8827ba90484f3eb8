"""The attach mode `routed`: a veth with a /32 and a /128, and host routes instead of a bridge.

The pod's next hop is 169.254.1.1 and fe80::1, which nobody has: permanent neighbours on both ends
say where they are, so that no proxy ARP is needed, no address sits on the host's end, and the node
speaks to its pods from an address of its own. Strict rp_filter holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from netaddr import IPAddress, IPNetwork

from cni_plugin.attach import interface
from cni_plugin.attach.gateway import drop_other_subnets, served_by_default
from cni_plugin.attach.mode import Mode
from cni_plugin.attach.routed_check import check, compare, host_route, neighbour
from cni_plugin.attach.veth import add_plain_veth
from cni_plugin.backend.underlay import explain_whole_mtu
from cni_plugin.contract.errors import CNIError, Code, invalid_config
from cni_plugin.contract.inet import default_route, width
from cni_plugin.contract.result import Interface, IPConfig, Result, Route
from cni_plugin.kernel.link import Link, get_link
from cni_plugin.kernel.neigh import Neighbour, set_neighbour
from cni_plugin.kernel.netconf import ensure_family, ensure_forwarding, ignore_routers, require_forwarding
from cni_plugin.kernel.route import set_route, wait_until_local
from ipam.seam import waits

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from contextlib import ExitStack

    from cni_plugin.backend.shared_facts import Survey
    from cni_plugin.config.network import Addressing, Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.features.damage import Damage
    from cni_plugin.features.feature import Site
    from cni_plugin.kernel.netns import Namespace

NEXT_HOP = {4: IPAddress("169.254.1.1"), 6: IPAddress("fe80::1")}
_CARRIER_TIMEOUT = 2.0  # seconds
_CARRIER_POLL = 0.0003


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedPlan:
    """What an attachment is to be."""

    pod: interface.InterfacePlan
    bridge: str
    """The bridge that pods of the network may be on from before; empty for none."""
    force_address: bool


def plan(fields: Fields, network: Network, addressing: Addressing) -> RoutedPlan:
    """Return the plan for one attachment, or raise CNIError 7 for what cannot be."""
    if not network.ipam_type:
        raise invalid_config('"mode" routed: wanted addresses to route to, found no "ipam"')
    if network.mtu:
        interface.refuse_small_mtu(network.mtu, addressing.stated_families)
    return RoutedPlan(
        pod=interface.plan_interface(fields, network, addressing),
        bridge=fields.string("bridge"),
        force_address=fields.boolean("forceAddress"),
    )


def connect(plan: RoutedPlan, mtu: int, site: Site, undo: ExitStack) -> int:
    """Make the pod's veth; return its MTU in bytes."""
    mtu = mtu or plan.pod.mtu or _automatic_mtu(plan, site.host)
    interface.refuse_small_mtu(mtu, plan.pod.addressing.stated_families)
    if _find_bridge(plan, site.host) is not None:
        undo.callback(synchronize, plan, mtu, site.host)
    add_plain_veth(plan.pod, mtu, site.host, site.present_pod, undo)
    return mtu


def _find_bridge(plan: RoutedPlan, host: Namespace) -> Link | None:
    if not plan.bridge:
        return None
    from cni_plugin.attach.both_kinds import find_bridge  # for nodes that change their mode

    return find_bridge(plan.bridge, host)


def synchronize(plan: RoutedPlan, mtu: int, host: Namespace) -> int:
    """Let pods that are on a bridge still find the routed ones; return the number of changes."""
    del mtu
    from cni_plugin.attach import both_kinds

    return both_kinds.ensure(plan.bridge, [r.subnet for r in plan.pod.addressing.ranges], host)


def drop_others(plan: RoutedPlan, subnets: Collection[IPNetwork], host: Namespace) -> int:
    """Remove the addresses that such a bridge has of subnets of before, where `forceAddress` is on."""
    bridge = _find_bridge(plan, host)
    if not subnets or not plan.force_address or bridge is None:
        return 0
    return drop_other_subnets(bridge, subnets, host.netlink)


def _automatic_mtu(plan: RoutedPlan, host: Namespace) -> int:
    return interface.automatic_mtu(host.netlink, plan.pod.addressing.families) - plan.pod.mtu_overhead


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
        *(set_neighbour(outside.index, neighbour(ip, inside.mac)) for ip in addresses.ips),
        *(set_route(host_route(ip, outside)) for ip in addresses.ips),
    )
    if bridge := _find_bridge(plan, host):
        from cni_plugin.attach.both_kinds import introduce

        introduce(bridge, [ip.address.ip for ip in addresses.ips], host)
    _wait_for_carrier(plan, host)
    wait_until_local(pod.netlink, inside.index, [ip.address.ip for ip in addresses.ips])
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


def compare_shared(plan: RoutedPlan, mtu: int, host: Namespace) -> Iterator[Damage]:
    """Yield what keeps pods that are on a bridge still from finding the routed ones."""
    from cni_plugin.attach import both_kinds
    from cni_plugin.features.damage import Damage

    del mtu
    subnets = [each.subnet for each in plan.pod.addressing.ranges]
    for command in both_kinds.list_undone(plan.bridge, subnets, host):
        said = f"bridge {plan.bridge}: wanted it to know the routed pods, found undone: {command}"
        mend = partial(both_kinds.ensure, plan.bridge, subnets, host)
        yield Damage(kind="neighbour", said=said, mend=mend)


def forwarded_by(plan: RoutedPlan) -> str:
    """Return the pattern of the pods' host ends."""
    del plan
    return "veth*"


def explain_mtu(plan: RoutedPlan, host: Namespace) -> list[str]:
    """Return the computation of the MTU, a step a line."""
    return explain_whole_mtu(_automatic_mtu(plan, host), plan.pod.mtu_overhead, plan.pod.mtu)


def survey(plan: RoutedPlan, mtu: int, host: Namespace) -> Survey:
    """Return the pods' MTU, and what keeps pods that are on a bridge still from finding them."""
    from cni_plugin.attach import both_kinds
    from cni_plugin.backend.shared_facts import Survey  # no call of a runtime needs it

    subnets = [r.subnet for r in plan.pod.addressing.ranges]
    return Survey(
        undone=tuple(both_kinds.list_undone(plan.bridge, subnets, host)),
        mtu=mtu or plan.pod.mtu or _automatic_mtu(plan, host),
    )


def ready(plan: RoutedPlan, host: Namespace) -> None:
    """Raise CNIError 50 when a pod could not be attached here now."""
    del host
    for version in sorted(plan.pod.addressing.families):
        require_forwarding(version, plan.pod.attachment.host_ifname)


MODE = Mode(
    plan=plan,
    stated_families=lambda plan: plan.pod.addressing.stated_families,
    links=lambda plan: (forwarded_by(plan), *([plan.bridge] if plan.bridge else [])),
    forwarded_by=forwarded_by,
    connect=connect,
    configure=configure,
    check=check,
    ready=ready,
    synchronize=synchronize,
    drop_others=drop_others,
    explain_mtu=explain_mtu,
    survey=survey,
    compare=compare,
    compare_shared=compare_shared,
)
