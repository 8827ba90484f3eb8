"""Reads the peers (other nodes) of a network: from the configuration, or from a file each time.

In a file each line is an address followed by the subnets behind it, `#` begins a comment; or
the file is the JSON list that the configuration would hold. A file that cannot be read to its
end says nothing: what the kernel holds then stays in force.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netaddr import IPNetwork

from cni_plugin.config.network import RemoteNetworks
from cni_plugin.contract.errors import CNIError, invalid_config
from cni_plugin.contract.fields import Fields
from cni_plugin.contract.inet import parse_cidr, parse_ip, width

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from netaddr import IPAddress

    from cni_plugin.backend.stamp import Stamp


_NOBODY = "[]"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Peer:
    """Another node: its address on the underlay (one per family it has) and its pods' subnets."""

    addresses: tuple[IPAddress, ...]
    subnets: tuple[IPNetwork, ...] = ()

    @property
    def vtep(self) -> IPAddress:
        """Return the address that tunnels lead to."""
        return self.addresses[0]

    @property
    def reached(self) -> tuple[IPNetwork, ...]:
        """Return what has a way back to our pods; a node of a flat network has none."""
        if not self.subnets:
            return ()
        return (*self.subnets, *(IPNetwork(f"{a}/{width(a)}") for a in self.addresses))

    def __str__(self) -> str:
        """Return the peer as errors name it."""
        return ", ".join(map(str, self.addresses))


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSource:
    """Where the peers of a network stand written; read in full only when something changed."""

    listed: str
    """The JSON list of the configuration."""
    key: str
    """What errors call that list."""
    path: str
    content: str
    problem: str = ""
    """Why the file says nothing now; `content` is then what it said when it was last good."""

    @property
    def digest(self) -> str:
        """Return a name for what is written."""
        return hashlib.sha256(f"{self.listed}\0{self.content}".encode()).hexdigest()[:16]

    @property
    def is_named(self) -> bool:
        """Tell whether the configuration names peers, or a file that may."""
        return bool(self.path) or self.listed != _NOBODY

    @property
    def with_subnets(self) -> bool:
        """Tell whether subnets are written behind the peers."""
        if any(isinstance(value, dict) and value.get("subnets") for value in json.loads(self.listed)):
            return True
        if _is_json(self.content):
            return '"subnets"' in self.content
        return any(len(line.partition("#")[0].split()) > 1 for line in self.content.splitlines())

    @property
    def nobody(self) -> bool:
        """Tell whether there is no peer at all."""
        return next(self.first(), None) is None

    def first(self) -> Iterator[Peer]:
        """Yield the peers one by one, unchecked: who needs a few does not pay for all."""
        for index, value in enumerate(json.loads(self.listed)):
            yield _parse_peer(value, f"{self.key}[{index}]")
        if self.path:
            yield from _parse_json(self.content) if _is_json(self.content) else _parse_lines(self.content)

    def read(self) -> tuple[Peer, ...]:
        """Return all peers, sorted and each once; CNIError 7 for what cannot be."""
        return check_peers(self.first())

    def elsewhere(self, *, nodes: bool, device: str = "") -> RemoteNetworks:
        """Return the networks of the pods behind the peers, with `nodes` the peers' own addresses, too."""
        return RemoteNetworks(
            digest=f"{self.digest} {nodes}",
            read=lambda: tuple(n for peer in self.read() for n in (peer.reached if nodes else peer.subnets)),
            device=device,
        )


def find_peers(fields: Fields, stamp: Stamp) -> PeerSource:
    """Return the source that `peers` and `peersFile` name.

    A file that cannot be read to its end leaves in force what it said at the last sync; without
    one it is CNIError 7.
    """
    path, key = fields.string("peersFile"), fields.name("peers")
    listed = json.dumps(fields.items("peers"), sort_keys=True)
    if not path:
        return PeerSource(listed=listed, key=key, path="", content="")
    try:
        source = PeerSource(listed=listed, key=key, path=path, content=_read_file(path))
        if source.content != stamp.content:
            source.read()
    except CNIError as error:
        problem = f'"peersFile" {path}: {error.msg}'
        if not stamp.content:
            raise invalid_config(problem) from error
        return PeerSource(listed=listed, key=key, path=path, content=stamp.content, problem=problem)
    return source


def _read_file(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise invalid_config(f"wanted a text file, found {error}") from error


def _is_json(text: str) -> bool:
    return text.lstrip()[:1] in {"[", "{"}


def _parse_json(text: str) -> Iterator[Peer]:
    try:
        members = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid_config(f"wanted a JSON list of peers, found {error}") from error
    if not isinstance(members, list):
        raise invalid_config("wanted a JSON list of peers, found an object")
    yield from (_parse_peer(value, f"[{index}]") for index, value in enumerate(members))


def _parse_lines(text: str) -> Iterator[Peer]:
    # A file that was cut while it was written ends without the newline of its last line, or is empty.
    if not text.endswith("\n"):
        raise invalid_config("wanted a newline at its end, found it cut off")
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if words:
            yield _make_peer(words[:1], words[1:], f"line {number}")


def _parse_peer(value: object, path: str) -> Peer:
    if isinstance(value, str):
        return _make_peer([value], [], path)
    if not isinstance(value, dict):
        raise invalid_config(f'"{path}" must be an address or an object, found {value!r}')
    fields = Fields(value, path)
    addresses = fields.strings("addresses") or [fields.string("vtep")]
    return _make_peer(addresses, fields.strings("subnets"), path)


def _make_peer(addresses: list[str], subnets: list[str], path: str) -> Peer:
    made = Peer(
        addresses=tuple(parse_ip(text, f'"{path}"') for text in addresses),
        subnets=tuple(sorted(_parse_subnet(text, path) for text in subnets)),
    )
    for address in made.addresses:
        if address.is_multicast() or address.is_loopback() or not int(address):
            raise invalid_config(f'"{path}" must be the address of a node, found {address}')
    return made


def _parse_subnet(text: str, path: str) -> IPNetwork:
    subnet = parse_cidr(text, f'"{path}.subnets"')
    if subnet.ip != subnet.network:
        raise invalid_config(f'"{path}.subnets" must have no host bits, found {text}')
    return subnet


def check_peers(peers: Iterable[Peer]) -> tuple[Peer, ...]:
    """Return the peers sorted and each once; CNIError 7 when two contradict each other."""
    unique = sorted(set(peers))
    by_vtep: dict[IPAddress, Peer] = {}
    for peer in unique:
        for address in peer.addresses:
            other = by_vtep.setdefault(address, peer)
            if other is not peer:
                raise invalid_config(
                    f"peer {address} is listed twice, with subnets {_names(other.subnets)} "
                    f"and {_names(peer.subnets)}"
                )
    refuse_overlaps([(f"peer {peer}", subnet) for peer in unique for subnet in peer.subnets])
    return tuple(unique)


def refuse_conflicts(ours: Iterable[IPNetwork], peers: Iterable[Peer], *own: IPAddress) -> None:
    """Raise CNIError 7 for subnets that are not one node's alone, or lead the way to a node into itself."""
    nodes = {*own, *(address for peer in peers for address in peer.addresses)}
    refuse_overlaps(
        [
            *(("this node", subnet) for subnet in ours),
            *((f"peer {peer}", subnet) for peer in peers for subnet in peer.subnets),
            *(("the underlay", IPNetwork(f"{address}/{width(address)}")) for address in nodes),
        ]
    )


def refuse_overlaps(subnets: list[tuple[str, IPNetwork]]) -> None:
    """Raise CNIError 7 for two subnets with an address in common; `subnets` are (owner, subnet).

    Sorted by their first address, overlapping ones are neighbours.
    """
    ordered = sorted(subnets, key=lambda member: (member[1].version, member[1].first, -member[1].last))
    for (owner, subnet), (other, following) in itertools.pairwise(ordered):
        if subnet.version == following.version and following.first <= subnet.last:
            raise invalid_config(f"subnet {subnet} of {owner} overlaps {following} of {other}")


def _names(subnets: Iterable[IPNetwork]) -> list[str]:
    return [str(subnet) for subnet in subnets]
