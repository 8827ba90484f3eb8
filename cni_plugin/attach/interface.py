"""The pod's interface, in every mode: addresses, routes, and the parameters that must precede them.

Addresses are set on the interface while it is down and without duplicate address detection,
in one send with the link-up and the routes; IPv6 is usable when its local routes are there too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.config.network import render_alias
from cni_plugin.contract.errors import CNIError, Code, broken, invalid_config
from cni_plugin.contract.inet import is_among, is_assignable, width
from cni_plugin.kernel.addr import add_address, list_addresses, list_unsettled
from cni_plugin.kernel.bridge import random_mac
from cni_plugin.kernel.link import IFF_UP, Link, get_link, get_link_by_index, set_mac, set_up
from cni_plugin.kernel.route import RouteSpec, add_route, find_default_route, list_routes, wait_until_local
from cni_plugin.kernel.sysctl import ensure_sysctl, has_sysctl, prefer_sysctl, require_family
from ipam.seam import waits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netaddr import IPAddress, IPNetwork

    from cni_plugin.config.network import Addressing, Attachment, Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.result import DNS, IPConfig, Result, Route
    from cni_plugin.kernel.netlink import Netlink
    from cni_plugin.kernel.netns import Namespace

MIN_IPV6_MTU = 1280  # bytes, RFC 8200 section 5
WITHOUT_UPLINK = 1500  # bytes, Ethernet's
_NOTIFY = {4: "arp_notify", 6: "ndisc_notify"}
_SETTLE_TIMEOUT = 5.0  # seconds; the kernel's own detection takes one to two
_SETTLE_POLL = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfacePlan:
    """What the pod's interface is to be, in every mode. `mtu` (0: automatic) and `mtu_overhead` in bytes."""

    attachment: Attachment
    alias: str
    """Of the host's end."""
    mac: str
    mtu: int
    mtu_overhead: int
    addressing: Addressing
    dad: bool
    dns: DNS


def plan_interface(fields: Fields, network: Network, addressing: Addressing) -> InterfacePlan:
    """Return what the configuration says of the pod's interface; CNIError 7 for what cannot be."""
    return InterfacePlan(
        attachment=network.attachment,
        alias=render_alias(network.attachment, network.pod),
        mac=network.mac or random_mac(),
        mtu=network.mtu,
        mtu_overhead=network.mtu_overhead,
        addressing=addressing,
        dad=fields.boolean("enabledad"),
        dns=network.dns,
    )


def automatic_mtu(nl: Netlink, families: frozenset[int]) -> int:
    """Return the MTU in bytes for these families (4, 6) where none is configured.

    It is the smallest of the interfaces that hold their default routes. A bridge that is not ours to change
    lowers it (kernel/bridge.py).
    """
    return min(_uplink_mtus(nl, families), default=WITHOUT_UPLINK)


def _uplink_mtus(nl: Netlink, families: frozenset[int]) -> Iterator[int]:
    for version in sorted(families):
        route = find_default_route(nl, version)
        uplink = get_link_by_index(nl, route.index) if route else None
        if uplink is not None:
            yield uplink.mtu


def refuse_existing(pod: Namespace, attachment: Attachment) -> None:
    """Raise CNIError 4 when the pod has an interface of the wanted name."""
    if get_link(pod.netlink, attachment.ifname) is not None:
        raise CNIError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_IFNAME {attachment.ifname}: wanted a new interface, "
            f"found one of that name in {attachment.netns}",
        )


def require_link(pod: Namespace, attachment: Attachment) -> Link:
    """Return the pod's interface; CNIError 100 when it is gone."""
    link = get_link(pod.netlink, attachment.ifname)
    if link is None:
        raise broken(f"interface {attachment.ifname} in {attachment.netns}: wanted it, found none")
    return link


def refuse_small_mtu(mtu: int, families: frozenset[int] | set[int]) -> None:
    """Raise CNIError 7 when IPv6 cannot work over this MTU (bytes)."""
    if 6 in families and mtu < MIN_IPV6_MTU:
        raise invalid_config(f'"mtu" must be at least {MIN_IPV6_MTU} for IPv6, found {mtu}')


def refuse_unassignable(ips: tuple[IPConfig, ...]) -> None:
    """Raise CNIError 7 for an address or a gateway that no host can have, whoever gave it."""
    for ip in ips:
        for what, address in (("address", ip.address.ip), ("gateway", ip.gateway)):
            if address is not None and not is_assignable(address):
                raise invalid_config(f"{what} {address}: wanted one that a host can have")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outfit:
    """What a pod's interface is given."""

    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dad: bool = False
    follows_routers: bool = True
    """Whether it takes addresses and routes from any neighbour that says it is a router."""


def dress(pod: Namespace, link: Link, outfit: Outfit) -> None:
    """Give the interface its addresses, bring it up and add its routes.

    With `dad` the kernel probes for duplicates and this waits until it has: CNIError 11 when
    it takes too long, CNIError 999 when there is a duplicate.
    """
    with pod.entered():
        if any(ip.address.version == 6 for ip in outfit.ips):
            _prepare_ipv6(link.name, dad=outfit.dad)
        if not outfit.follows_routers:
            _ignore_routers(link.name)
    addresses = [add_address(link.index, ip.address, dad=outfit.dad) for ip in outfit.ips]
    routes = [add_route(spec) for spec in plan_routes(link.index, outfit)]
    if outfit.dad:
        pod.netlink.change(*addresses, set_up(link.name))
        _wait_until_settled(pod, link)
        pod.netlink.change(*routes)
    else:
        pod.netlink.change(*addresses, set_up(link.name), *routes)


def _prepare_ipv6(ifname: str, *, dad: bool) -> None:
    """Set what takes effect only before the link is up."""
    require_family(6)
    for name in ("lo", ifname):
        ensure_sysctl(f"net/ipv6/conf/{name}/disable_ipv6", 0)
    conf = f"net/ipv6/conf/{ifname}"
    prefer_sysctl(f"{conf}/keep_addr_on_down", 1, "a link that is set down and up loses its IPv6 addresses")
    # Without detection the link-local address is usable at once too, and neighbour discovery
    # from it does not wait.
    prefer_sysctl(f"{conf}/accept_dad", int(dad), "the pod's link-local address waits up to two seconds")
    if dad:
        # RFC 7527: a looped-back probe is not a duplicate.
        prefer_sysctl(f"{conf}/enhanced_dad", 1, "a looped-back probe is taken for a duplicate address")


def _ignore_routers(ifname: str) -> None:
    """Keep a neighbour that advertises itself from becoming the pod's router: CVE-2020-10749."""
    key = f"net/ipv6/conf/{ifname}/accept_ra"
    if has_sysctl(key):  # below 1280 bytes, and without IPv6, there is none
        prefer_sysctl(key, 0, "a neighbour can make itself the pod's router")


def plan_routes(index: int, outfit: Outfit) -> list[RouteSpec]:
    """Return the routes to install, each once; one without a gateway goes over the first of its family."""
    return list(dict.fromkeys(_plan_route(index, route, outfit.ips) for route in outfit.routes))


def _plan_route(index: int, route: Route, ips: tuple[IPConfig, ...]) -> RouteSpec:
    gw = route.gw
    if gw is None and not is_link_scope(route):
        gw = first_gateway(ips, route.dst.version)
    if gw is not None and not is_assignable(gw):
        raise invalid_config(f"route {route.dst}: wanted a gateway that a host can be, found {gw}")
    return RouteSpec(
        dst=route.dst,
        gw=gw,
        index=index,
        onlink=gw is not None and not _is_reachable(gw, ips),
        mtu=route.mtu,
        advmss=route.advmss,
        priority=route.priority,
        table=route.table,
        scope=route.scope,
    )


def is_link_scope(route: Route) -> bool:
    """Tell whether a route says that its destination is on the link, where IPv4 has no gateway."""
    return route.scope in {253, 254}  # RT_SCOPE_LINK, RT_SCOPE_HOST


def first_gateway(ips: tuple[IPConfig, ...], version: int) -> IPAddress | None:
    """Return the first gateway of a family (4 or 6)."""
    gateways = (ip.gateway for ip in ips if ip.gateway is not None)
    return next((gateway for gateway in gateways if gateway.version == version), None)


def _is_reachable(gateway: IPAddress, ips: tuple[IPConfig, ...]) -> bool:
    """Tell whether the kernel knows the gateway as a neighbour without being told so."""
    every_link = gateway.version == 6 and gateway.is_link_local()
    return every_link or any(gateway in ip.address for ip in ips)


def _wait_until_settled(pod: Namespace, link: Link) -> None:
    for _ in waits.looks(_SETTLE_TIMEOUT, _SETTLE_POLL):
        unsettled = list_unsettled(pod.netlink, link.index)
        if not unsettled:
            return
        duplicates = [str(address) for address, duplicate in unsettled if duplicate]
        if duplicates:
            raise CNIError(
                Code.INTERNAL, f"{link.name}: {duplicates} found in use by another node (enabledad)"
            )
    waiting = [str(address) for address, _ in unsettled]
    raise CNIError(
        Code.TRY_AGAIN_LATER,
        f"{link.name}: wanted {waiting} settled in {_SETTLE_TIMEOUT} s, found tentative (enabledad)",
    )


def announce_addresses(pod: Namespace, link: Link, ips: tuple[IPConfig, ...]) -> None:
    """Wait until neighbours can find the pod's addresses, and tell them: ARP and neighbour advertisement.

    The kernel does it for every address when the MAC is set, to the same value too (RFC 5227
    section 3, RFC 4861 section 7.2.6). At link-up, when it would also do it, the port does not
    forward yet. A packet socket of our own would cost a grace period (RCU) to close, about 8 ms.
    """
    wait_until_local(pod.netlink, link.index, [ip.address.ip for ip in ips])
    with pod.entered():
        for version in sorted({ip.address.version for ip in ips}):
            key = f"net/ipv{version}/conf/{link.name}/{_NOTIFY[version]}"
            prefer_sysctl(key, 1, "neighbours are not told of the pod's addresses")
    pod.netlink.change(set_mac(link.name, link.mac))


def check_addresses(pod: Namespace, link: Link, result: Result) -> None:
    """Raise CNIError 100 for the first address of `result` that the interface lacks.

    An address counts when it has no interface index or one that leads to this interface.
    """
    present = list_addresses(pod.netlink, link.index)
    for ip in result.addresses_on(link.name):
        if not is_among(ip.address, present):
            found = sorted(map(str, present))
            raise broken(f"interface {link.name}: wanted address {ip.address}, found {found}")


def check_routes(pod: Namespace, link: Link, result: Result) -> None:
    """Raise CNIError 100 for the first destination of `result` that has no route left.

    A later plugin of the chain may have changed the gateway or moved the route to another
    table (the specification asks for that tolerance), and a route of an earlier one may lead
    over its own interface, so only the destination counts.
    """
    if not link.flags & IFF_UP:
        raise broken(f"interface {link.name}: wanted it up, found it down")
    own = [ip.address for ip in result.addresses_on(link.name)]
    wanted = [route.dst for route in result.routes] + [_prefix(a) for a in own if a.prefixlen < width(a.ip)]
    for version in sorted({dst.version for dst in wanted}):
        present = {route.dst for route in list_routes(pod.netlink, version)}
        missing = [str(dst) for dst in wanted if dst.version == version and dst not in present]
        if missing:
            raise broken(
                f"interface {link.name}: wanted routes to {missing}, found {sorted(map(str, present))}"
            )


def _prefix(address: IPNetwork) -> IPNetwork:
    return address.cidr
