"""The wire format between a shim and the agent: one frame each way, on a stream socket.

A frame is a head of five fields (magic, version, a number, two lengths) and two parts. The head
and the reply never change; a new version may only give the request another meaning, so that
every shim can read every agent's answer. docs/wire.md describes it for other shims.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.contract.request import MAX_STDIN
from ipam.seam.waits import Deadline

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 1
_MAGIC = b"podw"
_HEAD = struct.Struct("!4sIIII")
# An environment is limited by execve(2) to a quarter of the stack, 2 MiB as a rule.
_MAX_STRINGS = 2 * 1024 * 1024
# One byte past the limit, as the executable reads it: the answer says that it was too much.
_MAX_STDIN = MAX_STDIN + 1
_CHUNK = 64 * 1024
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_INT = array.array("i").itemsize


class WireError(Exception):
    """A request that is none; the text says what was wanted and what was found."""


class VersionError(WireError):
    """A request of a version that this agent does not speak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a shim hands over; whoever receives one closes `netns_fd` when it is not negative."""

    program: str
    environ: Mapping[str, str]
    stdin: bytes
    netns_fd: int
    """A descriptor of CNI_NETNS, or minus the errno that the shim got when it opened it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the shim is to exit with and to write."""

    status: int
    stdout: bytes
    stderr: bytes


def receive_call(connection: socket.socket, timeout: float) -> Call | None:
    """Return the request, None when the peer left without one; its last byte stays unread, see `begin`.

    Raises WireError for garbage and for sizes beyond the limits, which are refused before
    anything of that size is read; TimeoutError when it is not whole in `timeout` seconds.
    """
    reader = _Reader(connection, Deadline(timeout))
    try:
        return _receive_call(reader)
    except BaseException:
        reader.close_descriptors()
        raise


def _receive_call(reader: _Reader) -> Call | None:
    head = reader.read(_HEAD.size)
    if not head:
        return None
    magic, version, number, strings_size, stdin_size = _HEAD.unpack(head)
    if magic != _MAGIC:
        raise WireError(f"wanted a request that begins with {_MAGIC!r}, found {magic!r}")
    if version != VERSION:
        raise VersionError(
            f"wanted a request of wire version {VERSION}, found version {version}; "
            "install shim and agent from one release"
        )
    _require_size("program and environment", strings_size, _MAX_STRINGS)
    _require_size("stdin", stdin_size, _MAX_STDIN)
    body = reader.read_but_last(strings_size + stdin_size)
    program, *environ = os.fsdecode(body[:strings_size]).split("\0")
    pairs = (pair.partition("=") for pair in environ if "=" in pair)
    return Call(
        program=program,
        environ={key: value for key, _, value in pairs},
        stdin=body[strings_size:],
        netns_fd=reader.take_descriptor(number),
    )


def _require_size(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise WireError(f"{what}: wanted at most {limit} bytes, found {size} announced")


class _Reader:
    """Reads parts of known size, and keeps the descriptors that come with them."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._connection = connection
        self._deadline = deadline
        self._descriptors: list[int] = []

    def read(self, size: int) -> bytes:
        """Return `size` bytes, none when the peer closed before the first of the frame."""
        read = bytearray()
        while len(read) < size:
            piece = self._receive(size - len(read))
            if not piece and (read or size != _HEAD.size):
                raise WireError(f"wanted {size - len(read)} more bytes, found the end")
            if not piece:
                return b""
            read += piece
        return bytes(read)

    def read_but_last(self, size: int) -> bytes:
        """Return `size` bytes, and leave the last one where it is."""
        if not size:
            return b""
        read = self.read(size - 1)
        self._connection.settimeout(max(self._deadline.left(), 0.001))
        last = self._connection.recv(1, socket.MSG_PEEK)
        if not last:
            raise WireError("wanted 1 more bytes, found the end")
        return read + last

    def _receive(self, most: int) -> bytes:
        """Return what has come, as a rule all of it."""
        # Each piece gets what is left, so that a trickle does not stretch the limit.
        self._connection.settimeout(max(self._deadline.left(), 0.001))
        space = socket.CMSG_SPACE(_INT)
        piece, messages, _, _ = self._connection.recvmsg(most, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in messages:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._descriptors += array.array("i", content[: len(content) // _INT * _INT])
        return piece

    def take_descriptor(self, number: int) -> int:
        """Return the descriptor that came, or minus the errno that came instead."""
        if number or len(self._descriptors) != 1:
            self.close_descriptors()
            return -(number or errno.ENOENT)
        return self._descriptors.pop()

    def close_descriptors(self) -> None:
        """Close what nobody took."""
        while self._descriptors:
            os.close(self._descriptors.pop())


def send_reply(connection: socket.socket, reply: Reply, timeout: float) -> None:
    """Send the whole reply; OSError when the peer is gone or does not read it in `timeout` seconds."""
    connection.settimeout(timeout)
    head = _HEAD.pack(_MAGIC, VERSION, reply.status, len(reply.stdout), len(reply.stderr))
    connection.sendall(head + reply.stdout + reply.stderr)


def ask(path: str, program: str, timeout: float) -> Reply:
    """Return the agent's answer to a call without a verb, which is who it is.

    Raises OSError when nobody listens or answers in `timeout` seconds, WireError for another's answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as agent:
        agent.settimeout(timeout)
        agent.connect(path)
        agent.sendall(_HEAD.pack(_MAGIC, VERSION, errno.ENOENT, len(program), 0) + program.encode())
        received = b"".join(iter(lambda: agent.recv(_CHUNK), b""))
    if len(received) < _HEAD.size or received[: len(_MAGIC)] != _MAGIC:
        raise WireError(f"wanted a reply that begins with {_MAGIC!r}, found {received[:20]!r}")
    _, _, status, out, _ = _HEAD.unpack_from(received)
    body = received[_HEAD.size :]
    return Reply(status=status, stdout=body[:out], stderr=body[out:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The process at the other end; `pid` is 0 when it is of a PID namespace that this one cannot see."""

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Credentials:
    """Return who connected, or at the end that connected who listened last: unix(7), SO_PEERCRED."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return Credentials(pid=pid, uid=uid)


def begin(connection: socket.socket) -> None:
    """Read the request's last byte: a call that ends from now on was begun.

    The kernel resets the connection of who is killed with something unread (unix(7), ECONNRESET). So a shim
    knows that its call has only waited here, and asks the next agent.
    """
    connection.setblocking(False)
    with suppress(BlockingIOError):  # a request without parts has none
        connection.recv(1)


def has_left(connection: socket.socket) -> bool:
    """Tell whether nobody waits for the reply any more."""
    poll = select.poll()
    poll.register(connection, 0)  # POLLHUP and POLLERR are always told
    return bool(poll.poll(0))
