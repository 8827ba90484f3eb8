"""ICMP echoes of a stated size that must not be fragmented: does another node answer.

Many at once, and one code path for both families. A packet that the kernel refuses to send counts
as one that was not answered. By hand: `ping -c 1 -M do -s SIZE ADDRESS` with SIZE less the headers.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cni_plugin.kernel.errors import KernelError
from ipam.seam.waits import Deadline

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from netaddr import IPAddress

_ECHO: Final = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence number
_REQUEST: Final = {4: 8, 6: 128}
_REPLY: Final = {4: 0, 6: 129}
_HEADERS: Final = {4: 20 + _ECHO.size, 6: 40 + _ECHO.size}
# linux/in.h, linux/in6.h: do not fragment; what the kernel remembers of the path does not count.
_MTU_DISCOVER: Final = {4: (socket.IPPROTO_IP, 10, 3), 6: (socket.IPPROTO_IPV6, 23, 3)}
_TYPES: Final = {
    4: (socket.AF_INET, socket.IPPROTO_ICMP),
    6: (socket.AF_INET6, socket.IPPROTO_ICMPV6),
}
_BURST: Final = 64  # echoes until a breath is taken
_BREATH: Final = 0.002  # seconds
_FAN: Final = 16  # sizes tried at once in a search


@dataclass(frozen=True, slots=True)
class Echo:
    """One packet to ask for; `size` in bytes with its IP header, from `source` where that is stated."""

    address: IPAddress
    size: int
    source: IPAddress | None = None


def smallest(version: int) -> int:
    """Return the size in bytes of an echo without content."""
    return _HEADERS[version]


def send_echoes(echoes: Collection[Echo], patience: float) -> set[Echo]:
    """Return the echoes that were answered within `patience` seconds; KernelError without the right."""
    answered: set[Echo] = set()
    for version, source in {(echo.address.version, echo.source) for echo in echoes}:
        alike = [echo for echo in echoes if (echo.address.version, echo.source) == (version, source)]
        with _open(version) as asking:
            if source is None or _bind(asking, str(source)):
                answered |= _ask(asking, version, alike, patience)
    return answered


def ask_twice(echoes: Collection[Echo], patience: float) -> set[Echo]:
    """Return the echoes that were answered; the silent ones are asked again, for a first packet gets lost.

    (Neighbour discovery asks anew only after a second, and the first question may meet a port that is
    not forwarding yet.)
    """
    answered = send_echoes(echoes, patience)
    return answered | send_echoes(set(echoes) - answered, patience)


def find_largest(address: IPAddress, low: int, high: int, patience: float) -> int:
    """Return the largest size from `low`, which passes, to `high` that is answered."""
    while low < high:
        step = max(1, -(-(high - low) // _FAN))
        sizes = sorted({*range(low + step, high, step), high})
        asked = [Echo(address, size) for size in sizes]
        answered = send_echoes(asked, patience) or send_echoes(asked, patience)  # a busy node may be late
        passed = {echo.size for echo in answered}
        # What was lost for another reason than its size must not hide what is larger.
        low = max(passed, default=low)
        high = min((size for size in sizes if size > low), default=low) - 1
        high = max(high, low)
    return low


def _open(version: int) -> socket.socket:
    family, protocol = _TYPES[version]
    try:
        made = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        raise KernelError(f"ping -{version}", error.errno or 0) from error
    made.setsockopt(*_MTU_DISCOVER[version])
    made.setblocking(False)
    return made


def _bind(asking: socket.socket, source: str) -> bool:
    try:
        asking.bind((source, 0))
    except OSError:
        return False  # it is not ours: nothing can be answered there
    return True


def _ask(asking: socket.socket, version: int, echoes: list[Echo], patience: float) -> set[Echo]:
    identifier = int.from_bytes(os.urandom(2), "big")
    answered: set[Echo] = set()
    for number, echo in enumerate(echoes):
        _send(asking, _pack(version, identifier, number, echo.size), str(echo.address))
        if number % _BURST == _BURST - 1:
            answered |= _collect(asking, version, identifier, echoes, _BREATH)
    deadline = Deadline(patience)
    while len(answered) < len(echoes) and (left := deadline.left()):
        answered |= _collect(asking, version, identifier, echoes, left)
    return answered


def _send(asking: socket.socket, packet: bytes, address: str) -> None:
    try:
        asking.sendto(packet, (address, 0))
    except OSError:
        return  # too large for the interface, no route, forbidden: there will be no answer


def _pack(version: int, identifier: int, number: int, size: int) -> bytes:
    content = bytes(max(size - _HEADERS[version], 0))
    head = _ECHO.pack(_REQUEST[version], 0, 0, identifier, number & 0xFFFF)
    # The kernel fills in the checksum of IPv6, which covers addresses that it chooses.
    checksum = _checksum(head + content) if version == 4 else 0
    return _ECHO.pack(_REQUEST[version], 0, checksum, identifier, number & 0xFFFF) + content


def _checksum(packet: bytes) -> int:
    """Return the sum of RFC 1071."""
    padded = packet + b"\0" * (len(packet) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def _collect(
    asking: socket.socket, version: int, identifier: int, echoes: list[Echo], patience: float
) -> set[Echo]:
    """Return whose answers are there, after waiting for the first of them."""
    poll = select.poll()
    poll.register(asking, select.POLLIN)
    if not poll.poll(patience * 1000):
        return set()
    return {
        echoes[number]
        for found, number, source in _receive(asking, version)
        if found == identifier and number < len(echoes) and source == str(echoes[number].address)
    }


def _receive(asking: socket.socket, version: int) -> Iterator[tuple[int, int, str]]:
    """Yield identifier, number and sender of the replies that wait; others' come here, too."""
    for packet, source in _datagrams(asking):
        start = (packet[0] & 0x0F) * 4 if version == 4 else 0
        if len(packet) >= start + _ECHO.size:
            kind, _, _, identifier, number = _ECHO.unpack_from(packet, start)
            if kind == _REPLY[version]:
                yield identifier, number, source


def _datagrams(asking: socket.socket) -> Iterable[tuple[bytes, str]]:
    while True:
        try:
            packet, sender = asking.recvfrom(65535)
        except BlockingIOError:
            return
        except OSError:
            continue  # an ICMP error about what we sent, told once
        yield packet, sender[0].partition("%")[0]


def count_reverse_path_drops() -> int:
    """Return how many packets rp_filter has dropped here: `nstat -az TcpExtIPReversePathFilter`."""
    with open("/proc/thread-self/net/netstat", encoding="ascii") as file:
        lines = [line.split() for line in file if line.startswith("TcpExt:")]
    return int(dict(zip(*lines, strict=True)).get("IPReversePathFilter", 0))
