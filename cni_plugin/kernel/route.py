"""Routes of the main table and of others: `ip route add DST via GW dev LINK`.

A route is added without "replace" and without "exclusive", so that two next hops of one
prefix can stand side by side. Attributes: rtnetlink(7), linux/rtnetlink.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from netaddr import IPAddress, IPNetwork

from cni_plugin.contract.inet import default_route
from cni_plugin.kernel import netlink
from cni_plugin.kernel.addr import AF_INET, AF_INET6, FAMILY
from cni_plugin.kernel.netlink import Change, Message, Netlink, rtmsg

if TYPE_CHECKING:
    from collections.abc import Callable

MAIN_TABLE = 254
_RTN_UNICAST = 1
_RTPROT_BOOT = 3
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_RTNH_F_ONLINK = 4
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


def add_route(spec: RouteSpec) -> Change:
    """Return the change that adds the route; an equal one already there is EEXIST."""
    message = rtmsg()
    message["family"] = FAMILY[spec.dst.version]
    message["dst_len"] = spec.dst.prefixlen
    message["proto"] = _RTPROT_BOOT
    message["type"] = _RTN_UNICAST
    message["scope"] = _scope(spec)
    message["flags"] = _RTNH_F_ONLINK if spec.onlink else 0
    table = MAIN_TABLE if spec.table is None else spec.table
    # The header has one byte for the table; the attribute holds it whole.
    message["table"] = table if table < 256 else 0
    message["attrs"] = [("RTA_TABLE", table), *_attributes(spec)]
    return Change(_command(spec), message, netlink.RTM_NEWROUTE, netlink.NLM_F_CREATE)


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


def _command(spec: RouteSpec) -> str:
    words = [f"ip route add {spec.dst}", f"dev index {spec.index}"]
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
    )


def _oif(message: Message) -> int:
    """Return the output interface; of several next hops the first one's."""
    oif = message.get_attr("RTA_OIF")
    hops = message.get_attr("RTA_MULTIPATH") or ()
    return oif or next((hop["oif"] for hop in hops), 0)
