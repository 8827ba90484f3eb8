"""Frames made by hand, for what a kernel of good manners would never send.

Only the checksum of IPv4's header is right: a bridge with br_netfilter looks at it.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from tests.harness.networks import inside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import Space

IP4, ARP, IP6, VLAN, PROVIDER_VLAN = 0x0800, 0x0806, 0x86DD, 0x8100, 0x88A8
NS, NA, RS, RA, REDIRECT, MLD_REPORT = 135, 136, 133, 134, 137, 143
_TAGS = (VLAN.to_bytes(2, "big"), PROVIDER_VLAN.to_bytes(2, "big"))
BROADCAST = "ff:ff:ff:ff:ff:ff"
_ALL_PACKETS = 0x0003  # ETH_P_ALL
_HOP_BY_HOP, _ICMP6, _UDP, _IGMP = 0, 58, 17, 2


def packed_mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def ether(mac: str, kind: int, content: bytes) -> bytes:
    return packed_mac(BROADCAST) + packed_mac(mac) + kind.to_bytes(2, "big") + content


def tagged(kind: int, inner: int, content: bytes) -> bytes:
    """Return what follows the ethertype of a VLAN tag."""
    return struct.pack("!HH", 7, inner) + content if kind in {VLAN, PROVIDER_VLAN} else content


def arp(sender_mac: str, sender: str, *, operation: int = 2, target: str = "10.22.0.99") -> bytes:
    head = struct.pack("!HHBBH", 1, IP4, 6, 4, operation)
    hardware = packed_mac(sender_mac)
    return head + hardware + ip_address(sender).packed + bytes(6) + ip_address(target).packed


def udp(source: str, *, ports: tuple[int, int] = (1111, 2222), content: bytes = b"") -> bytes:
    """Return an IP packet to everybody."""
    datagram = struct.pack("!HHHH", *ports, 8 + len(content), 0) + content
    return ip(source, _UDP, datagram)


def igmp(source: str) -> bytes:
    return ip(source, _IGMP, bytes(8))


def ip(source: str, protocol: int, content: bytes) -> bytes:
    address = ip_address(source)
    if address.version == 6:
        to = ip_address("ff02::1").packed
        return struct.pack("!IHBB", 6 << 28, len(content), protocol, 255) + address.packed + to + content
    length = 20 + len(content)
    head = struct.pack("!BBHHHBBH", 0x45, 0, length, 1, 0, 64, protocol, 0) + address.packed + b"\xff" * 4
    return head[:10] + checksum(head) + head[12:] + content


def checksum(head: bytes) -> bytes:
    """Return the checksum of RFC 1071."""
    total = sum(struct.unpack(f"!{len(head) // 2}H", head))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return (total ^ 0xFFFF).to_bytes(2, "big")


def icmp6(source: str, kind: int, body: bytes, *, extended: bool = False) -> bytes:
    """Return an ICMPv6 packet, `extended` by a header of hop-by-hop options."""
    message = struct.pack("!BBH", kind, 0, 0) + body
    if extended:
        return ip(source, _HOP_BY_HOP, bytes([_ICMP6, 0, 1, 4, 0, 0, 0, 0]) + message)
    return ip(source, _ICMP6, message)


def discovery(source: str, kind: int, target: str = "", option: bytes = b"", **keys: bool) -> bytes:
    """Return a solicitation or advertisement; a router's has no target."""
    body = bytes(4) + (ip_address(target).packed if target else b"")
    return icmp6(source, kind, body + option, **keys)


def link_layer(kind: int, mac: str) -> bytes:
    """Return the option 1 (source) or 2 (target) of neighbour discovery."""
    return bytes([kind, 1]) + packed_mac(mac)


@dataclass
class Tap:
    """Packet sockets of a sender and of receivers."""

    sender: socket.socket
    receivers: dict[str, socket.socket]

    def arrives(self, frame: bytes, within: float = 0.3) -> list[str]:
        """Send a frame and return who has seen it, by name; ends early when everybody has."""
        self.sender.send(frame)
        # A receiver gets a tag beside the frame.
        wanted = frame[:12] + frame[16:] if frame[12:14] in _TAGS else frame
        waiting, seen = {r: n for n, r in self.receivers.items()}, []
        deadline = time.monotonic() + within
        while waiting and (left := deadline - time.monotonic()) > 0:
            ready = select.select(list(waiting), [], [], left)[0]
            seen += [waiting.pop(each) for each in ready if each.recv(2000).startswith(wanted)]
        return sorted(seen)


@contextmanager
def tapped(sender: Space, **receivers: tuple[Space, str]) -> Iterator[Tap]:
    """Open packet sockets: the sender's on eth0, receivers' on the link named beside each."""
    opened = {name: _open(space, link) for name, (space, link) in receivers.items()}
    made = Tap(_open(sender, "eth0"), opened)
    try:
        yield made
    finally:
        for each in (made.sender, *opened.values()):
            each.close()


def _open(space: Space, link: str) -> socket.socket:
    with inside(space):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PACKETS))
        made.bind((link, _ALL_PACKETS))
    return made
