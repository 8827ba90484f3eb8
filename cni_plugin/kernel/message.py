"""Packs and parses the bytes of route netlink messages.

Behind the header (kernel/netlink.py) a message is a fixed part, which each kind of object has of its
own, and attributes: a length, a number, a value, padded to four bytes. A value may be attributes again.
The numbers stand in the object's module, by their names in linux/rtnetlink.h and linux/if_link.h. What
is made for every pod is said with these words; see rtnetlink(7).
"""

from __future__ import annotations

import struct
import sys

from netaddr import IPAddress, IPNetwork

# linux/socket.h
AF_INET, AF_INET6, AF_BRIDGE = 2, 10, 7
FAMILY = {4: AF_INET, 6: AF_INET6}
VERSION = {AF_INET: 4, AF_INET6: 6}

_HEAD = struct.Struct("=HH")  # struct nlattr: length, type
_U16 = struct.Struct("=HHHxx")
_U32 = struct.Struct("=HHI")
_TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK, linux/netlink.h
_BYTES = {4: 4, 6: 16}


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute; everything below is this."""
    length = _HEAD.size + len(value)
    return _HEAD.pack(length, kind) + value + bytes(-length & 3)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds others."""
    return attribute(kind, b"".join(attributes))


def u8(kind: int, value: int) -> bytes:
    """Return an attribute of one byte."""
    return attribute(kind, bytes((value,)))


def u16(kind: int, value: int) -> bytes:
    """Return an attribute of two bytes in the machine's order."""
    return _U16.pack(6, kind, value)


def u32(kind: int, value: int) -> bytes:
    """Return an attribute of four bytes in the machine's order."""
    return _U32.pack(8, kind, value)


def text(kind: int, value: str) -> bytes:
    """Return an attribute that is text with a terminating zero."""
    return attribute(kind, value.encode() + b"\0")


def lladdr(kind: int, value: str) -> bytes:
    """Return an attribute that is a MAC, from the kernel's way of writing it."""
    return attribute(kind, bytes.fromhex(value.replace(":", "")))


def ip(kind: int, value: IPAddress) -> bytes:
    """Return an attribute that is an address of either family."""
    return attribute(kind, pack_address(value))


def parse_attributes(raw: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the attributes that begin at `offset` by their number, nested ones as they are."""
    return dict(list_attributes(raw, offset))


def list_attributes(raw: bytes, offset: int = 0) -> list[tuple[int, bytes]]:
    """Return the attributes that begin at `offset` in their order, for where a number comes twice."""
    found = []
    unpack, head = _HEAD.unpack_from, _HEAD.size
    while offset + head <= len(raw):
        length, kind = unpack(raw, offset)
        found.append((kind & _TYPE_MASK, raw[offset + head : offset + length]))
        offset += (length + 3) & ~3 or head
    return found


def find_attribute(raw: bytes, wanted: int) -> bytes:
    """Return one attribute and look no further; empty for one that is absent."""
    offset = 0
    while offset + _HEAD.size <= len(raw):
        length, kind = _HEAD.unpack_from(raw, offset)
        if kind & _TYPE_MASK == wanted:
            return raw[offset + _HEAD.size : offset + length]
        offset += (length + 3) & ~3 or _HEAD.size
    return b""


def parse_number(value: bytes | None) -> int:
    """Return a number of whatever size; 0 for an attribute that is absent."""
    return int.from_bytes(value or b"", sys.byteorder)


def parse_text(value: bytes | None) -> str:
    """Return text without its terminating zero; empty for an attribute that is absent."""
    return (value or b"").rstrip(b"\0").decode(errors="replace")


def parse_mac(value: bytes | None) -> str:
    """Return a MAC as the kernel writes it; empty for an attribute that is absent."""
    return (value or b"").hex(":")


def pack_address(value: IPAddress) -> bytes:
    """Return an address as the kernel has it: its length says its family."""
    return int(value).to_bytes(_BYTES[value.version], "big")


def parse_address(value: bytes) -> IPAddress:
    """Return an address, whose length says its family."""
    return IPAddress(int.from_bytes(value, "big"), 4 if len(value) == 4 else 6)


def parse_network(value: bytes, prefixlen: int) -> IPNetwork:
    """Return an address with its prefix length, host bits kept."""
    return IPNetwork((int.from_bytes(value, "big"), prefixlen), version=4 if len(value) == 4 else 6)
