"""Queueing disciplines: a token bucket on a link, and the redirection of what it receives.

The kernel shapes only what a link sends. What comes in is sent through a device of kind `ifb` first,
which has a bucket of its own. By hand: `tc qdisc replace dev VETH root handle 1: tbf rate R burst B limit L`;
`ip link add IFB type ifb`, `tc qdisc add dev VETH ingress`, `tc filter add dev VETH ingress pref 112 u32
match u32 0 0 action mirred egress redirect dev IFB`. linux/pkt_sched.h, pkt_cls.h, tc_act/tc_mirred.h
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.kernel import netlink
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.link import (
    IFLA_GROUP,
    IFLA_IFNAME,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MTU,
    IFLA_TXQLEN,
    delete_link,
    drop_link_local,
    get_link,
    link_body,
    set_owner,
    set_up,
)
from cni_plugin.kernel.message import attribute, nested, parse_attributes, text, u32
from cni_plugin.kernel.netlink import HEADER, Change, Query

if TYPE_CHECKING:
    from contextlib import ExitStack

    from cni_plugin.kernel.link import Link
    from cni_plugin.kernel.netlink import Netlink

# linux/rtnetlink.h
_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_GETQDISC = 36, 37, 38
_RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 44, 45, 46
_TCA_KIND, _TCA_OPTIONS = 1, 2
_ROOT, _INGRESS = 0xFFFFFFFF, 0xFFFFFFF1
_BUCKET_HANDLE, _INGRESS_HANDLE = 0x10000, 0xFFFF0000
# Of a qdisc `ingress` and of a `clsact`, which somebody may have put in its place.
_INGRESS_CLASS = 0xFFFFFFF2
_PREFERENCE = 112  # our own number, as in a route's protocol
_ANY_PROTOCOL = 0x0300  # ETH_P_ALL in network byte order
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_U32_SEL, _U32_ACT, _FIRST_ACTION, _ACT_KIND, _ACT_OPTIONS, _MIRRED_PARMS = 5, 7, 1, 1, 2, 2
_TERMINAL, _STOLEN, _EGRESS_REDIR = 1, 4, 1
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET: the kernel needs no table of rates
_TCMSG = struct.Struct("=BxxxiIII")  # family, index, handle, parent, info
_RATESPEC = struct.Struct("=BBHhHI")  # cell_log, linklayer, overhead, cell_align, mpu, rate
_QOPT = struct.Struct("=12s12sIII")  # rate, peak rate, limit, buffer, mtu
_MATCH_ALL = struct.pack("=BBBxHHhhI4I", _TERMINAL, 0, 1, *[0] * 9)  # struct tc_u32_sel with one key
_MIRRED = struct.Struct("=7I")  # index, capab, action, refcnt, bindcnt, eaction, ifindex
_U32_MAX = 0xFFFFFFFF
_TICK = 64e-9  # seconds; the unit in which the kernel tells a burst (PSCHED_SHIFT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A token bucket: rate in bytes/s, burst and the limit of its queue in bytes."""

    rate: int
    burst: int
    limit: int

    def __str__(self) -> str:
        """Return it in the words of `tc`."""
        return f"rate {self.rate}bps burst {self.burst}b limit {self.limit}b"

    def holds(self, wanted: Bucket) -> bool:
        """Tell whether this, as the kernel shows it, is what was asked for.

        The kernel shows the burst as the time that it takes to send, in 32 bits and rounded.
        """
        period = (_U32_MAX + 1) * _TICK * self.rate
        difference = (self.burst - wanted.burst) % period
        close = min(difference, period - difference) <= 2 + wanted.burst / 1000 + self.rate * _TICK
        return close and (self.rate, self.limit) == (wanted.rate, wanted.limit)


def _tcmsg(index: int, *, handle: int = 0, parent: int = 0, info: int = 0) -> bytes:
    return _TCMSG.pack(0, index, handle, parent, info)


def add_ifb(nl: Netlink, name: str, *, mtu: int, alias: str, group: int) -> Link:
    """Make the device anew, up, and return it; one of that name is what a crash had left.

    It is in the link group until it has its alias.
    """
    changes = _add_ifb(name, mtu, group), drop_link_local(name), set_owner(name, alias), set_up(name)
    try:
        nl.change(*changes, tolerate={errno.EAFNOSUPPORT})
    except KernelError as error:
        if error.errno != errno.EEXIST:
            raise
        delete_link(nl, name)
        nl.change(*changes, tolerate={errno.EAFNOSUPPORT})
    made = get_link(nl, name)
    if made is None:
        raise KernelError(f"ip link show {name}", errno.ENODEV)
    return made


def _add_ifb(name: str, mtu: int, group: int) -> Change:
    body = link_body(
        text(IFLA_IFNAME, name),
        u32(IFLA_MTU, mtu),
        u32(IFLA_TXQLEN, 0),
        u32(IFLA_GROUP, group),
        nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "ifb")),
    )
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    return Change(
        f"ip link add {name} mtu {mtu} txqlen 0 group {group} type ifb", netlink.RTM_NEWLINK, body, flags
    )


def set_bucket(link: Link, bucket: Bucket) -> Change:
    """Return the change that limits what the link sends, in place of any limit before."""
    rate = _RATESPEC.pack(0, _ETHERNET, 0, 0, 0, min(bucket.rate, _U32_MAX))
    options = [attribute(_TBF_PARMS, _QOPT.pack(rate, b"", bucket.limit, 0, 0))]
    if bucket.rate > _U32_MAX:
        options.append(attribute(_TBF_RATE64, struct.pack("=Q", bucket.rate)))
    options.append(u32(_TBF_BURST, bucket.burst))
    body = _tcmsg(link.index, handle=_BUCKET_HANDLE, parent=_ROOT)
    body += text(_TCA_KIND, "tbf") + nested(_TCA_OPTIONS, *options)
    command = f"tc qdisc replace dev {link.name} root handle 1: tbf {bucket}"
    return Change(command, _RTM_NEWQDISC, body, netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE)


def drop_bucket(link: Link) -> Change:
    """Return the change that takes the limit away."""
    body = _tcmsg(link.index, parent=_ROOT)
    return Change(f"tc qdisc del dev {link.name} root", _RTM_DELQDISC, body)


def get_bucket(nl: Netlink, link: Link) -> Bucket | None:
    """Return the limit at the link's root, None when there is none."""
    body = _tcmsg(link.index)
    for raw in nl.dump(Query(f"tc qdisc show dev {link.name}", _RTM_GETQDISC, body)):
        _, index, _, parent, _ = _TCMSG.unpack_from(raw, HEADER.size)
        found = parse_attributes(raw, HEADER.size + _TCMSG.size)
        if (index, parent) == (link.index, _ROOT) and found.get(_TCA_KIND) == b"tbf\0":
            return _parse_bucket(parse_attributes(found[_TCA_OPTIONS]))
    return None


def _parse_bucket(options: dict[int, bytes]) -> Bucket:
    spec, _, limit, ticks, _ = _QOPT.unpack_from(options[_TBF_PARMS])
    rate = _RATESPEC.unpack(spec)[-1]
    if _TBF_RATE64 in options:
        (rate,) = struct.unpack("=Q", options[_TBF_RATE64])
    return Bucket(rate=rate, burst=round(ticks * _TICK * rate), limit=limit)


def redirect(nl: Netlink, link: Link, to: Link, undo: ExitStack) -> None:
    """Send all that the link receives through `to`, in place of any redirection of ours before."""
    undo.callback(nl.change, drop_redirection(link))
    try:
        nl.change(_add_ingress(link))
    except KernelError as error:
        if error.errno != errno.EEXIST:
            undo.callback(nl.change, _drop_ingress(link))  # the answer may be lost
            raise
    else:
        undo.callback(nl.change, _drop_ingress(link))
    nl.change(drop_redirection(link), tolerate=_NO_FILTER)
    nl.change(_add_redirection(link, to))


# What the kernel says where there is no such filter, and where there is no qdisc for one.
_NO_FILTER = frozenset({errno.ENOENT, errno.EINVAL})


def _add_ingress(link: Link) -> Change:
    body = _tcmsg(link.index, handle=_INGRESS_HANDLE, parent=_INGRESS) + text(_TCA_KIND, "ingress")
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    return Change(f"tc qdisc add dev {link.name} ingress", _RTM_NEWQDISC, body, flags)


def _drop_ingress(link: Link) -> Change:
    body = _tcmsg(link.index, handle=_INGRESS_HANDLE, parent=_INGRESS)
    return Change(f"tc qdisc del dev {link.name} ingress", _RTM_DELQDISC, body)


def _add_redirection(link: Link, to: Link) -> Change:
    parameters = _MIRRED.pack(0, 0, _STOLEN, 0, 0, _EGRESS_REDIR, to.index)
    options = nested(_ACT_OPTIONS, attribute(_MIRRED_PARMS, parameters))
    action = nested(_FIRST_ACTION, text(_ACT_KIND, "mirred"), options)
    body = _filter(link) + text(_TCA_KIND, "u32")
    body += nested(_TCA_OPTIONS, attribute(_U32_SEL, _MATCH_ALL), nested(_U32_ACT, action))
    match = f"ingress pref {_PREFERENCE} u32 match u32 0 0"
    command = f"tc filter add dev {link.name} {match} action mirred egress redirect dev {to.name}"
    return Change(command, _RTM_NEWTFILTER, body, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)


def drop_redirection(link: Link) -> Change:
    """Return the change that lets what the link receives go its way."""
    command = f"tc filter del dev {link.name} ingress pref {_PREFERENCE}"
    return Change(command, _RTM_DELTFILTER, _filter(link))


def _filter(link: Link) -> bytes:
    return _tcmsg(link.index, parent=_INGRESS_CLASS, info=_PREFERENCE << 16 | _ANY_PROTOCOL)


def find_redirection(nl: Netlink, link: Link) -> int:
    """Return the index of the link that our redirection leads to, 0 when there is none."""
    query = Query(f"tc filter show dev {link.name} ingress", _RTM_GETTFILTER, _filter(link))
    for raw in nl.dump(query):
        found: dict[int, bytes] = parse_attributes(raw, HEADER.size + _TCMSG.size)
        for step in (_TCA_OPTIONS, _U32_ACT, _FIRST_ACTION, _ACT_OPTIONS):
            found = parse_attributes(found.get(step, b""))
        if _MIRRED_PARMS in found:
            index: int = _MIRRED.unpack_from(found[_MIRRED_PARMS])[-1]
            return index
    return 0
