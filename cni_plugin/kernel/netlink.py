"""A route netlink socket: pyroute2's message types on a transport of our own.

pyroute2's IPRoute brings asyncio into every call (60 ms of imports) and a socket per thread
that lives in whatever namespace the thread was in when it was first used. This socket belongs
to the namespace that made it, returns the kernel's extended error text, and sends several
changes in one system call. The changes of one send are not a transaction: the kernel goes on
after a refused one, so send together only what is undone together. See netlink(7).
"""

from __future__ import annotations

import importlib.util
import logging
import socket
import struct
import sys
import types
from typing import TYPE_CHECKING, Any

from cni_plugin.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator


def _skip_package_init() -> None:
    """Let `pyroute2.netlink...` be imported without `pyroute2/__init__.py`.

    That file imports all 164 modules of the library, which costs more than a whole ADD.
    """
    spec = importlib.util.find_spec("pyroute2")
    if "pyroute2" in sys.modules or spec is None:
        return
    package = types.ModuleType("pyroute2")
    package.__path__ = list(spec.submodule_search_locations or ())
    package.__spec__ = spec
    sys.modules["pyroute2"] = package


_skip_package_init()

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # noqa: E402
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # noqa: E402
from pyroute2.netlink.rtnl.ndmsg import ndmsg  # noqa: E402
from pyroute2.netlink.rtnl.rtmsg import rtmsg  # noqa: E402

__all__ = ["Change", "Netlink", "ifaddrmsg", "ifinfmsg", "ndmsg", "rtmsg"]

log = logging.getLogger("podwire")

# linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_GETVLAN = 114
# linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_ECHO, NLM_F_DUMP = 0x1, 0x4, 0x8, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
_NLM_F_DUMP_INTR, _NLM_F_ACK_TLVS = 0x10, 0x200
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT_CHK = 270, 10, 11, 12
_NLMSGERR_ATTR_MSG = 1
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port id
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_NLA_TYPE_MASK = 0x3FFF
# A dump is read in pieces that the kernel fits to the buffer it is given.
_BUFFER = 256 * 1024
# Every answer is due at once; a socket that stays silent longer is a defect, not a wait.
_ANSWER_TIMEOUT = 30.0  # seconds
_DUMP_TRIES = 10

Message = Any  # pyroute2's nlmsg, which carries no types
Raw = tuple[int, int, bytes]  # type, flags, the whole message


class Change:
    """One change to the kernel and the command that does the same by hand."""

    __slots__ = ("command", "message")

    def __init__(self, command: str, message: Message, kind: int, flags: int = 0) -> None:
        """Fill the header of `message`; `flags` are added to REQUEST and ACK."""
        message["header"]["type"] = kind
        message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | flags
        self.command = command
        self.message = message


class Netlink:
    """A socket in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        """Open the socket here and now."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.settimeout(_ANSWER_TIMEOUT)
        for option in (_CAP_ACK, _EXT_ACK, _STRICT_CHK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def change(self, *changes: Change, tolerate: Collection[int] = ()) -> list[Message]:
        """Make the changes in one send and return what the kernel echoed.

        Raises KernelError for the first that was refused, after all answers have been read;
        the errnos in `tolerate` are no refusal.
        """
        if not changes:  # the kernel refuses an empty send
            return []
        for change in changes:
            log.debug("%s", change.command)
        expected = {self._number(change.message): change for change in changes}
        self._socket.send(b"".join(_encode(change.message) for change in changes))
        echoes: list[Message] = []
        failures: list[KernelError] = []
        while expected:
            for sequence, (kind, flags, raw) in self._receive():
                if kind != _NLMSG_ERROR:
                    echoes.append(_decode(ifinfmsg, raw))
                elif sequence in expected:
                    change = expected.pop(sequence)
                    refusals = _refusal(change.command, flags, raw)
                    failures += (refusal for refusal in refusals if refusal.errno not in tolerate)
        if failures:
            raise failures[0]
        return echoes

    def get(self, command: str, message: Message, kind: int) -> Message:
        """Return the one object that `message` asks for, decoded; KernelError when there is none."""
        return _decode(type(message), self.get_raw(command, message, kind))

    def get_raw(self, command: str, message: Message, kind: int) -> bytes:
        """Return the one object that `message` asks for; KernelError when there is none."""
        message["header"]["type"] = kind
        message["header"]["flags"] = NLM_F_REQUEST
        sequence = self._number(message)
        self._socket.send(_encode(message))
        while True:
            for number, (answer, flags, raw) in self._receive():
                if number != sequence:
                    continue
                for refusal in _refusal(command, flags, raw) if answer == _NLMSG_ERROR else ():
                    raise refusal
                return raw

    def dump(
        self, command: str, message: Message, kind: int, keep: Callable[[bytes], bool] | None = None
    ) -> list[Message]:
        """Return all objects that `message` asks for, decoded.

        `keep` looks at the raw message behind its header: decoding is what costs.
        """
        found = self.dump_raw(command, message, kind)
        return [_decode(type(message), raw) for raw in found if keep is None or keep(raw[_HEADER.size :])]

    def count(self, command: str, message: Message, kind: int, keep: Callable[[bytes], bool]) -> int:
        """Return how many objects a dump would return, without decoding one."""
        return sum(keep(raw[_HEADER.size :]) for raw in self.dump_raw(command, message, kind))

    def dump_raw(self, command: str, message: Message, kind: int) -> list[bytes]:
        """Return all objects that `message` asks for, again when the table moved under the dump."""
        message["header"]["type"] = kind
        message["header"]["flags"] = NLM_F_REQUEST | NLM_F_DUMP
        for _ in range(_DUMP_TRIES):
            answers = list(self._dump_once(command, message))
            if not any(flags & _NLM_F_DUMP_INTR for _, flags, _ in answers):
                break
        return [raw for _, _, raw in answers]

    def _dump_once(self, command: str, message: Message) -> Iterator[Raw]:
        sequence = self._number(message)
        self._socket.send(_encode(message))
        while True:
            for number, (kind, flags, raw) in self._receive():
                if number != sequence:
                    continue
                if kind in {_NLMSG_ERROR, _NLMSG_DONE}:
                    for refusal in _refusal(command, flags, raw):
                        raise refusal
                    return
                yield kind, flags, raw

    def _number(self, message: Message) -> int:
        self._sequence += 1
        message["header"]["sequence_number"] = self._sequence
        return self._sequence

    def _receive(self) -> Iterator[tuple[int, Raw]]:
        """Yield sequence number and message of everything in one datagram."""
        datagram = self._socket.recv(_BUFFER)
        offset = 0
        while offset < len(datagram):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, offset)
            yield sequence, (kind, flags, datagram[offset : offset + length])
            offset += (length + 3) & ~3


def _encode(message: Message) -> bytes:
    message.reset()
    message.encode()
    return bytes(message.data)


def _decode(kind: type[Message], raw: bytes) -> Message:
    message = kind(raw)
    message.decode()
    return message


def _refusal(command: str, flags: int, raw: bytes) -> list[KernelError]:
    """Return the error that an acknowledgement or the end of a dump carries, if it carries one."""
    (number,) = struct.unpack_from("=i", raw, _HEADER.size)
    if number == 0:
        return []
    return [KernelError(command, -number, _reason(raw) if flags & _NLM_F_ACK_TLVS else "")]


def _reason(raw: bytes) -> str:
    """Return the kernel's extended error text: attributes behind errno and the capped request."""
    attributes = parse_attributes(raw, _HEADER.size + 4 + _HEADER.size)
    return attributes.get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")


def parse_attributes(raw: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the attributes that begin at `offset` by their number, nested ones as they are.

    Where many objects or many attributes come, this is what is affordable: pyroute2 takes a
    millisecond to decode a link, with every attribute that we do not look at.
    """
    found = {}
    while offset + _ATTRIBUTE.size <= len(raw):
        length, kind = _ATTRIBUTE.unpack_from(raw, offset)
        found[kind & _NLA_TYPE_MASK] = raw[offset + _ATTRIBUTE.size : offset + length]
        offset += max((length + 3) & ~3, _ATTRIBUTE.size)
    return found
