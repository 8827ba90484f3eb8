"""The node as the pods' gateway: its address on the bridge, forwarding, and the routes to it.

Shared by all pods of the network, so ensured by every ADD and undone by none. With an access
VLAN the address sits on a veth called `<bridge>.<vlan>` whose other end is a port in that VLAN.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.attach.veth import host_mac
from cni_plugin.contract.errors import invalid_config
from cni_plugin.contract.inet import default_route, is_among, width, with_prefix
from cni_plugin.contract.result import Route
from cni_plugin.kernel.addr import delete_address, ensure_address, list_addresses
from cni_plugin.kernel.bridge import find_foreign_port
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.link import (
    VethPair,
    add_veth,
    get_link,
    get_link_by_index,
    get_other_end,
    set_master,
    set_up,
)
from cni_plugin.kernel.netconf import (
    ensure_family,
    ensure_forwarding,
    has_family,
    ignore_routers,
    require_forwarding,
)
from cni_plugin.kernel.route import (
    KERNEL_PROTO,
    MAIN_TABLE,
    PODWIRE_PROTO,
    RouteSpec,
    set_route,
    wait_until_local,
)
from cni_plugin.kernel.sysctl import FORWARDING, get_sysctl, require_family
from cni_plugin.kernel.vlan import access_vlan, add_vlan

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from netaddr import IPAddress, IPNetwork

    from cni_plugin.attach.bridge_plan import BridgePlan
    from cni_plugin.backend.shared_facts import SurveyProblem
    from cni_plugin.contract.result import IPConfig, Result
    from cni_plugin.features.damage import Damage
    from cni_plugin.kernel.link import Link
    from cni_plugin.kernel.netlink import Netlink
    from cni_plugin.kernel.netns import Namespace


_IPV6_METRIC = 256  # linux/ipv6_route.h: IP6_RT_PRIO_ADDRCONF


def complete(plan: BridgePlan, addresses: Result) -> Result:
    """Return the delegate's result with the gateways and default routes that the keys ask for.

    Where the delegate names no gateway it is the network's first address, as in the reference.
    """
    if not plan.gateway.wanted:
        return addresses
    ips = tuple(replace(ip, gateway=gateway_of(ip)) for ip in addresses.ips)
    routes = addresses.routes
    if plan.gateway.default:
        routes += tuple(_default_routes(ips, routes))
    return replace(addresses, ips=ips, routes=routes)


def gateway_of(ip: IPConfig) -> IPAddress:
    """Return the gateway of an address, or raise CNIError 7 when its network has room for none."""
    if ip.gateway is not None:
        return ip.gateway
    network = ip.address.cidr
    if network.prefixlen > width(network.ip) - 2:
        raise invalid_config(f'"isGateway": {ip.address} leaves no address for a gateway; name one in "ipam"')
    return network.network + 1


def _default_routes(ips: tuple[IPConfig, ...], routes: tuple[Route, ...]) -> Iterator[Route]:
    """Yield the default route of each family that has none yet, with or without a gateway named."""
    served = served_by_default(routes)
    for ip in ips:
        if ip.address.version not in served:
            served.add(ip.address.version)
            yield Route(dst=default_route(ip.address.version), gw=ip.gateway)


def served_by_default(routes: Iterable[Route]) -> set[int]:
    """Return the families (4, 6) that have a default route; one of another table than main is none."""
    defaults = (route for route in routes if route.dst.prefixlen == 0)
    return {route.dst.version for route in defaults if route.table in {None, MAIN_TABLE}}


def ensure_gateway(
    plan: BridgePlan, bridge: Link, ips: Iterable[IPConfig], mtu: int, host: Namespace
) -> Link:
    """Give the node the gateway addresses and switch forwarding on; return the link that holds them."""
    if not plan.gateway.wanted:
        return bridge
    holder = _ensure_vlan_link(plan, bridge, mtu, host) if plan.gateway.vlan else bridge
    for ip in ips:
        require_family(ip.address.version)
        _ensure_gateway_address(plan, holder, address_on_node(ip), host)
        _ensure_subnet_route(holder, ip, host)
        ensure_forwarding(host.netlink, ip.address.version)
    return holder


def _ensure_subnet_route(holder: Link, ip: IPConfig, host: Namespace) -> None:
    """Give the node the way to the pods where its own address there, outside of their subnet, gives none."""
    if gateway_of(ip) not in ip.address.cidr:
        host.netlink.change(set_route(subnet_route(holder, ip)))


def subnet_route(holder: Link, ip: IPConfig) -> RouteSpec:
    """Return the node's route to the subnet of an address outside of which its gateway is."""
    return RouteSpec(dst=ip.address.cidr, index=holder.index, proto=PODWIRE_PROTO)


def connected_route(holder: Link, ip: IPConfig) -> RouteSpec:
    """Return the node's route to the subnet of an address, as the kernel makes it with the gateway's."""
    gateway = gateway_of(ip)
    if gateway not in ip.address.cidr:
        return subnet_route(holder, ip)
    source, priority = (gateway, None) if gateway.version == 4 else (None, _IPV6_METRIC)
    return RouteSpec(
        dst=ip.address.cidr, index=holder.index, source=source, priority=priority, proto=KERNEL_PROTO
    )


def address_on_node(ip: IPConfig) -> IPNetwork:
    """Return the gateway with the prefix length of the pod's address."""
    return with_prefix(gateway_of(ip), ip.address.prefixlen)


def _ensure_gateway_address(plan: BridgePlan, holder: Link, wanted: IPNetwork, host: Namespace) -> None:
    present = list_addresses(host.netlink, holder.index, link_local=True)
    if is_among(wanted, present):
        return
    for other in _conflicts(plan, wanted, present):
        if not plan.gateway.force_address:
            raise invalid_config(
                f'"{holder.name}" already has an IP address different from {wanted}: {other}'
            )
        delete_address(host.netlink, holder.index, other)
    _ensure_family(holder, wanted.version, host.netlink)
    ensure_address(host.netlink, holder.index, wanted)
    wait_until_local(host.netlink, holder.index, [wanted.ip])


def _ensure_family(holder: Link, version: int, nl: Netlink) -> None:
    """Switch IPv6 on where the node has it off for new links; CNIError 7 on a link that is not ours."""
    foreign = find_foreign_port(nl, holder) if holder.kind == "bridge" else None
    if foreign is None:
        ensure_family(nl, holder.name, version)
    elif not has_family(nl, holder.name, version):
        raise invalid_config(
            f"bridge {holder.name}: wanted IPv6 on it, found net.ipv6.conf.{holder.name}.disable_ipv6 1; "
            f"it is not ours to change while {foreign.name} is one of its ports"
        )


def find_stale(plan: BridgePlan, host: Namespace) -> list[SurveyProblem]:
    """Return the addresses on the bridge that would keep the gateway's away."""
    from cni_plugin.backend.shared_facts import SurveyProblem  # no call of a runtime needs it

    holder = get_link(host.netlink, plan.gateway.ifname)
    if not plan.gateway.wanted or plan.gateway.force_address or holder is None:
        return []
    present = list_addresses(host.netlink, holder.index)
    missing = [each for each in _own_gateways(plan) if not is_among(each, present)]
    stale = {str(other): each for each in missing for other in _conflicts(plan, each, present)}
    return [
        SurveyProblem(
            object=holder.name,
            found=f"it has {other}, where the network's gateway {each} belongs",
            remedy=f"ip addr del {other} dev {holder.name}",
        )
        for other, each in sorted(stale.items())
    ]


def drop_other_subnets(holder: Link, subnets: Collection[IPNetwork], nl: Netlink) -> int:
    """Remove the addresses that no subnet of this node has; return their number.

    They are of subnets it had before: another node's by now, and a link's own route hides the way there.
    """
    stale = [a for a in list_addresses(nl, holder.index) if not any(a.ip in subnet for subnet in subnets)]
    for address in stale:
        delete_address(nl, holder.index, address)
    return len(stale)


def _own_gateways(plan: BridgePlan) -> list[IPNetwork]:
    """Return the gateways of the network's ranges, each of which some pod may have."""
    facts = [each for each in plan.pod.addressing.ranges if each.gateway is not None]
    return [with_prefix(each.gateway, each.subnet.prefixlen) for each in facts if each.gateway]


def _conflicts(plan: BridgePlan, wanted: IPNetwork, present: list[IPNetwork]) -> list[IPNetwork]:
    """Return the addresses that cannot stand beside `wanted`.

    As in the reference: of IPv4 a bridge has one address, of IPv6 one per network. Only the gateways of
    the network's own ranges stay beside each other: pods have the one or the other. A link-local one stays
    beside the link's own, which it has on every link.
    """
    if wanted.version == 6 and wanted.ip.is_link_local():
        return []
    own = _own_gateways(plan)
    family = [a for a in present if a.version == wanted.version and not is_among(a, own)]
    return [a for a in family if wanted.version == 4 or a.cidr in wanted.cidr or wanted.cidr in a.cidr]


def _ensure_vlan_link(plan: BridgePlan, bridge: Link, mtu: int, host: Namespace) -> Link:
    name = plan.gateway.ifname
    if get_link(host.netlink, name) is None:
        port_name = _vlan_port_name(name)
        _add_vlan_link(
            VethPair(
                name=port_name,
                mac=host_mac(port_name),
                master=bridge.index,
                mtu=mtu,
                peer_name=name,
                peer_mac=host_mac(name),
                peer_netns=host.fd,
            ),
            host,
        )
    _rejoin_vlan_port(name, bridge, host)
    holder, port = _require_vlan_link(name, bridge, host)
    if plan.port.vlans:
        host.netlink.change(add_vlan(port.name, port.index, access_vlan(plan.gateway.vlan)))
    ignore_routers(host.netlink, name)
    host.netlink.change(set_up(name))
    return holder


def _rejoin_vlan_port(name: str, bridge: Link, host: Namespace) -> None:
    """Put the other end of the gateway's veth back into the bridge, where we made it and it is in none."""
    holder = get_link(host.netlink, name)
    port = get_other_end(host.netlink, holder) if holder else None
    if port and not port.master and port.name == _vlan_port_name(name):
        host.netlink.change(set_master(port.name, bridge.index), set_up(port.name))


def _vlan_port_name(name: str) -> str:
    return f"veth{host_mac(name).replace(':', '')[1:]}"


def _require_vlan_link(name: str, bridge: Link, host: Namespace) -> tuple[Link, Link]:
    """Return the gateway's veth, ours or the Go reference's, and its other end, a port of the bridge."""
    holder = get_link(host.netlink, name)
    port = get_link_by_index(host.netlink, holder.peer) if holder and holder.kind == "veth" else None
    if holder is None or port is None or port.peer != holder.index or port.master != bridge.index:
        raise invalid_config(
            f"{name}: wanted the gateway's veth with its other end in bridge {bridge.name}, "
            "found another link"
        )
    return holder, port


def _add_vlan_link(pair: VethPair, host: Namespace) -> None:
    try:
        add_veth(host.netlink, pair)
    except KernelError as error:
        # Another ADD made it at the same time.
        if error.errno != errno.EEXIST:
            raise


def require_families(plan: BridgePlan) -> None:
    """Raise CNIError 50 when this node cannot be the gateway of pods with the plan's families."""
    for version in sorted(plan.pod.addressing.families):
        if plan.gateway.wanted:
            require_forwarding(version, plan.gateway.ifname)
        else:
            require_family(version)


def compare_forwarding(ips: Iterable[IPConfig], host: Namespace) -> Iterator[Damage]:
    """Yield the families of these addresses that the node does not forward."""
    from cni_plugin.features.damage import Damage

    for version in sorted({ip.address.version for ip in ips}):
        key = FORWARDING[version]
        if get_sysctl(key) == "0":
            mend = partial(ensure_forwarding, host.netlink, version)
            yield Damage(kind="sysctl", said=f"sysctl {key}: wanted 1, found 0", mend=mend)
