"""Routes of the main table and of others: `ip route add DST via GW dev LINK`.

A route is added without "replace" and without "exclusive", so that two next hops of one
prefix can stand side by side. Attributes: rtnetlink(7), linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from netaddr import IPAddress

from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.contract.inet import default_route, width
from cni_plugin.kernel import netlink
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.message import (
    FAMILY,
    VERSION,
    ip,
    nested,
    parse_address,
    parse_attributes,
    parse_network,
    parse_number,
    u32,
)
from cni_plugin.kernel.netlink import HEADER, Change, Query
from ipam.seam import waits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from netaddr import IPNetwork

    from cni_plugin.kernel.netlink import Netlink

MAIN_TABLE = 254
_RTN_UNICAST, _RTN_LOCAL = 1, 2
_RT_TABLE_MAIN = 254
KERNEL_PROTO, _RTPROT_BOOT, _RTPROT_RA = 2, 3, 9
PODWIRE_PROTO = 112  # a number nobody has in iproute2's rt_protos: the routes that a sync owns
# A sync's routes have a priority from here on (network_priority in backend/peers.py), a pod's have none.
SYNC_PRIORITY = 0x40000000
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_RTNH_F_ONLINK = 4
_LOCAL_TIMEOUT = 5.0  # seconds; the work queue is one for the whole machine
_LOCAL_POLLS = (0.0003, 0.02)  # seconds, from the first to the longest pause
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RTA_METRICS, _RTA_MULTIPATH, _RTA_TABLE = 8, 9, 15
_RTAX_MTU, _RTAX_ADVMSS = 2, 8
_RTM_F_LOOKUP_TABLE, _RTM_F_FIB_MATCH = 0x1000, 0x2000
_RTMSG = struct.Struct("=8BI")
# Reserved for no use (RFC 1112 section 4), and the unspecified address (RFC 4291 section 2.5.2).
_NOWHERE = {4: IPAddress("240.0.0.1"), 6: IPAddress("::")}
# What routes of the types unreachable, prohibit and blackhole answer.
_DENIED = frozenset({errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL})
_HOP = struct.Struct("=4xi")  # struct rtnexthop up to the index


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSpec:
    """A route; `mtu` and `advmss` in bytes, None leaves the kernel's default."""

    dst: IPNetwork
    gw: IPAddress | None = None
    index: int = 0
    source: IPAddress | None = None
    onlink: bool = False
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None
    proto: int = _RTPROT_BOOT


def add_route(spec: RouteSpec) -> Change:
    """Return the change that adds the route; an equal one already there is EEXIST."""
    return Change(_command("add", spec), netlink.RTM_NEWROUTE, _body(spec), netlink.NLM_F_CREATE)


def set_route(spec: RouteSpec) -> Change:
    """Return the change that makes this the route of its destination and priority."""
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
    return Change(_command("replace", spec), netlink.RTM_NEWROUTE, _body(spec), flags)


def remove_route(spec: RouteSpec) -> Change:
    """Return the change that deletes the route."""
    return Change(_command("del", spec), netlink.RTM_DELROUTE, _body(spec))


class _Head(NamedTuple):
    """Struct rtmsg."""

    family: int
    dst_len: int = 0
    src_len: int = 0
    tos: int = 0
    table: int = 0
    proto: int = 0
    scope: int = 0
    type: int = 0
    flags: int = 0


def _body(spec: RouteSpec) -> bytes:
    table = MAIN_TABLE if spec.table is None else spec.table
    head = _Head(
        family=FAMILY[spec.dst.version],
        dst_len=spec.dst.prefixlen,
        # The header has one byte for the table; the attribute holds it whole.
        table=table if table < 256 else 0,
        proto=spec.proto,
        scope=_scope(spec),
        type=_RTN_UNICAST,
        flags=_RTNH_F_ONLINK if spec.onlink else 0,
    )
    return _RTMSG.pack(*head) + u32(_RTA_TABLE, table) + b"".join(_attributes(spec))


def _scope(spec: RouteSpec) -> int:
    if spec.scope is not None:
        return spec.scope
    return _SCOPE_UNIVERSE if spec.gw is not None or spec.dst.version == 6 else _SCOPE_LINK


def _attributes(spec: RouteSpec) -> Iterator[bytes]:
    if spec.dst.prefixlen:
        yield ip(_RTA_DST, spec.dst.ip)
    if spec.gw is not None:
        yield ip(_RTA_GATEWAY, spec.gw)
    if spec.source is not None:
        yield ip(_RTA_PREFSRC, spec.source)
    if spec.index:
        yield u32(_RTA_OIF, spec.index)
    if spec.priority is not None:
        yield u32(_RTA_PRIORITY, spec.priority)
    metrics = [(_RTAX_MTU, spec.mtu), (_RTAX_ADVMSS, spec.advmss)]
    if any(value is not None for _, value in metrics):
        yield nested(_RTA_METRICS, *(u32(kind, value) for kind, value in metrics if value is not None))


def _command(verb: str, spec: RouteSpec) -> str:
    words = [f"ip route {verb} {spec.dst}", f"dev index {spec.index}"]
    words += [f"via {spec.gw}"] if spec.gw is not None else []
    words += [f"src {spec.source}"] if spec.source is not None else []
    words += ["onlink"] if spec.onlink else []
    named = {"mtu": spec.mtu, "advmss": spec.advmss, "metric": spec.priority, "table": spec.table}
    words += [f"{key} {value}" for key, value in named.items() if value is not None]
    return " ".join(words)


def list_routes(nl: Netlink, version: int) -> list[RouteSpec]:
    """Return the unicast routes of all tables of one family (4 or 6)."""
    return [_parse(raw) for raw in _list_raw(nl, version) if _head(raw).type == _RTN_UNICAST]


def list_main_routes(nl: Netlink, version: int) -> list[RouteSpec]:
    """Return the unicast routes of the main table of one family (4 or 6)."""
    return [route for route in list_routes(nl, version) if route.table in {None, _RT_TABLE_MAIN}]


def list_advertised(nl: Netlink) -> list[RouteSpec]:
    """Return the IPv6 routes of all tables that came by router advertisement."""
    return [route for route in list_routes(nl, 6) if route.proto == _RTPROT_RA]


def list_own_routes(nl: Netlink, version: int, priority: int) -> list[RouteSpec]:
    """Return the routes of one family that syncs with this priority own, on whatever link."""
    return list(map(_parse, _list_own(nl, version, priority)))


def count_own_routes(nl: Netlink, version: int, priority: int) -> int:
    """Return how many routes `list_own_routes` would return, without reading one."""
    return len(_list_own(nl, version, priority))


def find_default_route(nl: Netlink, version: int) -> RouteSpec | None:
    """Return the main table's best default route of one family, None when there is none.

    A node of a thousand pods has as many routes. So the kernel is asked which route leads to an
    address that it has no route for, and all are read only when it answers with another one.
    """
    try:
        raw = _match(nl, _NOWHERE[version])
    except KernelError as error:
        if error.errno == errno.ENETUNREACH:
            return None
        if error.errno not in _DENIED:
            raise
        raw = b""
    if raw and _is_default(_head(raw)) and (route := _parse(raw)).table == MAIN_TABLE and route.index:
        return route
    return next(iter(list_default_routes(nl, version)), None)


def find_route(nl: Netlink, address: IPAddress) -> RouteSpec | None:
    """Return the route that packets for `address` take, of whatever table; None when there is no way."""
    try:
        return _parse(_match(nl, address))
    except KernelError as error:
        if error.errno in _DENIED | {errno.ENETUNREACH}:
            return None
        raise


def _match(nl: Netlink, address: IPAddress) -> bytes:
    """Return the route that leads to an address, as the kernel tells it."""
    # IPv6 always tells the table and refuses to be asked for it.
    flags = _RTM_F_FIB_MATCH | (_RTM_F_LOOKUP_TABLE if address.version == 4 else 0)
    body = _RTMSG.pack(*_Head(FAMILY[address.version], dst_len=width(address), flags=flags))
    query = Query(f"ip route get fibmatch {address}", netlink.RTM_GETROUTE, body + ip(_RTA_DST, address))
    return nl.get(query)


def is_synchronized(raw: bytes) -> bool:
    """Tell whether a message is about a route that a sync owns."""
    return _head(raw).proto == PODWIRE_PROTO and parse_number(_read(raw).get(_RTA_PRIORITY)) >= SYNC_PRIORITY


def find_lost_link(raw: bytes) -> int:
    """Return the index of the link that a deleted route led over, 0 for a route of others."""
    head = _head(raw)
    if head.proto not in {PODWIRE_PROTO, KERNEL_PROTO} or head.type != _RTN_UNICAST:
        return 0
    return parse_number(_read(raw).get(_RTA_OIF))


def list_default_routes(nl: Netlink, version: int) -> list[RouteSpec]:
    """Return the main table's default routes of one family, best first."""
    body = _RTMSG.pack(*_Head(FAMILY[version], table=MAIN_TABLE))
    query = Query(f"ip -{version} route show", netlink.RTM_GETROUTE, body)
    try:
        found = [_parse(raw) for raw in nl.dump(query) if _is_default(_head(raw))]
    except KernelError as error:
        if error.errno != errno.ENOENT:  # without any address IPv4 has no main table
            raise
        return []
    return sorted((route for route in found if route.index), key=lambda route: route.priority or 0)


def _is_default(head: _Head) -> bool:
    return head.dst_len == 0 and head.type == _RTN_UNICAST


def _list_raw(nl: Netlink, version: int) -> list[bytes]:
    body = _RTMSG.pack(*_Head(FAMILY[version]))
    return nl.dump(Query(f"ip -{version} route show table all", netlink.RTM_GETROUTE, body))


def _list_own(nl: Netlink, version: int, priority: int) -> list[bytes]:
    body = _RTMSG.pack(*_Head(FAMILY[version], proto=PODWIRE_PROTO))
    query = Query(f"ip -{version} route show proto {PODWIRE_PROTO}", netlink.RTM_GETROUTE, body)
    needle = u32(_RTA_PRIORITY, priority)
    return [raw for raw in nl.dump(query) if needle in raw]


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """How the node reaches an address: through which link, from which address, over which gateway."""

    index: int
    source: IPAddress
    gateway: IPAddress | None
    local: bool


def find_path(nl: Netlink, address: IPAddress, link: int = 0) -> Path | None:
    """Return the path to `address`, over the link with this index if one is given; None without a route."""
    head = _Head(FAMILY[address.version], dst_len=width(address))
    body = _RTMSG.pack(*head) + ip(_RTA_DST, address) + (u32(_RTA_OIF, link) if link else b"")
    try:
        raw = nl.get(Query(f"ip route get {address}", netlink.RTM_GETROUTE, body))
    except KernelError as error:
        if error.errno in _DENIED | {errno.ENETUNREACH}:
            return None
        raise
    found = _read(raw)
    source, gateway = found.get(_RTA_PREFSRC), found.get(_RTA_GATEWAY)
    return Path(
        index=parse_number(found.get(_RTA_OIF)),
        source=parse_address(source) if source else address,
        gateway=parse_address(gateway) if gateway else None,
        local=_head(raw).type == _RTN_LOCAL,
    )


def has_route(nl: Netlink, address: IPAddress, link: int) -> bool:
    """Tell whether a route over the link with this index leads to the address.

    One question in place of all routes, but where another route takes the packets.
    """
    path = find_path(nl, address)
    if path is not None and path.index == link:
        return True
    return any(route.index == link and address in route.dst for route in list_routes(nl, address.version))


def wait_until_local(nl: Netlink, index: int, addresses: Iterable[IPAddress]) -> None:
    """Wait until the link's namespace takes packets for the IPv6 ones of `addresses`; CNIError 11 when not.

    The kernel joins the group that an address is solicited at, and then makes the route to it, from a
    work queue after the request that added the address was answered (addrconf_dad_begin and
    addrconf_dad_completed in net/ipv6/addrconf.c). A packet that comes before is lost.
    """
    wanted = [address for address in addresses if address.version == 6]
    for _ in waits.looks(_LOCAL_TIMEOUT, *_LOCAL_POLLS):
        paths = [find_path(nl, address, index) for address in wanted]
        if all(path is not None and path.local for path in paths):
            return
    raise CNIError(
        Code.TRY_AGAIN_LATER,
        f"link index {index}: wanted local routes to {list(map(str, wanted))} in {_LOCAL_TIMEOUT} s, "
        f"found {list(map(str, paths))}",
    )


def _head(raw: bytes) -> _Head:
    return _Head._make(_RTMSG.unpack_from(raw, HEADER.size))


def _read(raw: bytes) -> dict[int, bytes]:
    return parse_attributes(raw, HEADER.size + _RTMSG.size)


def _parse(raw: bytes) -> RouteSpec:
    head, found = _head(raw), _read(raw)
    dst, gw, source = found.get(_RTA_DST), found.get(_RTA_GATEWAY), found.get(_RTA_PREFSRC)
    metrics = parse_attributes(found.get(_RTA_METRICS, b""))
    return RouteSpec(
        dst=parse_network(dst, head.dst_len) if dst else default_route(VERSION[head.family]),
        gw=parse_address(gw) if gw else None,
        source=parse_address(source) if source else None,
        index=_oif(found),
        mtu=_optional(metrics.get(_RTAX_MTU)),
        advmss=_optional(metrics.get(_RTAX_ADVMSS)),
        priority=_optional(found.get(_RTA_PRIORITY)),
        table=parse_number(found.get(_RTA_TABLE)) or head.table,
        scope=head.scope,
        proto=head.proto,
        onlink=bool(head.flags & _RTNH_F_ONLINK),
    )


def _optional(value: bytes | None) -> int | None:
    return None if value is None else parse_number(value)


def _oif(found: dict[int, bytes]) -> int:
    """Return the output interface; of several next hops the first one's."""
    oif, hops = found.get(_RTA_OIF), found.get(_RTA_MULTIPATH)
    return int(_HOP.unpack_from(hops)[0]) if hops and not oif else parse_number(oif)
