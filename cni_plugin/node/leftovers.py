"""Leftovers: what store and kernel hold of each attachment of a network, whether it lives or not.

They are what stays when a pod dies without a DEL: addresses, nft elements, files. Its veth is not among
them: that goes with the pod's namespace, and the routes and neighbours go with the veth. The veths are
read last: an ADD makes its link before anything else, so what was seen without a veth has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.addresses import host_local
from cni_plugin.config.network import MARK, Attachment
from cni_plugin.features import CHAINED, FEATURES
from cni_plugin.features.attachment import bare_site
from cni_plugin.features.elements import list_of
from cni_plugin.features.hostports import label_of
from cni_plugin.kernel.link import list_links
from ipam.boot_mark import find_dead
from ipam.namespace_mark import list_reservations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.features.feature import Belonging
    from cni_plugin.kernel.netns import Namespace
    from cni_plugin.node.configured import ConfiguredNetwork
    from ipam.namespace_mark import Reservation

# Elements of sets that the main plugin alone fills: masquerade, spoofCheck.
_MAIN_SETS = ("masq", "spoof_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """What is there of one attachment; two looks that are equal show that nothing changed in between.

    Without an identity it is a file in the store that names no interface, or no owner at all.
    """

    network: str
    identity: str
    container_id: str
    """Maybe cut at its end, like the interface, when only the kernel names it."""
    ifname: str
    what: tuple[str, ...]
    reservations: tuple[Reservation, ...]
    joined_here: bool
    """Our main plugin joined it to the network in this network namespace."""
    of_earlier_boot: bool = False
    """All of it was reserved before this machine was started anew, which no container survives."""

    @property
    def is_whole(self) -> bool:
        """Tell whether the names are those that the identity was made of."""
        return self.identity == _identity(self.network, self.container_id, self.ifname)


@dataclass(frozen=True, slots=True)
class _Piece:
    """One thing of an attachment. `proof`: our main plugin attached it here. `old`: of an earlier boot."""

    label: tuple[str, str, str]
    what: str
    proof: bool
    reservation: Reservation | None = None
    old: bool = False


def list_leftovers(network: ConfiguredNetwork, host: Namespace) -> list[Leftover]:
    """Return the leftovers of a network's attachments. Raises CNIError, IPAMError and KernelError."""
    pieces: dict[tuple[str, str], list[_Piece]] = {}
    for piece in _find_pieces(network, host):
        identity, container_id, _ = piece.label
        pieces.setdefault((identity, "" if identity else container_id), []).append(piece)
    return [_join(network.name, found) for found in pieces.values()]


def _find_pieces(network: ConfiguredNetwork, host: Namespace) -> Iterator[_Piece]:
    if network.has_store:
        store = host_local.open_store(network.main)
        dead = frozenset(find_dead(store))
        for each in list_reservations(store):
            identity = _identity(network.name, each.owner.container_id, each.owner.ifname)
            label = (identity if each.owner.ifname else "", each.owner.container_id, each.owner.ifname)
            yield _Piece(label, f"address {each}", each.netns_mark == host.mark(), each, each.address in dead)
    for element in list_of(host.nftables, network.name):
        proof = element.set_name.startswith(_MAIN_SETS)
        yield _Piece(_parse_label(label_of(element.comment)), f"nft {element.command}", proof)
    for belonging in _list_belongings(network, host):
        yield _Piece(_parse_label(belonging.label), belonging.what, proof=False)


def _list_belongings(network: ConfiguredNetwork, host: Namespace) -> Iterator[Belonging]:
    for each in FEATURES.values():
        yield from each.load().belongings(network.name, bare_site(network.main, host, None))
    for request in network.chained:
        if request.config.string("type") not in FEATURES:
            feature = CHAINED[request.config.string("type")]()
            yield from feature.belongings(network.name, bare_site(request, host, None))


def _parse_label(text: str) -> tuple[str, str, str]:
    identity, _, container_id, ifname = [*text.split(" "), "", "", ""][:4]
    return identity, container_id, ifname


def _identity(network: str, container_id: str, ifname: str) -> str:
    return Attachment(network=network, container_id=container_id, ifname=ifname, netns="").identity


def _join(network: str, pieces: list[_Piece]) -> Leftover:
    # The store's names come first, and are whole.
    identity, container_id, ifname = pieces[0].label
    return Leftover(
        network=network,
        identity=identity,
        container_id=container_id,
        ifname=ifname,
        what=tuple(piece.what for piece in pieces),
        reservations=tuple(piece.reservation for piece in pieces if piece.reservation),
        joined_here=any(piece.proof for piece in pieces),
        # Of the kernel's there is nothing then, but a file of `tuning` outlives a boot, too.
        of_earlier_boot=any(piece.old for piece in pieces) and all(c.old for c in pieces if c.reservation),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Veths:
    """The host ends of veths: what proves that an attachment of ours is alive."""

    names: frozenset[str]
    identities: frozenset[str]
    container_ids: frozenset[str]

    def show(self, leftover: Leftover) -> bool:
        """Tell whether an attachment has one, under whatever name; one without identity by its container."""
        if not leftover.identity:
            return leftover.container_id in self.container_ids
        return leftover.identity in self.identities or host_ifname(leftover.identity) in self.names


def list_veths(host: Namespace) -> Veths:
    """Return the veths that are here now."""
    links = list_links(host.netlink, kind="veth")
    labels = [_parse_label(each.alias.removeprefix(MARK)) for each in links if each.alias.startswith(MARK)]
    return Veths(
        names=frozenset(each.name for each in links),
        identities=frozenset(identity for identity, _, _ in labels),
        container_ids=frozenset(container_id for _, container_id, _ in labels),
    )


def host_ifname(identity: str) -> str:
    """Return the name of the host's end of an attachment's veth."""
    return f"veth{identity[:11]}"
