"""Netlink: the socket of all protocols, and a route netlink socket that asks, changes and checks.

Questions and changes are bytes (kernel/message.py), and so are the answers. A `Netlink` belongs to
the namespace that made it, sends several changes in one system call, and returns the kernel's
extended error text. The changes of one send are not a transaction: the kernel goes on after a
refused one, so send together only what is undone together. See netlink(7).
"""

from __future__ import annotations

import logging
import socket
import struct
import sys
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
RTM_GETVLAN = 114
# linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
_NLM_F_DUMP_INTR, _NLM_F_ACK_TLVS = 0x10, 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3
LAST = frozenset({NLMSG_ERROR, NLMSG_DONE})
ROUTE, NETFILTER = 0, 12
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT_CHK = 270, 10, 11, 12
_NLMSGERR_ATTR_MSG = 1
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h
HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port id
_ERRNO = struct.Struct("=i")
# The largest piece of a dump that the kernel makes (netlink_recvmsg in net/netlink/af_netlink.c), twice.
_BUFFER = 64 * 1024
# Every answer is due at once; a socket that stays silent longer is a defect, not a wait.
_ANSWER_TIMEOUT = struct.pack("@ll", 30, 0)  # struct timeval
_DUMP_TRIES = 10


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


class Message(NamedTuple):
    """One message of the kernel's; `raw` is all of it, with its header."""

    sequence: int
    kind: int
    flags: int
    raw: bytes

    @property
    def refusal(self) -> int:
        """Return the errno that an acknowledgement or the end of a dump carries, 0 for none."""
        return -int(_ERRNO.unpack_from(self.raw, HEADER.size)[0])


class NetlinkSocket:
    """A socket of one protocol in the network namespace of the thread that makes it, see netlink(7).

    `groups` are those that it hears unasked, `timeout` (struct timeval) is how long it waits for news.
    """

    def __init__(self, protocol: int = ROUTE, groups: int = 0, timeout: bytes = _ANSWER_TIMEOUT) -> None:
        """Open the socket here and now."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        # Not settimeout(), which polls before every call.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        if groups:
            self._socket.bind((0, groups))
        self._sequence = 0

    def fileno(self) -> int:
        """Return the descriptor, which is readable when there is news."""
        return self._socket.fileno()

    def set_option(self, level: int, option: int, value: int | bytes) -> None:
        """Set a socket option."""
        self._socket.setsockopt(level, option, value)

    def read_cookie(self) -> int:
        """Return the number that the kernel gives a network namespace and never again; OSError if none."""
        found = self._socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        return int.from_bytes(found, sys.byteorder)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def number(self) -> int:
        """Return the next sequence number."""
        self._sequence += 1
        return self._sequence

    def send(self, *messages: bytes) -> None:
        """Send the messages in one datagram."""
        self._socket.send(b"".join(messages))

    def receive(self) -> Iterator[Message]:
        """Yield everything in one datagram. OSError when none comes in time, or news were lost."""
        return split(self._socket.recv(_BUFFER))

    def glance(self) -> Iterator[Message]:
        """Yield everything in one datagram that is there; BlockingIOError when there is none."""
        return split(self._socket.recv(_BUFFER, socket.MSG_DONTWAIT))

    def ask(self, kind: int, flags: int, body: bytes) -> Iterator[Message]:
        """Send a request and yield its answers to the last: an acknowledgement, or the end of a dump."""
        number = self.number()
        self.send(pack(kind, flags, body, number))
        while True:
            for message in self.receive():
                if message.sequence != number:
                    continue
                yield message
                if message.kind in LAST:
                    return


class Netlink:
    """A socket in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        """Open the socket here and now."""
        self._socket = NetlinkSocket()
        for option in (_CAP_ACK, _EXT_ACK, _STRICT_CHK):
            self._socket.set_option(_SOL_NETLINK, option, 1)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def read_cookie(self) -> int:
        """Return the number of this network namespace, see `NetlinkSocket.read_cookie`."""
        return self._socket.read_cookie()

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
        numbers = [self._socket.number() for _ in changes]
        # A refusal comes unasked, and what is asked for last comes last.
        acks = (*[0] * (len(changes) - 1), NLM_F_ACK)
        self._socket.send(
            *(
                pack(change.kind, ack | change.flags, change.body, number)
                for change, ack, number in zip(changes, acks, numbers, strict=True)
            )
        )
        return list(self._refusals(changes, numbers[0]))

    def _refusals(self, changes: tuple[Change, ...], first: int) -> Iterator[KernelError]:
        """Yield what was refused until the last of the changes is answered."""
        while True:
            for message in self._socket.receive():
                number = message.sequence - first
                if message.kind == NLMSG_ERROR and number >= 0:
                    yield from _refusal(changes[number].command, message)
                    if number == len(changes) - 1:
                        return

    def get(self, query: Query) -> bytes:
        """Return the one object that is asked for; KernelError when there is none."""
        with answered(query.command):
            message = next(self._socket.ask(query.kind, 0, query.body))
        for refusal in _refusal(query.command, message) if message.kind == NLMSG_ERROR else ():
            raise refusal
        return message.raw

    def dump(self, query: Query) -> list[bytes]:
        """Return all objects that are asked for, again when the table moved under the dump."""
        for _ in range(_DUMP_TRIES):
            with answered(query.command):
                *answers, end = self._socket.ask(query.kind, NLM_F_DUMP, query.body)
            for refusal in _refusal(query.command, end):
                raise refusal
            if not any(message.flags & _NLM_F_DUMP_INTR for message in answers):
                break
        return [message.raw for message in answers]


def split(datagram: bytes) -> Iterator[Message]:
    """Yield everything in one datagram."""
    offset = 0
    while offset < len(datagram):
        length, kind, flags, sequence, _ = HEADER.unpack_from(datagram, offset)
        yield Message(sequence, kind, flags, datagram[offset : offset + length])
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


def _refusal(command: str, message: Message) -> list[KernelError]:
    """Return the error that an acknowledgement or the end of a dump carries, if it carries one."""
    if message.refusal == 0:
        return []
    reason = _reason(message.raw) if message.flags & _NLM_F_ACK_TLVS else ""
    return [KernelError(command, message.refusal, reason)]


def _reason(raw: bytes) -> str:
    """Return the kernel's extended error text: attributes behind errno and the capped request."""
    attributes = parse_attributes(raw, HEADER.size + 4 + HEADER.size)
    return parse_text(attributes.get(_NLMSGERR_ATTR_MSG))
