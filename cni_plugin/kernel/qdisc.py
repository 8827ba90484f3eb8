"""Queueing disciplines: a token bucket at a link's root, and the redirection of what a link receives.

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
from cni_plugin.kernel.link import IFF_UP, delete_link, get_link, ifinfmsg_of, set_alias
from cni_plugin.kernel.netlink import Change, parse_attributes

if TYPE_CHECKING:
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
_HEADER = struct.Struct("=IHHII")
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


class _Packed(dict[str, dict[str, int]]):
    """A message whose body is bytes already, in the shape that the transport takes."""

    def __init__(self, body: bytes) -> None:
        super().__init__(header={})
        self.body = body
        self.data = b""

    def reset(self) -> None:
        """Do nothing."""

    def encode(self) -> None:
        """Put the header before the body."""
        head = self["header"]
        length = _HEADER.size + len(self.body)
        self.data = _HEADER.pack(length, head["type"], head["flags"], head["sequence_number"], 0) + self.body


def _change(command: str, kind: int, body: bytes, flags: int = 0) -> Change:
    return Change(command, _Packed(body), kind, flags)


def _attribute(kind: int, *values: bytes) -> bytes:
    value = b"".join(values)
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _tcmsg(index: int, *, handle: int = 0, parent: int = 0, info: int = 0) -> bytes:
    return _TCMSG.pack(0, index, handle, parent, info)


def add_ifb(nl: Netlink, name: str, *, mtu: int, alias: str) -> Link:
    """Make the device anew, up, and return it; one of that name is what a crash had left."""
    try:
        nl.change(_add_ifb(name, mtu))
    except KernelError as error:
        if error.errno != errno.EEXIST:
            raise
        delete_link(nl, name)
        nl.change(_add_ifb(name, mtu))
    nl.change(set_alias(name, alias))
    made = get_link(nl, name)
    if made is None:
        raise KernelError(f"ip link show {name}", errno.ENODEV)
    return made


def _add_ifb(name: str, mtu: int) -> Change:
    attrs: list[tuple[str, object]] = [
        ("IFLA_IFNAME", name),
        ("IFLA_MTU", mtu),
        ("IFLA_TXQLEN", 0),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "ifb")]}),
    ]
    message = ifinfmsg_of(flags=IFF_UP, mask=IFF_UP, attrs=attrs)
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    return Change(f"ip link add {name} mtu {mtu} txqlen 0 up type ifb", message, netlink.RTM_NEWLINK, flags)


def set_bucket(link: Link, bucket: Bucket) -> Change:
    """Return the change that limits what the link sends, in place of any limit before."""
    rate = _RATESPEC.pack(0, _ETHERNET, 0, 0, 0, min(bucket.rate, _U32_MAX))
    options = [_attribute(_TBF_PARMS, _QOPT.pack(rate, b"", bucket.limit, 0, 0))]
    if bucket.rate > _U32_MAX:
        options.append(_attribute(_TBF_RATE64, struct.pack("=Q", bucket.rate)))
    options.append(_attribute(_TBF_BURST, struct.pack("=I", bucket.burst)))
    body = _tcmsg(link.index, handle=_BUCKET_HANDLE, parent=_ROOT)
    body += _attribute(_TCA_KIND, b"tbf\0") + _attribute(_TCA_OPTIONS, *options)
    command = f"tc qdisc replace dev {link.name} root handle 1: tbf {bucket}"
    return _change(command, _RTM_NEWQDISC, body, netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE)


def drop_bucket(link: Link) -> Change:
    """Return the change that takes the limit away."""
    body = _tcmsg(link.index, parent=_ROOT)
    return _change(f"tc qdisc del dev {link.name} root", _RTM_DELQDISC, body)


def get_bucket(nl: Netlink, link: Link) -> Bucket | None:
    """Return the limit at the link's root, None when there is none."""
    body = _tcmsg(link.index)
    for raw in nl.dump_raw(f"tc qdisc show dev {link.name}", _Packed(body), _RTM_GETQDISC):
        _, index, _, parent, _ = _TCMSG.unpack_from(raw, _HEADER.size)
        found = parse_attributes(raw, _HEADER.size + _TCMSG.size)
        if (index, parent) == (link.index, _ROOT) and found.get(_TCA_KIND) == b"tbf\0":
            return _parse_bucket(parse_attributes(found[_TCA_OPTIONS]))
    return None


def _parse_bucket(options: dict[int, bytes]) -> Bucket:
    spec, _, limit, ticks, _ = _QOPT.unpack_from(options[_TBF_PARMS])
    rate = _RATESPEC.unpack(spec)[-1]
    if _TBF_RATE64 in options:
        (rate,) = struct.unpack("=Q", options[_TBF_RATE64])
    return Bucket(rate=rate, burst=round(ticks * _TICK * rate), limit=limit)


def redirect(nl: Netlink, link: Link, to: Link) -> None:
    """Send all that the link receives through `to`, in place of any redirection of ours before."""
    nl.change(_add_ingress(link), tolerate={errno.EEXIST})
    nl.change(drop_redirection(link), tolerate=_NO_FILTER)
    nl.change(_add_redirection(link, to))


# What the kernel says where there is no such filter, and where there is no qdisc for one.
_NO_FILTER = frozenset({errno.ENOENT, errno.EINVAL})


def _add_ingress(link: Link) -> Change:
    body = _tcmsg(link.index, handle=_INGRESS_HANDLE, parent=_INGRESS) + _attribute(_TCA_KIND, b"ingress\0")
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    return _change(f"tc qdisc add dev {link.name} ingress", _RTM_NEWQDISC, body, flags)


def _add_redirection(link: Link, to: Link) -> Change:
    parameters = _MIRRED.pack(0, 0, _STOLEN, 0, 0, _EGRESS_REDIR, to.index)
    options = _attribute(_ACT_OPTIONS, _attribute(_MIRRED_PARMS, parameters))
    action = _attribute(_FIRST_ACTION, _attribute(_ACT_KIND, b"mirred\0"), options)
    body = _filter(link) + _attribute(_TCA_KIND, b"u32\0")
    body += _attribute(_TCA_OPTIONS, _attribute(_U32_SEL, _MATCH_ALL), _attribute(_U32_ACT, action))
    match = f"ingress pref {_PREFERENCE} u32 match u32 0 0"
    command = f"tc filter add dev {link.name} {match} action mirred egress redirect dev {to.name}"
    return _change(command, _RTM_NEWTFILTER, body, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL)


def drop_redirection(link: Link) -> Change:
    """Return the change that lets what the link receives go its way."""
    command = f"tc filter del dev {link.name} ingress pref {_PREFERENCE}"
    return _change(command, _RTM_DELTFILTER, _filter(link))


def _filter(link: Link) -> bytes:
    return _tcmsg(link.index, parent=_INGRESS_CLASS, info=_PREFERENCE << 16 | _ANY_PROTOCOL)


def find_redirection(nl: Netlink, link: Link) -> int:
    """Return the index of the link that our redirection leads to, 0 when there is none."""
    for raw in nl.dump_raw(
        f"tc filter show dev {link.name} ingress", _Packed(_filter(link)), _RTM_GETTFILTER
    ):
        found: dict[int, bytes] = parse_attributes(raw, _HEADER.size + _TCMSG.size)
        for step in (_TCA_OPTIONS, _U32_ACT, _FIRST_ACTION, _ACT_OPTIONS):
            found = parse_attributes(found.get(step, b""))
        if _MIRRED_PARMS in found:
            index: int = _MIRRED.unpack_from(found[_MIRRED_PARMS])[-1]
            return index
    return 0
