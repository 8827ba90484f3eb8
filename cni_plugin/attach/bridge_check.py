"""Compares what an ADD of the attach mode `bridge` made with what the kernel holds: CHECK, and repair.

MACs and MTUs are compared with prevResult, which later plugins of the chain keep true; what
they do not report (routes) is compared loosely. What is on the node can be mended from here: bridge, port
and gateway. What is in the pod is the pod's, and only CHECK looks at it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from netaddr import IPNetwork

from cni_plugin.attach import interface
from cni_plugin.attach.bridge import ensure_shared
from cni_plugin.attach.gateway import address_on_node, compare_forwarding, connected_route, ensure_gateway
from cni_plugin.attach.veth import join_bridge, set_vlans
from cni_plugin.config.network import alias_prefix
from cni_plugin.contract.errors import broken
from cni_plugin.contract.inet import is_among
from cni_plugin.kernel.addr import list_addresses
from cni_plugin.kernel.bridge import set_hairpin, set_isolated
from cni_plugin.kernel.link import IFF_UP, Link, get_link, set_mac, set_mtu, set_up
from cni_plugin.kernel.route import has_route, set_route
from cni_plugin.kernel.vlan import list_vlans

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.attach.bridge_plan import BridgePlan
    from cni_plugin.contract.result import Interface, Result
    from cni_plugin.features.damage import Damage
    from cni_plugin.features.feature import Site
    from cni_plugin.kernel.netns import Namespace


def check(plan: BridgePlan, site: Site, result: Result) -> None:
    """Raise CNIError 100 for the first thing that is not as ADD left it."""
    from cni_plugin.features.damage import refuse

    host, pod = site.host, site.present_pod
    bridge = _require_link(host, plan.bridge)
    refuse(compare_bridge(plan, bridge, host))
    _check_mac(bridge, "", result)
    port = _require_link(host, plan.pod.attachment.host_ifname)
    refuse(_compare_port(plan, bridge, port, host))
    inside = interface.require_link(pod, site.attachment)
    _check_veth(plan, port, inside, result, host)
    interface.check_addresses(pod, inside, result)
    if plan.container_interface_up:
        interface.check_routes(pod, inside, result)
        _check_forwarding(port)
    refuse(_compare_gateway(plan, bridge, host, result))
    refuse(_compare_segment(plan, 0, host))


def compare_shared(plan: BridgePlan, mtu: int, host: Namespace) -> Iterator[Damage]:
    """Yield what is wrong with the bridge, as far as there is one, and with what leads elsewhere from it."""
    from cni_plugin.attach import both_kinds
    from cni_plugin.features.damage import Damage

    bridge = get_link(host.netlink, plan.bridge)
    if bridge is not None:
        yield from compare_bridge(plan, bridge, host, mtu)
    yield from _compare_segment(plan, mtu, host)
    subnets = [each.subnet for each in plan.pod.addressing.ranges]
    for command in both_kinds.list_undone(plan.bridge, subnets, host):
        said = f"bridge {plan.bridge}: wanted it to know the routed pods, found undone: {command}"
        mend = partial(both_kinds.ensure, plan.bridge, subnets, host)
        yield Damage(kind="neighbour", said=said, mend=mend)


def _compare_segment(plan: BridgePlan, mtu: int, host: Namespace) -> Iterator[Damage]:
    if plan.segment is None:
        return
    from cni_plugin.attach import segment  # for the few networks that are one over all nodes
    from cni_plugin.features.damage import Damage

    for command in segment.list_undone(plan, plan.segment, host):
        said = f"bridge {plan.bridge}: wanted it to lead to the other nodes, found undone: {command}"
        yield Damage(kind="port", said=said, mend=partial(ensure_shared, plan, host, mtu))


def compare(plan: BridgePlan, mtu: int, site: Site, result: Result) -> Iterator[Damage]:
    """Yield what the node does not hold of an attachment: its bridge, its port and its gateway."""
    from cni_plugin.features.damage import Damage

    host = site.host
    bridge = get_link(host.netlink, plan.bridge)
    if bridge is None:
        # With the MAC that the pods know it by.
        told = _find_interface(result, plan.bridge, "")
        known = replace(plan, bridge_mac=plan.bridge_mac or (told.mac.lower() if told else ""))
        said = f"link {plan.bridge}: wanted it, found none"
        yield Damage(kind="link", said=said, mend=partial(ensure_shared, known, host, mtu))
        return
    yield from compare_bridge(plan, bridge, host, mtu)
    port = get_link(host.netlink, plan.pod.attachment.host_ifname)
    if port is None:
        said = f"link {plan.pod.attachment.host_ifname}: wanted it, found none"
        yield Damage(kind="link", said=said, mend=None)
        return
    yield from _compare_port(plan, bridge, port, host)
    yield from _compare_reported(port, result, host)
    if plan.container_interface_up and not port.flags & IFF_UP:
        said = f"link {port.name}: wanted it up, found it down"
        yield Damage(kind="link", said=said, mend=partial(host.netlink.change, set_up(port.name)))
    yield from _compare_gateway(plan, bridge, host, result)


def _require_link(host: Namespace, name: str) -> Link:
    link = get_link(host.netlink, name)
    if link is None:
        raise broken(f"link {name}: wanted it, found none")
    return link


def compare_bridge(plan: BridgePlan, bridge: Link, host: Namespace, mtu: int = 0) -> Iterator[Damage]:
    """Yield how the bridge differs; all of it is mended at once. `mtu` as `ensure_shared` takes it."""
    from cni_plugin.features.damage import Damage

    if bridge.kind != "bridge":
        said = f"link {bridge.name}: wanted a bridge, found kind {bridge.kind!r}"
        yield Damage(kind="link", said=said, mend=None)
        return
    wrong = {
        "it up, found it down": not bridge.flags & IFF_UP,
        "promiscuous mode, found it off": plan.promisc and not bridge.promisc,
        "vlan_filtering 1, found 0": bool(plan.port.vlans) and not bridge.vlan_filtering,
    }
    ensure = partial(ensure_shared, plan, host, mtu)
    for words, is_wrong in wrong.items():
        if is_wrong:
            yield Damage(kind="link", said=f"bridge {bridge.name}: wanted {words}", mend=ensure)


def _check_mac(link: Link, sandbox: str, result: Result) -> None:
    """Compare the MAC with what the result says of this interface."""
    reported = _find_interface(result, link.name, sandbox)
    if reported is None:
        raise broken(f"link {link.name}: wanted it among the interfaces of prevResult, found it missing")
    if reported.mac and reported.mac.lower() != link.mac:
        raise broken(f"link {link.name}: wanted MAC {reported.mac}, found {link.mac}")


def _find_interface(result: Result, name: str, sandbox: str) -> Interface | None:
    found = (i for i in result.interfaces if i.name == name and i.sandbox == sandbox)
    return next(found, None)


def _compare_reported(port: Link, result: Result, host: Namespace) -> Iterator[Damage]:
    """Compare the host's end with what the result says of it."""
    from cni_plugin.features.damage import Damage

    told = _find_interface(result, port.name, "")
    if told and told.mac and told.mac.lower() != port.mac:
        said = f"link {port.name}: wanted MAC {told.mac}, found {port.mac}"
        yield Damage(kind="link", said=said, mend=partial(host.netlink.change, set_mac(port.name, told.mac)))
    if told and told.mtu and told.mtu != port.mtu:
        said = f"link {port.name}: wanted MTU {told.mtu}, found {port.mtu}"
        yield Damage(kind="link", said=said, mend=partial(host.netlink.change, set_mtu(port.name, told.mtu)))


def _compare_port(plan: BridgePlan, bridge: Link, port: Link, host: Namespace) -> Iterator[Damage]:
    from cni_plugin.features.damage import Damage

    prefix = alias_prefix(plan.pod.attachment.identity, plan.pod.attachment.network)
    if port.kind != "veth" or not port.alias.startswith(prefix):
        said = f"link {port.name}: wanted our veth with alias {prefix!r}, found {port.kind!r} {port.alias!r}"
        yield Damage(kind="port", said=said, mend=None)
        return
    if port.master != bridge.index or port.port is None:
        said = f"link {port.name}: wanted it in bridge {bridge.name}, found master index {port.master}"
        yield Damage(kind="port", said=said, mend=partial(join_bridge, plan, bridge, host))
        return
    # One that is to be isolated is so by other means where it has host ports: features/isolation.py.
    if port.port.isolated and not plan.port.isolated:
        said = f"bridge port {port.name}: wanted isolated False, found True"
        mend = partial(host.netlink.change, set_isolated(port.name, on=False))
        yield Damage(kind="port", said=said, mend=mend)
    # Host ports need hairpin where br_netfilter is on, and switch it on by themselves.
    if plan.port.hairpin and not port.port.hairpin:
        said = f"bridge port {port.name}: wanted hairpin True, found False"
        mend = partial(host.netlink.change, set_hairpin(port.name))
        yield Damage(kind="port", said=said, mend=mend)
    if plan.port.vlans:
        yield from _compare_vlans(plan, port, host)


def _check_forwarding(port: Link) -> None:
    """Complain of a port that passes nothing, last of all: a link that is down is the better news."""
    if port.port is None or not (port.port.forwarding or port.port.blocked_by_stp):
        raise broken(f"bridge port {port.name}: wanted it forwarding, found it disabled")


def _compare_vlans(plan: BridgePlan, port: Link, host: Namespace) -> Iterator[Damage]:
    from cni_plugin.features.damage import Damage

    present = {vlan.vid: vlan for vlan in list_vlans(host.netlink, port.index)}
    for vlan in plan.port.vlans:
        for vid in range(vlan.vid, vlan.last + 1):
            found = present.get(vid)
            if found is None or (vlan.pvid and not found.pvid):
                said = f"bridge port {port.name}: wanted VLAN {vlan}, found {found or 'none'}"
                yield Damage(kind="port", said=said, mend=partial(set_vlans, plan, host))
                return


def _check_veth(plan: BridgePlan, port: Link, inside: Link, result: Result, host: Namespace) -> None:
    from cni_plugin.features.damage import refuse

    if inside.kind != "veth" or inside.index != port.peer or inside.peer != port.index:
        raise broken(
            f"interface {inside.name}: wanted the peer of {port.name}, found another link of that name"
        )
    _check_mac(port, "", result)
    _check_mac(inside, plan.pod.attachment.netns, result)
    refuse(_compare_reported(port, result, host))
    _check_mtu(port, plan.pod.mtu, _find_interface(result, port.name, ""))
    _check_mtu(inside, 0, _find_interface(result, inside.name, plan.pod.attachment.netns))
    if inside.mtu > port.mtu:
        raise broken(
            f"interface {inside.name}: wanted MTU {port.mtu} as {port.name} has at most, found {inside.mtu}"
        )


def _check_mtu(link: Link, configured: int, reported: Interface | None) -> None:
    """Compare with the MTU in the result, or in versions without one with the configured MTU."""
    wanted = (reported.mtu if reported else None) or configured
    if wanted and link.mtu != wanted:
        raise broken(f"link {link.name}: wanted MTU {wanted}, found {link.mtu}")


def _compare_gateway(plan: BridgePlan, bridge: Link, host: Namespace, result: Result) -> Iterator[Damage]:
    """Yield what the node lacks as the gateway of the attachment's addresses."""
    from cni_plugin.backend.route_conflicts import find_detour
    from cni_plugin.features.damage import Damage

    if not plan.gateway.wanted:
        return
    own = result.addresses_on(plan.pod.attachment.ifname)
    ensure = partial(ensure_gateway, plan, bridge, own, bridge.mtu, host)
    holder = get_link(host.netlink, plan.gateway.ifname)
    if holder is None:
        yield Damage(kind="link", said=f"link {plan.gateway.ifname}: wanted it, found none", mend=ensure)
        return
    if plan.gateway.vlan and not holder.flags & IFF_UP:
        yield Damage(kind="link", said=f"link {holder.name}: wanted it up, found it down", mend=ensure)
    for ip in own:
        wanted = address_on_node(ip)
        present = list_addresses(host.netlink, holder.index, link_local=wanted.ip.is_link_local())
        if not is_among(wanted, present):
            said = f"link {holder.name}: wanted gateway address {wanted}, found {sorted(map(str, present))}"
            yield Damage(kind="address", said=said, mend=ensure)
            continue
        detours = list(find_detour(host.netlink, IPNetwork(ip.address.ip), holder.index))
        if detours and not has_route(host.netlink, ip.address.ip, holder.index):
            said = f"route to {ip.address.ip}: wanted one over {holder.name}, found none"
            way = set_route(connected_route(holder, ip))
            yield Damage(kind="route", said=said, mend=partial(host.netlink.change, way))
        else:
            yield from detours
    yield from compare_forwarding(own, host)
