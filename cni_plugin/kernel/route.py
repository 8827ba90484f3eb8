"""Routes of the main table and of others: `ip route add DST via GW dev LINK`.

A route is added without "replace" and without "exclusive", so that two next hops of one
prefix can stand side by side. Attributes: rtnetlink(7), linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netaddr import IPAddress, IPNetwork

from cni_plugin.contract.inet import default_route, width
from cni_plugin.kernel import netlink
from cni_plugin.kernel.addr import AF_INET, AF_INET6, FAMILY
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.netlink import Change, Message, Netlink, rtmsg

if TYPE_CHECKING:
    from collections.abc import Callable

MAIN_TABLE = 254
_RTN_UNICAST, _RTN_LOCAL = 1, 2
_RTPROT_BOOT = 3
PODWIRE_PROTO = 112  # a number nobody has in iproute2's rt_protos: the routes that a sync owns
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_RTNH_F_ONLINK = 4
_RTA_PRIORITY = 6
_VERSION = {AF_INET: 4, AF_INET6: 6}


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSpec:
    """A route; `mtu` and `advmss` in bytes, None leaves the kernel's default."""

    dst: IPNetwork
    gw: IPAddress | None = None
    index: int = 0
    onlink: bool = False
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None
    proto: int = _RTPROT_BOOT


def add_route(spec: RouteSpec) -> Change:
    """Return the change that adds the route; an equal one already there is EEXIST."""
    return Change(_command("add", spec), _message(spec), netlink.RTM_NEWROUTE, netlink.NLM_F_CREATE)


def set_route(spec: RouteSpec) -> Change:
    """Return the change that makes this the route of its destination and priority."""
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
    return Change(_command("replace", spec), _message(spec), netlink.RTM_NEWROUTE, flags)


def remove_route(spec: RouteSpec) -> Change:
    """Return the change that deletes the route."""
    return Change(_command("del", spec), _message(spec), netlink.RTM_DELROUTE)


def _message(spec: RouteSpec) -> Message:
    message = rtmsg()
    message["family"] = FAMILY[spec.dst.version]
    message["dst_len"] = spec.dst.prefixlen
    message["proto"] = spec.proto
    message["type"] = _RTN_UNICAST
    message["scope"] = _scope(spec)
    message["flags"] = _RTNH_F_ONLINK if spec.onlink else 0
    table = MAIN_TABLE if spec.table is None else spec.table
    # The header has one byte for the table; the attribute holds it whole.
    message["table"] = table if table < 256 else 0
    message["attrs"] = [("RTA_TABLE", table), *_attributes(spec)]
    return message


def _scope(spec: RouteSpec) -> int:
    if spec.scope is not None:
        return spec.scope
    return _SCOPE_UNIVERSE if spec.gw is not None or spec.dst.version == 6 else _SCOPE_LINK


def _attributes(spec: RouteSpec) -> list[tuple[str, object]]:
    attrs: list[tuple[str, object]] = []
    if spec.dst.prefixlen:
        attrs.append(("RTA_DST", str(spec.dst.ip)))
    if spec.gw is not None:
        attrs.append(("RTA_GATEWAY", str(spec.gw)))
    if spec.index:
        attrs.append(("RTA_OIF", spec.index))
    if spec.priority is not None:
        attrs.append(("RTA_PRIORITY", spec.priority))
    metrics = [("RTAX_MTU", spec.mtu), ("RTAX_ADVMSS", spec.advmss)]
    if any(value is not None for _, value in metrics):
        attrs.append(
            ("RTA_METRICS", {"attrs": [(key, value) for key, value in metrics if value is not None]})
        )
    return attrs


def _command(verb: str, spec: RouteSpec) -> str:
    words = [f"ip route {verb} {spec.dst}", f"dev index {spec.index}"]
    words += [f"via {spec.gw}"] if spec.gw is not None else []
    words += ["onlink"] if spec.onlink else []
    named = {"mtu": spec.mtu, "advmss": spec.advmss, "metric": spec.priority, "table": spec.table}
    words += [f"{key} {value}" for key, value in named.items() if value is not None]
    return " ".join(words)


def list_routes(nl: Netlink, version: int, keep: Callable[[bytes], bool] | None = None) -> list[RouteSpec]:
    """Return the unicast routes of all tables of one family (4 or 6).

    `keep` looks at the raw `struct rtmsg`, before the costly decoding.
    """
    message = rtmsg()
    message["family"] = FAMILY[version]
    found = nl.dump(f"ip -{version} route show table all", message, netlink.RTM_GETROUTE, keep)
    return [_parse(m) for m in found if m["type"] == _RTN_UNICAST]


def list_own_routes(nl: Netlink, version: int, priority: int) -> list[RouteSpec]:
    """Return the routes of one family that syncs with this priority own, on whatever link."""
    return [route for route in map(_parse, nl.dump(*_own_query(version))) if route.priority == priority]


def count_own_routes(nl: Netlink, version: int, priority: int) -> int:
    """Return how many routes `list_own_routes` would return, without decoding one."""
    needle = struct.pack("=HHI", 8, _RTA_PRIORITY, priority)
    return nl.count(*_own_query(version), keep=lambda raw: needle in raw)


def _own_query(version: int) -> tuple[str, Message, int]:
    message = rtmsg()
    message["family"] = FAMILY[version]
    message["proto"] = PODWIRE_PROTO
    return f"ip -{version} route show proto {PODWIRE_PROTO}", message, netlink.RTM_GETROUTE


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """How the node reaches an address: through which link, from which address, over which gateway."""

    index: int
    source: IPAddress
    gateway: IPAddress | None
    local: bool


def find_path(nl: Netlink, address: IPAddress) -> Path | None:
    """Return the path to `address`, None when there is no route."""
    message = rtmsg()
    message["family"] = FAMILY[address.version]
    message["dst_len"] = width(address)
    message["attrs"] = [("RTA_DST", str(address))]
    try:
        found = nl.get(f"ip route get {address}", message, netlink.RTM_GETROUTE)
    except KernelError as error:
        if error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH}:
            return None
        raise
    source, gateway = found.get_attr("RTA_PREFSRC"), found.get_attr("RTA_GATEWAY")
    return Path(
        index=found.get_attr("RTA_OIF"),
        source=IPAddress(source) if source else address,
        gateway=IPAddress(gateway) if gateway else None,
        local=found["type"] == _RTN_LOCAL,
    )


def list_default_routes(nl: Netlink, version: int) -> list[RouteSpec]:
    """Return the main table's default routes of one family, best first."""
    found = list_routes(nl, version, keep=lambda raw: raw[1] == 0)  # rtm_dst_len
    main = [route for route in found if route.table == MAIN_TABLE and route.index]
    return sorted(main, key=lambda route: route.priority or 0)


def _parse(message: Message) -> RouteSpec:
    version = _VERSION[message["family"]]
    dst = message.get_attr("RTA_DST")
    gw = message.get_attr("RTA_GATEWAY")
    metrics = message.get_attr("RTA_METRICS")
    return RouteSpec(
        dst=IPNetwork(f"{dst}/{message['dst_len']}") if dst else default_route(version),
        gw=IPAddress(gw) if gw else None,
        index=_oif(message),
        mtu=metrics.get_attr("RTAX_MTU") if metrics else None,
        advmss=metrics.get_attr("RTAX_ADVMSS") if metrics else None,
        priority=message.get_attr("RTA_PRIORITY"),
        table=message.get_attr("RTA_TABLE") or message["table"],
        scope=message["scope"],
        proto=message["proto"],
        onlink=bool(message["flags"] & _RTNH_F_ONLINK),
    )


def _oif(message: Message) -> int:
    """Return the output interface; of several next hops the first one's."""
    oif = message.get_attr("RTA_OIF")
    hops = message.get_attr("RTA_MULTIPATH") or ()
    return oif or next((hop["oif"] for hop in hops), 0)
