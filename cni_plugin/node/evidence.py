"""Evidence: what store, elements, links and files show of each attachment; it decides nothing.

The one list that status, `ipam check`, gc and the doctor are views of; liveness.py says who is alive. What
stays when a pod dies unseen is read first. Its veth does not: that goes with the pod's namespace, and
the routes and neighbours with the veth. So the veths come last: an ADD makes its link before
anything else, and what was seen without one has none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from cni_plugin.addresses import host_local
from cni_plugin.config.network import Attachment, Label, host_ifname, parse_alias, parse_label
from cni_plugin.features import CHAINED, FEATURES
from cni_plugin.features.attachment import list_owned, load_makers
from cni_plugin.features.elements import list_of
from cni_plugin.features.hostports import label_of
from cni_plugin.kernel.link import list_links
from ipam.boot_mark import find_dead
from ipam.namespace_mark import list_reservations

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from netaddr import IPAddress

    from cni_plugin.features.feature import OwnedObject
    from cni_plugin.kernel.link import Link
    from cni_plugin.kernel.netns import Namespace
    from cni_plugin.node.configured import ConfiguredNetwork
    from ipam.namespace_mark import Reservation

# Elements of sets that the main plugin alone fills: masquerade, spoofCheck, portIsolation.
_MAIN_SETS: Final = ("masq", "spoof_", "isolated_ports")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is there of one attachment; two that are equal show that nothing has happened in between.

    Without an identity it is a file in the store that names no interface, or nobody at all.
    """

    network: str
    identity: str
    container_id: str
    """Maybe cut at its end, like the interface, when only the kernel names it."""
    ifname: str
    pod: str = ""
    what: tuple[str, ...] = ()
    """Each thing that the node has of it, in words; the veth is not among them."""
    reservations: tuple[Reservation, ...] = ()
    joined_here: bool = False
    """Our main plugin joined it to the network in this network namespace."""
    old: frozenset[IPAddress] = frozenset()
    """Reserved before this machine was started anew, which no container survives."""
    of_earlier_boot: bool = False
    """All of it was."""
    shared: bool = False
    """Its address may be held for another node."""
    link: Link | None = None
    """The host's end of its veth; of one that names no interface that of any of the container's."""

    @property
    def is_whole(self) -> bool:
        """Tell whether the names are those that the identity was made of."""
        return self.identity == _identity(self.network, self.container_id, self.ifname)

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """Return the addresses that the store holds for it."""
        return tuple(each.address for each in self.reservations)


@dataclass(frozen=True, slots=True)
class _Piece:
    """One thing of an attachment's; `proof` that our main plugin has joined it here, or that it is `old`."""

    label: Label
    what: str
    proof: bool
    reservation: Reservation | None = None
    old: bool = False


def read_evidence(network: ConfiguredNetwork, host: Namespace) -> list[Evidence]:
    """Return what there is of a network's attachments. Raises CNIError, IPAMError and KernelError."""
    pieces: dict[tuple[str, str], list[_Piece]] = {}
    for piece in _find_pieces(network, host):
        identity = piece.label.identity
        pieces.setdefault((identity, "" if identity else piece.label.container_id), []).append(piece)
    found = [_join(network, each) for each in pieces.values()]
    return with_links(network.name, found, list_links(host.netlink, kind="veth"))


def with_links(network: str, found: Iterable[Evidence], links: Iterable[Link]) -> list[Evidence]:
    """Return the evidence with each attachment's veth; one that has nothing but its veth comes last."""
    veths = list(links)
    owners = [(link, label) for link in veths if (label := parse_alias(link.alias))]
    joined = [_with_link(each, veths, owners) for each in found]
    known = {each.link.index for each in joined if each.link}
    known |= {
        link.index
        for link, label in owners
        if any(not each.identity and each.container_id == label.container_id for each in joined)
    }
    rest = [(link, label) for link, label in owners if label.network == network and link.index not in known]
    return [*joined, *(_of_link(link, label) for link, label in rest)]


def list_foreign(links: Iterable[Link], networks: Iterable[str]) -> list[Evidence]:
    """Return the attachments whose veth is all that is known of them: those of other networks."""
    known = set(networks)
    owners = [(link, label) for link in links if (label := parse_alias(link.alias))]
    return [_of_link(link, label) for link, label in owners if label.network not in known]


def _with_link(evidence: Evidence, veths: list[Link], owners: list[tuple[Link, Label]]) -> Evidence:
    """Return the evidence with the veth, under whatever name; of a legacy file by its container."""
    if evidence.identity:
        named = [(link, label) for link, label in owners if label.identity == evidence.identity]
    elif evidence.container_id:
        named = [(link, label) for link, label in owners if label.container_id == evidence.container_id]
    else:
        named = []
    for link, label in named:
        ifname = evidence.ifname or (label.ifname if evidence.identity else "")
        return replace(evidence, link=link, pod=evidence.pod or label.pod, ifname=ifname)
    name = host_ifname(evidence.identity) if evidence.identity else ""
    return replace(evidence, link=next((link for link in veths if link.name == name), None))


def _of_link(link: Link, label: Label) -> Evidence:
    return Evidence(
        network=label.network,
        identity=label.identity,
        container_id=label.container_id,
        ifname=label.ifname,
        pod=label.pod,
        what=(f"link {link.name}",),
        joined_here=True,
        link=link,
    )


def _find_pieces(network: ConfiguredNetwork, host: Namespace) -> Iterator[_Piece]:
    if network.has_store:
        store = host_local.open_store(network.main)
        dead = frozenset(find_dead(store))
        for each in list_reservations(store):
            owner = each.owner
            identity = _identity(network.name, owner.container_id, owner.ifname) if owner.ifname else ""
            label = Label(identity=identity, container_id=owner.container_id, ifname=owner.ifname)
            here = each.netns_mark == host.mark()
            yield _Piece(label, f"address {each}", here, each, each.address in dead)
    for element in list_of(host.nftables, network.name):
        proof = element.set_name.startswith(_MAIN_SETS)
        yield _Piece(parse_label(label_of(element.comment)), f"nft {element.command}", proof)
    for owned in _list_owned(network, host):
        yield _Piece(parse_label(owned.label), owned.what, proof=False)


def _list_owned(network: ConfiguredNetwork, host: Namespace) -> Iterator[OwnedObject]:
    for feature in load_makers():
        yield from list_owned(feature, network.main, host)
    for request in network.chained:
        if request.config.string("type") not in FEATURES:
            yield from list_owned(CHAINED[request.config.string("type")](), request, host)


def _identity(network: str, container_id: str, ifname: str) -> str:
    return Attachment(network=network, container_id=container_id, ifname=ifname, netns="").identity


def _join(network: ConfiguredNetwork, pieces: list[_Piece]) -> Evidence:
    # The store's names come first, and are whole.
    label = pieces[0].label
    held = [piece for piece in pieces if piece.reservation]
    return Evidence(
        network=network.name,
        identity=label.identity,
        container_id=label.container_id,
        ifname=label.ifname,
        pod=next((piece.label.pod for piece in pieces if piece.label.pod), ""),
        what=tuple(piece.what for piece in pieces),
        reservations=tuple(piece.reservation for piece in pieces if piece.reservation),
        joined_here=any(piece.proof for piece in pieces),
        old=frozenset(piece.reservation.address for piece in pieces if piece.reservation and piece.old),
        # Of the kernel's there is nothing then, but a file of `tuning` outlives a boot, too.
        of_earlier_boot=bool(held) and all(piece.old for piece in held),
        shared=network.shared,
    )
