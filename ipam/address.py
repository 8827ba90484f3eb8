"""An address as text, exactly as Go prints and reads it.

The text is a file's name in the store, so it must be the reference's to the letter: dotted
decimal without leading zeros, RFC 5952 with colons, IPv4-mapped IPv6 collapsed to IPv4.
Parsing is strict: no "10.1", no octal, no white space, no zone.
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Final, Literal

from netaddr import IPAddress

Version = Literal[4, 6]

_FAMILY: Final = {4: AF_INET, 6: AF_INET6}
_BYTES: Final = {4: 4, 6: 16}
_MAPPED_PREFIX: Final = 0xFFFF


def parse_address(text: str) -> IPAddress | None:
    """Return the address that `text` strictly is, a mapped one as IPv4; None for anything else."""
    parsed = parse_value(text)
    return None if parsed is None else IPAddress(*parsed)


def parse_value(text: str) -> tuple[int, Version] | None:
    """Return an address as (number, version): the cheap form for walks over many names."""
    version: Version = 6 if ":" in text else 4
    try:
        value = int.from_bytes(inet_pton(_FAMILY[version], text), "big")
    except (OSError, ValueError):  # ValueError: a NUL or an undecodable byte in a file's name
        return None
    if version == 6 and value >> 32 == _MAPPED_PREFIX:
        return value & 0xFFFFFFFF, 4
    return value, version


def render_address(address: IPAddress) -> str:
    """Return the text of an address as Go prints it."""
    return render_value(int(address), address.version)


def render_value(value: int, version: int) -> str:
    """Return the text of an address given as a number."""
    if version == 6 and 0 < value >> 16 <= _MAPPED_PREFIX:
        # The C library prints the obsolete IPv4-compatible ::/96 as ::1.2.3.4, Go as ::102:304.
        return f"::{value >> 16:x}:{value & 0xFFFF:x}"
    return inet_ntop(_FAMILY[version], value.to_bytes(_BYTES[version], "big"))


def collapse(address: IPAddress) -> IPAddress:
    """Return an IPv4-mapped IPv6 address as IPv4, any other address unchanged."""
    return address.ipv4() if address.version == 6 and address.is_ipv4_mapped() else address
