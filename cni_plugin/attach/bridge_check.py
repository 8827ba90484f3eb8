"""CHECK of the attach mode `bridge`: compares what ADD made with what the kernel holds.

MACs and MTUs are compared with prevResult, which later plugins of the chain keep true; what
they do not report (routes) is compared loosely. Nothing is recomputed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.attach import interface
from cni_plugin.attach.gateway import address_on_node
from cni_plugin.config.network import alias_prefix
from cni_plugin.contract.errors import broken
from cni_plugin.contract.inet import is_among
from cni_plugin.kernel.addr import list_addresses
from cni_plugin.kernel.link import IFF_UP, Link, get_link
from cni_plugin.kernel.route import list_routes
from cni_plugin.kernel.sysctl import FORWARDING, get_sysctl
from cni_plugin.kernel.vlan import list_vlans

if TYPE_CHECKING:
    from cni_plugin.attach.bridge_plan import BridgePlan
    from cni_plugin.backend.backend import Segment
    from cni_plugin.contract.result import Interface, Result
    from cni_plugin.features.feature import Site
    from cni_plugin.kernel.netns import Namespace


def check(plan: BridgePlan, site: Site, result: Result) -> None:
    """Raise CNIError 100 for the first thing that is not as ADD left it."""
    host, pod = site.host, site.present_pod
    bridge = _require_link(host, plan.bridge)
    _check_bridge(plan, bridge, result)
    port = _require_link(host, site.attachment.host_ifname)
    _check_port(plan, bridge, port, host)
    inside = interface.require_link(pod, site.attachment)
    _check_veth(plan, port, inside, result)
    interface.check_addresses(pod, inside, result)
    if plan.container_interface_up:
        interface.check_routes(pod, inside, result)
        _check_forwarding(port)
    if plan.gateway.wanted:
        _check_gateway(plan, host, result)
    if plan.segment is not None:
        _check_segment(plan, plan.segment, host)


def _check_segment(plan: BridgePlan, joined: Segment, host: Namespace) -> None:
    from cni_plugin.attach import segment  # for the few networks that are one over all nodes

    for command in segment.list_undone(plan, joined, host):
        raise broken(f"bridge {plan.bridge}: wanted it to lead to the other nodes, found undone: {command}")


def _require_link(host: Namespace, name: str) -> Link:
    link = get_link(host.netlink, name)
    if link is None:
        raise broken(f"link {name}: wanted it, found none")
    return link


def _check_bridge(plan: BridgePlan, bridge: Link, result: Result) -> None:
    if bridge.kind != "bridge":
        raise broken(f"link {bridge.name}: wanted a bridge, found kind {bridge.kind!r}")
    if not bridge.flags & IFF_UP:
        raise broken(f"bridge {bridge.name}: wanted it up, found it down")
    if plan.promisc and not bridge.promisc:
        raise broken(f"bridge {bridge.name}: wanted promiscuous mode, found it off")
    if plan.port.vlans and not bridge.vlan_filtering:
        raise broken(f"bridge {bridge.name}: wanted vlan_filtering 1, found 0")
    _check_reported(bridge, "", result)


def _check_reported(link: Link, sandbox: str, result: Result) -> None:
    """Compare MAC and MTU with what the result says of this interface."""
    reported = _find_interface(result, link.name, sandbox)
    if reported is None:
        raise broken(f"link {link.name}: wanted it among the interfaces of prevResult, found it missing")
    if reported.mac and reported.mac.lower() != link.mac:
        raise broken(f"link {link.name}: wanted MAC {reported.mac}, found {link.mac}")


def _find_interface(result: Result, name: str, sandbox: str) -> Interface | None:
    found = (i for i in result.interfaces if i.name == name and i.sandbox == sandbox)
    return next(found, None)


def _check_port(plan: BridgePlan, bridge: Link, port: Link, host: Namespace) -> None:
    prefix = alias_prefix(plan.pod.attachment.identity, plan.pod.attachment.network)
    if port.kind != "veth" or not port.alias.startswith(prefix):
        raise broken(
            f"link {port.name}: wanted our veth with alias {prefix!r}, found {port.kind!r} {port.alias!r}"
        )
    if port.master != bridge.index or port.port is None:
        raise broken(f"link {port.name}: wanted it in bridge {bridge.name}, found master index {port.master}")
    # One that is to be isolated is so by other means where it has host ports: features/isolation.py.
    if port.port.isolated and not plan.port.isolated:
        raise broken(f"bridge port {port.name}: wanted isolated False, found True")
    # Host ports need it where br_netfilter is on, and switch it on by themselves.
    if plan.port.hairpin and not port.port.hairpin:
        raise broken(f"bridge port {port.name}: wanted hairpin True, found False")
    if plan.port.vlans:
        _check_vlans(plan, port, host)


def _check_forwarding(port: Link) -> None:
    """Complain of a port that passes nothing, last of all: a link that is down is the better news."""
    if port.port is None or not (port.port.forwarding or port.port.blocked_by_stp):
        raise broken(f"bridge port {port.name}: wanted it forwarding, found it disabled")


def _check_vlans(plan: BridgePlan, port: Link, host: Namespace) -> None:
    present = {vlan.vid: vlan for vlan in list_vlans(host.netlink, port.index)}
    for vlan in plan.port.vlans:
        for vid in range(vlan.vid, vlan.last + 1):
            found = present.get(vid)
            if found is None or (vlan.pvid and not found.pvid):
                raise broken(f"bridge port {port.name}: wanted VLAN {vlan}, found {found or 'none'}")


def _check_veth(plan: BridgePlan, port: Link, inside: Link, result: Result) -> None:
    if inside.kind != "veth" or inside.index != port.peer or inside.peer != port.index:
        raise broken(
            f"interface {inside.name}: wanted the peer of {port.name}, found another link of that name"
        )
    _check_reported(port, "", result)
    _check_reported(inside, plan.pod.attachment.netns, result)
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


def _check_gateway(plan: BridgePlan, host: Namespace, result: Result) -> None:
    holder = _require_link(host, plan.gateway.ifname)
    for ip in result.addresses_on(plan.pod.attachment.ifname):
        wanted = address_on_node(ip)
        present = list_addresses(host.netlink, holder.index, link_local=wanted.ip.is_link_local())
        if not is_among(wanted, present):
            raise broken(
                f"link {holder.name}: wanted gateway address {wanted}, found {sorted(map(str, present))}"
            )
        routes = list_routes(host.netlink, ip.address.version)
        if not any(route.index == holder.index and ip.address.ip in route.dst for route in routes):
            raise broken(f"route to {ip.address.ip}: wanted one over {holder.name}, found none")
        key = FORWARDING[ip.address.version]
        if get_sysctl(key) == "0":
            raise broken(f"sysctl {key}: wanted 1, found 0")
