"""A route netlink socket: sends questions and changes, and checks the kernel's answers.

It belongs to the namespace that made it, sends several changes in one system call, and returns
the kernel's extended error text. The changes of one send are not a transaction: the kernel goes on
after a refused one, so send together only what is undone together. See netlink(7).
"""

from __future__ import annotations

import logging
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.message import parse_attributes, parse_text
from ipam.seam import step

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

log = logging.getLogger("podwire")

# linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTM_GETMULTICAST, RTM_GETVLAN = 58, 114
# linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
_NLM_F_DUMP_INTR, _NLM_F_ACK_TLVS = 0x10, 0x200
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT_CHK = 270, 10, 11, 12
_NLMSGERR_ATTR_MSG = 1
HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port id
# The largest piece of a dump that the kernel makes (netlink_recvmsg in net/netlink/af_netlink.c), twice.
_BUFFER = 64 * 1024
# Every answer is due at once; a socket that stays silent longer is a defect, not a wait.
_ANSWER_TIMEOUT = struct.pack("@ll", 30, 0)  # struct timeval
_DUMP_TRIES = 10

Raw = tuple[int, int, bytes]  # type, flags, the whole message


class Query(NamedTuple):
    """What is asked of the kernel, and the command that asks the same by hand."""

    command: str
    kind: int
    body: bytes


class Change(NamedTuple):
    """One change to the kernel and the command that does the same; `flags` are added to REQUEST."""

    command: str
    kind: int
    body: bytes
    flags: int = 0


class Netlink:
    """A socket in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        """Open the socket here and now."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        # Not settimeout(), which polls before every call.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _ANSWER_TIMEOUT)
        for option in (_CAP_ACK, _EXT_ACK, _STRICT_CHK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def change(self, *changes: Change, tolerate: Collection[int] = ()) -> None:
        """Make the changes in one send.

        Raises KernelError for the first that was refused, after all have been tried; the errnos in
        `tolerate` are no refusal.
        """
        if not changes:  # the kernel refuses an empty send
            return
        for change in changes:
            log.debug("%s", change.command)
        with answered(changes[0].command):
            refusals = step("netlink", self.send, *changes)
        for refusal in refusals:
            if refusal.errno not in tolerate:
                raise refusal

    def send(self, *changes: Change) -> list[KernelError]:
        """Make the changes and return what the kernel refused; it is for whoever has passed the seam."""
        first = self._sequence + 1
        # A refusal comes unasked, and what is asked for last comes last.
        *others, last = changes
        messages = [self._pack(each.kind, each.flags, each.body) for each in others]
        messages.append(self._pack(last.kind, NLM_F_ACK | last.flags, last.body))
        self._socket.send(b"".join(messages))
        return list(self._refusals(changes, first))

    def _refusals(self, changes: tuple[Change, ...], first: int) -> Iterator[KernelError]:
        """Yield what was refused until the last of the changes is answered."""
        while True:
            for sequence, (kind, flags, raw) in self._receive():
                if kind == _NLMSG_ERROR and sequence >= first:
                    yield from _refusal(changes[sequence - first].command, flags, raw)
                    if sequence == self._sequence:
                        return

    def get(self, query: Query) -> bytes:
        """Return the one object that is asked for; KernelError when there is none."""
        with answered(query.command):
            return self._get(query)

    def _get(self, query: Query) -> bytes:
        self._socket.send(self._pack(query.kind, 0, query.body))
        while True:
            for sequence, (kind, flags, raw) in self._receive():
                if sequence != self._sequence:
                    continue
                for refusal in _refusal(query.command, flags, raw) if kind == _NLMSG_ERROR else ():
                    raise refusal
                return raw

    def dump(self, query: Query) -> list[bytes]:
        """Return all objects that are asked for, again when the table moved under the dump."""
        for _ in range(_DUMP_TRIES):
            with answered(query.command):
                answers = list(self._dump_once(query))
            if not any(flags & _NLM_F_DUMP_INTR for _, flags, _ in answers):
                break
        return [raw for _, _, raw in answers]

    def _dump_once(self, query: Query) -> Iterator[Raw]:
        self._socket.send(self._pack(query.kind, NLM_F_DUMP, query.body))
        while True:
            for sequence, (kind, flags, raw) in self._receive():
                if sequence != self._sequence:
                    continue
                if kind in {_NLMSG_ERROR, _NLMSG_DONE}:
                    for refusal in _refusal(query.command, flags, raw):
                        raise refusal
                    return
                yield kind, flags, raw

    def _pack(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        return pack(kind, flags, body, self._sequence)

    def _receive(self) -> Iterator[tuple[int, Raw]]:
        """Yield sequence number and message of everything in one datagram."""
        return _split(self._socket.recv(_BUFFER))


def split(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and message of everything in one datagram."""
    for _, (kind, _, raw) in _split(datagram):
        yield kind, raw


def _split(datagram: bytes) -> Iterator[tuple[int, Raw]]:
    offset = 0
    while offset < len(datagram):
        length, kind, flags, sequence, _ = HEADER.unpack_from(datagram, offset)
        yield sequence, (kind, flags, datagram[offset : offset + length])
        offset += (length + 3) & ~3 or HEADER.size


@contextmanager
def answered(command: str) -> Iterator[None]:
    """Turn what the socket itself says into KernelError: no memory, an answer that does not come."""
    try:
        yield
    except OSError as error:
        reason = "no answer" if isinstance(error, BlockingIOError) else "on the socket"
        raise KernelError(command, error.errno or 0, reason) from error


def pack(kind: int, flags: int, body: bytes, sequence: int = 0) -> bytes:
    """Return a whole message."""
    return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, sequence, 0) + body


def _refusal(command: str, flags: int, raw: bytes) -> list[KernelError]:
    """Return the error that an acknowledgement or the end of a dump carries, if it carries one."""
    (number,) = struct.unpack_from("=i", raw, HEADER.size)
    if number == 0:
        return []
    return [KernelError(command, -number, _reason(raw) if flags & _NLM_F_ACK_TLVS else "")]


def _reason(raw: bytes) -> str:
    """Return the kernel's extended error text: attributes behind errno and the capped request."""
    attributes = parse_attributes(raw, HEADER.size + 4 + HEADER.size)
    return parse_text(attributes.get(_NLMSGERR_ATTR_MSG))
