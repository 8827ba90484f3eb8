"""Parses and renders IP addresses and networks, at the edge of the program only.

Inside, addresses are netaddr's. Text is read strictly: no "10.1", no octal, no white space,
and an address of a network always comes with its prefix length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netaddr import AddrFormatError, IPAddress, IPNetwork

from cni_plugin.contract.errors import invalid_config

if TYPE_CHECKING:
    from collections.abc import Iterable

_PREFIX_DIGITS = 3  # Python makes no number of more than 4,300
_LONGEST_SHOWN = 60  # longer than any address


def parse_ip(text: str, what: str) -> IPAddress:
    """Return the address in `text`; `what` names the key in the error (code 7)."""
    try:
        return collapse(IPAddress(text))
    except (AddrFormatError, ValueError) as error:
        raise invalid_config(f'{what} must be an IP address, found "{_shorten(text)}"') from error


def parse_cidr(text: str, what: str) -> IPNetwork:
    """Return address and prefix length of `text`, host bits kept; `what` names the key."""
    address, slash, prefix = text.partition("/")
    if not (slash and prefix.isascii() and prefix.isdigit()):
        raise invalid_config(f'{what} must be an address with a prefix length, found "{_shorten(text)}"')
    ip = parse_ip(address, what)
    digits = prefix.lstrip("0") or "0"
    if len(digits) > _PREFIX_DIGITS or int(digits) > width(ip):
        raise invalid_config(f'{what} must have a prefix length up to {width(ip)}, found "{_shorten(text)}"')
    return with_prefix(ip, int(digits))


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def with_prefix(ip: IPAddress, prefixlen: int) -> IPNetwork:
    """Return the address with the prefix length of its network, host bits kept."""
    return IPNetwork((int(ip), prefixlen), version=ip.version)


def is_among(address: IPNetwork, others: Iterable[IPNetwork]) -> bool:
    """Tell whether an address with its prefix length is among `others`; `==` ignores host bits."""
    return any((address.ip, address.prefixlen) == (other.ip, other.prefixlen) for other in others)


def parse_ip_or_cidr(text: str, what: str) -> IPAddress:
    """Return the address of `text`, whose optional prefix length is checked and dropped."""
    return parse_cidr(text, what).ip if "/" in text else parse_ip(text, what)


def collapse(ip: IPAddress) -> IPAddress:
    """Return an IPv4-mapped IPv6 address as IPv4, as Go's parser has it; others unchanged."""
    return ip.ipv4() if ip.version == 6 and ip.is_ipv4_mapped() else ip


def is_assignable(ip: IPAddress) -> bool:
    """Tell whether a host can have the address on a link: it is no group's, everybody's or nobody's.

    The kernel refuses the others, some of them only as a gateway (fib_check_nh in net/ipv4/fib_semantics.c).
    """
    if ip.version == 4:
        return int(ip) >> 24 != 0 and not ip.is_multicast() and int(ip) != 2**32 - 1
    return int(ip) > 1 and not ip.is_multicast()


def width(ip: IPAddress) -> int:
    """Return the number of bits of an address of this family."""
    return 32 if ip.version == 4 else 128


def default_route(version: int) -> IPNetwork:
    """Return the prefix of everything, in the family `version` (4 or 6)."""
    return IPNetwork((0, 0), version=4 if version == 4 else 6)


def link_local(mac: str) -> IPAddress:
    """Return the link-local address that the kernel makes from a MAC (RFC 4291 appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    interface_id = bytes([octets[0] ^ 0x02]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPAddress(int.from_bytes(b"\xfe\x80" + bytes(6) + interface_id, "big"), 6)
