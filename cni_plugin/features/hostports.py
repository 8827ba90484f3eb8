"""Host ports as values: parsed from `runtimeConfig.portMappings`, packed for nftables.

An entry asks for one port or, with `hostPortEnd`, for a range of them; without `hostIP` in both
families. Each becomes an element of a map, keyed by protocol and port and, with `hostIP`, by the address.
Its comment names the attachment; `if17/2` in it is the index of its veth's host end, and its two ports.
By hand: `nft add element inet podwire hostport4_SCOPE { tcp . 8080 : 10.1.0.5 . 80 }`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import invalid_config
from cni_plugin.contract.inet import parse_ip
from cni_plugin.kernel.message import parse_address
from cni_plugin.kernel.nft_message import MAX_COMMENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from netaddr import IPAddress

    from cni_plugin.contract.fields import Fields

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_NAMES = {number: name for name, number in PROTOCOLS.items()}
MOST = 1024
"""Ports of one attachment, which are as many elements per family."""
_HIGHEST = 65535
SERVICE_SIZE = 8  # bytes at the end of a key: protocol and port, each padded to a register's four
_END = "if"
_END_WORD = re.compile(rf"{_END}\d+/\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPort:
    """One port of the node in one family; `address` is None for all of the node's."""

    version: int
    protocol: str
    address: IPAddress | None
    port: int

    @property
    def kind(self) -> str:
        """Return how the names of the maps begin that such a port is kept in."""
        return f"hostport{self.version}{'' if self.address is None else 'at'}_"

    @property
    def service(self) -> bytes:
        """Return protocol and port as a key holds them."""
        return PROTOCOLS[self.protocol].to_bytes(4, "little") + _pack_port(self.port)

    @property
    def key(self) -> bytes:
        """Return the key of the port's element."""
        return (b"" if self.address is None else self.address.packed) + self.service

    def __str__(self) -> str:
        """Return the port as errors name it."""
        where = "" if self.address is None else f"{self.address} "
        return f"{where}{self.port}/{self.protocol} (IPv{self.version})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Whose a host port is, as far as the comment of its element says."""

    end: int = 0
    """The index of its veth's end on the host, 0 for unknown."""
    ports: int = 0
    """How many elements it asked for, 0 for unknown."""
    container_id: str = ""
    who: str


def render_holder(label: str, end: int, ports: int) -> str:
    """Return the comment of an attachment's elements, see `Holder`."""
    identity, network, rest = label.split(" ", 2)
    return f"{identity} {network} {_END}{end}/{ports} {rest}".encode()[:MAX_COMMENT].decode(errors="ignore")


def label_of(comment: str) -> str:
    """Return the comment as those of all other elements are: without the word about the veth."""
    words = comment.split(" ")
    return " ".join(word for n, word in enumerate(words) if n != 2 or not _END_WORD.fullmatch(word))


def parse_holder(comment: str) -> Holder:
    """Return what a comment says of the holder."""
    words = comment.split(" ")
    if len(words) < 4:  # made by hand, or cut in the word that matters
        return Holder(who=comment or "an element without a comment")
    end, _, ports = words[2].removeprefix(_END).partition("/")
    return Holder(
        end=int(end) if end.isdigit() else 0,
        ports=int(ports) if ports.isdigit() else 0,
        container_id=words[3],
        who=f"{' '.join(words[3:])} on network {words[1]}",
    )


def parse_key(set_name: str, key: bytes) -> HostPort:
    """Return the port that the key of a map's element says."""
    address, service = key[:-SERVICE_SIZE], key[-SERVICE_SIZE:]
    return HostPort(
        version=4 if set_name.startswith("hostport4") else 6,
        protocol=_NAMES[service[0]],
        address=parse_address(address) if address else None,
        port=int.from_bytes(service[4:6], "big"),
    )


def pack_target(address: IPAddress, port: int) -> bytes:
    """Return the value of an element: whereto the port leads."""
    return bytes(address.packed + _pack_port(port))


def parse_target(data: bytes) -> tuple[IPAddress, int]:
    """Return whereto an element leads."""
    return parse_address(data[:-4]), int.from_bytes(data[-4:-2], "big")


def _pack_port(port: int) -> bytes:
    return port.to_bytes(2, "big") + bytes(2)


def parse_host_ports(fields: Fields) -> dict[HostPort, int] | None:
    """Return the ports that are asked for and the pod's port behind each; None without a list; CNIError 7."""
    runtime = fields.section("runtimeConfig")
    if runtime is None or runtime.value("portMappings") is None:
        return None
    asked: dict[HostPort, int] = {}
    for entry in runtime.objects("portMappings"):
        for port, target in _parse_entry(entry):
            if asked.setdefault(port, target) != target:
                raise invalid_config(
                    f'"{entry.path}": wanted host port {port} for {target}, found it asked for {asked[port]}'
                )
    if len({(port.protocol, port.address, port.port) for port in asked}) > MOST:
        raise invalid_config(f'"{runtime.name("portMappings")}" must be at most {MOST} ports')
    return asked


def _parse_entry(entry: Fields) -> Iterator[tuple[HostPort, int]]:
    hosts, targets = _parse_range(entry, "hostPort"), _parse_range(entry, "containerPort", len_of="hostPort")
    if len(hosts) > MOST:
        raise invalid_config(f'"{entry.path}" must be at most {MOST} ports, found {len(hosts)}')
    protocol = entry.string("protocol").lower() or "tcp"
    if protocol not in PROTOCOLS:
        raise invalid_config(
            f'"{entry.name("protocol")}" must be one of {sorted(PROTOCOLS)}, found "{protocol}"'
        )
    for version, address in _parse_host_ip(entry):
        for port, target in zip(hosts, targets, strict=True):
            yield HostPort(version=version, protocol=protocol, address=address, port=port), target


def _parse_range(entry: Fields, key: str, *, len_of: str = "") -> range:
    """Return the ports from `key` to `key`End; as many as another range where it has no end."""
    first = entry.integer(key, 1, _HIGHEST)
    if first is None:
        raise invalid_config(f'"{entry.name(key)}": wanted a port, found none')
    last = entry.integer(f"{key}End", first, _HIGHEST)
    found = range(first, (first if last is None else last) + 1)
    if not len_of:
        return found
    wanted = len(_parse_range(entry, len_of))
    if last is None and first + wanted - 1 <= _HIGHEST:
        return range(first, first + wanted)
    if len(found) != wanted:
        raise invalid_config(
            f'"{entry.name(key)}": wanted a range of {wanted} ports, as {len_of} has, found {len(found)}'
        )
    return found


def _parse_host_ip(entry: Fields) -> Iterable[tuple[int, IPAddress | None]]:
    """Return the families asked for, with the address when it is not any of the node's."""
    text = entry.string("hostIP")
    if not text:
        return (4, None), (6, None)
    address = parse_ip(text, f'"{entry.name("hostIP")}"')
    if address.version == 6 and address.is_loopback():
        raise invalid_config(
            f'"{entry.name("hostIP")}": ::1 cannot be, as the kernel lets nothing from ::1 leave the node'
        )
    return ((address.version, None if int(address) == 0 else address),)
