"""Telling neighbours of a new pod: gratuitous ARP and unsolicited neighbour advertisement.

The kernel's arp_notify and ndisc_notify speak at link-up, which for a bridge port is before
anything is forwarded. These frames are sent by hand once the port forwards, so that a
neighbour that knew the address with another MAC learns the new one (RFC 5227 section 3,
RFC 4861 section 7.2.6). By hand: `arping -U`, `ndsend`.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from netaddr import IPAddress

if TYPE_CHECKING:
    from collections.abc import Iterable

_ETH_P_ARP, _ETH_P_IPV6 = 0x0806, 0x86DD
_BROADCAST = b"\xff" * 6
_ALL_NODES = IPAddress("ff02::1")
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_ICMPV6 = 58
_NEIGHBOUR_ADVERTISEMENT = 136
_OVERRIDE = 0x20000000
_TARGET_LINK_LAYER_ADDRESS = 2


def announce(ifname: str, mac: str, addresses: Iterable[IPAddress]) -> None:
    """Send one announcement per address from `ifname`, in the namespace that the thread is in."""
    hardware = bytes.fromhex(mac.replace(":", ""))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as packet:
        packet.bind((ifname, 0))
        for address in addresses:
            packet.send(render_announcement(hardware, address))


def render_announcement(mac: bytes, address: IPAddress) -> bytes:
    """Return the Ethernet frame that announces `address` at `mac`."""
    return _gratuitous_arp(mac, address) if address.version == 4 else _advertisement(mac, address)


def _gratuitous_arp(mac: bytes, address: IPAddress) -> bytes:
    # An ARP request for one's own address: Ethernet, IPv4, lengths 6 and 4, operation 1.
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    body = mac + address.packed + b"\0" * 6 + address.packed
    return _BROADCAST + mac + struct.pack("!H", _ETH_P_ARP) + head + body


def _advertisement(mac: bytes, address: IPAddress) -> bytes:
    option = struct.pack("!BB", _TARGET_LINK_LAYER_ADDRESS, 1) + mac
    body = struct.pack("!I", _OVERRIDE) + address.packed + option
    pseudo = address.packed + _ALL_NODES.packed + struct.pack("!II", 4 + len(body), _ICMPV6)
    icmp_type = struct.pack("!BB", _NEIGHBOUR_ADVERTISEMENT, 0)
    icmp = icmp_type + struct.pack("!H", _checksum(pseudo + icmp_type + b"\0\0" + body)) + body
    # Hop limit 255 proves to receivers that the packet crossed no router.
    ip = struct.pack("!IHBB", 6 << 28, len(icmp), _ICMPV6, 255) + address.packed + _ALL_NODES.packed
    return _ALL_NODES_MAC + mac + struct.pack("!H", _ETH_P_IPV6) + ip + icmp


def _checksum(data: bytes) -> int:
    """Return the Internet checksum of an even number of bytes (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
