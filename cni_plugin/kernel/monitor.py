"""News of the kernel: `ip monitor`, `nft monitor`. It says when to look, never what to do.

Every pod that comes or goes makes news of its own, which are no reason to look. What is a pod's is
therefore only suspicious until the burst is over: then a pod that went has taken its links with it, and
one that lost something is still here. Messages are lost when too many come at once, and then something
happened. What a bridge or a neighbour learns is not even heard. Groups: rtnetlink(7),
linux/rtnetlink.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import errno
import re
import select
import socket
import struct
import sys
from contextlib import suppress
from ctypes import addressof, create_string_buffer
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cni_plugin.config.network import MARK, host_ifname
from cni_plugin.kernel import netlink
from cni_plugin.kernel.addr import is_link_local
from cni_plugin.kernel.link import IFF_UP, get_link, get_link_by_index, parse_index, read_flags, read_name
from cni_plugin.kernel.netconf import find_switched
from cni_plugin.kernel.netlink import HEADER, NETFILTER, NetlinkSocket
from cni_plugin.kernel.nfnetlink import find_table
from cni_plugin.kernel.nft_layout import TABLE
from cni_plugin.kernel.route import find_lost_link, is_synchronized
from cni_plugin.kernel.rule import is_own_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cni_plugin.kernel.link import Link
    from cni_plugin.kernel.netlink import Message, Netlink

# RTMGRP_*: links and neighbours; addresses, routes, rules and switches of IPv4, and of IPv6.
_GROUPS = 0x5 | 0x10 | 0x40 | 0x80 | 0x800000 | 0x100 | 0x400 | 0x40000 | 0x1000000
_NFT_GROUPS = 1 << (7 - 1)  # NFNLGRP_NFTABLES
_NFT_DELTABLE, _NFT_DELCHAIN, _NFT_DELRULE, _NFT_DELSET, _NFT_DELSETELEM = (
    10 << 8 | n for n in (2, 5, 8, 11, 14)
)
_NFT_LOSSES = frozenset({_NFT_DELTABLE, _NFT_DELCHAIN, _NFT_DELRULE, _NFT_DELSET})
_RTM_NEWNETCONF, _RTM_DELNEIGH, _RTM_NEWRULE, _RTM_DELRULE = 80, 29, 32, 33
_AF_BRIDGE = 7
_PODS = ("veth", "bwp")  # how the names of a pod's links on the node begin
_IDENTITY = re.compile(rb"([0-9a-f]{16}) ")  # how the comment of an attachment's element begins
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33  # asm-generic/socket.h
_BUFFER = 4 * 1024 * 1024  # bytes
_LOAD_HALF, _EQUAL, _RETURN = 0x28, 0x15, 0x06  # linux/bpf_common.h: LD|H|ABS, JMP|JEQ|K, RET|K
# All but RTM_NEWNEIGH, which is what is learned. The type is at offset 4; BPF reads big-endian numbers.
_LEARNED = int.from_bytes((28).to_bytes(2, sys.byteorder), "big")
_CODE = ((_LOAD_HALF, 0, 0, 4), (_EQUAL, 0, 1, _LEARNED), (_RETURN, 0, 0, 0), (_RETURN, 0, 0, 0xFFFFFFFF))
_program = create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in _CODE))
_FILTER = struct.pack("@HP", len(_CODE), addressof(_program))  # struct sock_fprog


@dataclass(slots=True)
class _Burst:
    """What was heard since it was last asked: for certain, or of links by index that may be gone by now."""

    certain: bool = False
    gone: set[int] = field(default_factory=set)
    down: set[int] = field(default_factory=set)
    unbridged: set[int] = field(default_factory=set)
    unrouted: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)
    """They lost a neighbour, or an entry of a tunnel."""
    switched: set[int] = field(default_factory=set)
    losers: set[str] = field(default_factory=set)
    """The names of the links of attachments that lost an element."""

    @property
    def is_suspicious(self) -> bool:
        links = self.down | self.unbridged | self.unrouted | self.unknown | self.switched
        return self.certain or bool(links - self.gone) or bool(self.losers)


class Monitor:
    """Two sockets in the network namespace of the thread that makes it."""

    def __init__(self, bereft: Mapping[str, Callable[[], None]] | None = None) -> None:
        """Listen from now on; `bereft` is called, by a table's name, when it lost more than elements."""
        self._bereft = dict(bereft or {})
        self._route = NetlinkSocket(groups=_GROUPS)
        self._route.set_option(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _FILTER)
        self._nft = NetlinkSocket(NETFILTER, groups=_NFT_GROUPS)
        self._both = select.epoll()
        for each in (self._route, self._nft):
            with suppress(OSError):  # without the right to it the buffer stays as it is
                each.set_option(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            self._both.register(each.fileno(), select.EPOLLIN)
        self._burst = _Burst()

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when there is news."""
        return self._both.fileno()

    def drain(self) -> bool:
        """Take all news; tell whether there may be a reason to look when the burst is over."""
        for each, note in ((self._route, _note_route), (self._nft, self._note_nft)):
            self._drain(each, note)
        return self._burst.is_suspicious

    def _drain(self, source: NetlinkSocket, note: Callable[[_Burst, Message], None]) -> None:
        while True:
            try:
                for message in source.glance():
                    note(self._burst, message)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._burst.certain = True

    def _note_nft(self, burst: _Burst, message: Message) -> None:
        """Note what a table lost. What somebody's own dataplane fills alone is its business."""
        table = find_table(message.raw) if message.kind in _NFT_LOSSES | {_NFT_DELSETELEM} else ""
        if message.kind in _NFT_LOSSES and table in self._bereft:
            self._bereft[table]()
        elif message.kind in _NFT_LOSSES:
            burst.certain |= table == TABLE
        elif table == TABLE:
            owners = _IDENTITY.findall(message.raw)
            burst.certain |= not owners
            burst.losers.update(host_ifname(each.decode()) for each in owners)

    def confirm(self, nl: Netlink) -> bool:
        """Tell whether there is a reason to look, and begin anew; `nl` is of the same namespace."""
        burst, self._burst = self._burst, _Burst()
        return burst.certain or any(_find_losses(burst, nl))

    def close(self) -> None:
        """Listen no more."""
        self._both.close()
        self._route.close()
        self._nft.close()


def _find_losses(burst: _Burst, nl: Netlink) -> Iterator[bool]:
    """Yield for each link that is still here whether it lost something that it must have."""
    yield from (get_link(nl, name) is not None for name in burst.losers)
    suspects: tuple[tuple[set[int], Callable[[Link], object]], ...] = (
        (burst.down, lambda link: not link.flags & IFF_UP),
        (burst.unbridged, lambda link: not link.master),
        (burst.unrouted, lambda _: True),
        (burst.unknown, lambda link: link.kind in {"vxlan", "veth"}),
        (burst.switched, lambda link: link.kind in {"vxlan", "bridge"}),
    )
    for indexes, has_lost in suspects:
        for index in indexes - burst.gone:
            link = get_link_by_index(nl, index)
            yield link is not None and link.alias.startswith(MARK) and bool(has_lost(link))


def _note_route(burst: _Burst, message: Message) -> None:
    kind, raw = message.kind, message.raw
    if kind in {netlink.RTM_NEWLINK, netlink.RTM_DELLINK}:
        _note_link(burst, kind, raw)
    elif kind in {netlink.RTM_NEWADDR, netlink.RTM_DELADDR}:
        burst.certain |= not is_link_local(raw)
    elif kind in {netlink.RTM_NEWROUTE, netlink.RTM_DELROUTE}:
        burst.certain |= is_synchronized(raw)
        if kind == netlink.RTM_DELROUTE and (index := find_lost_link(raw)):
            burst.unrouted.add(index)
    elif kind in {_RTM_NEWRULE, _RTM_DELRULE}:
        burst.certain |= is_own_rule(raw)
    elif kind == _RTM_DELNEIGH:
        burst.unknown.add(parse_index(raw))
    elif kind == _RTM_NEWNETCONF:
        index = find_switched(raw)
        burst.certain |= index < 0
        burst.switched.add(index)


def _note_link(burst: _Burst, kind: int, raw: bytes) -> None:
    """Note a link; what a bridge says of its ports is of a family of its own."""
    index, is_port = parse_index(raw), raw[HEADER.size] == _AF_BRIDGE
    burst.certain |= not read_name(raw).startswith(_PODS)
    if kind == netlink.RTM_DELLINK:
        (burst.unbridged if is_port else burst.gone).add(index)
    elif read_flags(raw) & IFF_UP:
        burst.down.discard(index)
    else:
        burst.down.add(index)
