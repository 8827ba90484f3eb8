"""What store and kernel hold of each attachment of a network, whether it lives or not.

A trail is made of what stays when a pod dies unseen. Its veth does not: that goes with the pod's
namespace, and the routes and neighbours with the veth. So the veths come last: an ADD
makes its link before anything else, and what was seen without one has none.
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
class Trail:
    """What is there of one attachment; two that are equal show that nothing has happened in between.

    Without identity it is a file in the store that names no interface, or nobody at all.
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
class _Clue:
    """One thing of an attachment's; `proof` that our main plugin has joined it here, or that it is `old`."""

    whose: tuple[str, str, str]
    what: str
    proof: bool
    reservation: Reservation | None = None
    old: bool = False


def follow(network: ConfiguredNetwork, host: Namespace) -> list[Trail]:
    """Return the trails of a network's attachments. Raises CNIError, IPAMError and KernelError."""
    clues: dict[tuple[str, str], list[_Clue]] = {}
    for clue in _find_clues(network, host):
        identity, container_id, _ = clue.whose
        clues.setdefault((identity, "" if identity else container_id), []).append(clue)
    return [_join(network.name, found) for found in clues.values()]


def _find_clues(network: ConfiguredNetwork, host: Namespace) -> Iterator[_Clue]:
    if network.has_store:
        store = host_local.open_store(network.main)
        dead = frozenset(find_dead(store))
        for each in list_reservations(store):
            identity = _identity(network.name, each.owner.container_id, each.owner.ifname)
            whose = (identity if each.owner.ifname else "", each.owner.container_id, each.owner.ifname)
            yield _Clue(whose, f"address {each}", each.netns_mark == host.mark(), each, each.address in dead)
    for element in list_of(host.nftables, network.name):
        proof = element.set_name.startswith(_MAIN_SETS)
        yield _Clue(_parse_whose(label_of(element.comment)), f"nft {element.command}", proof)
    for belonging in _list_belongings(network, host):
        yield _Clue(_parse_whose(belonging.whose), belonging.what, proof=False)


def _list_belongings(network: ConfiguredNetwork, host: Namespace) -> Iterator[Belonging]:
    for each in FEATURES.values():
        yield from each.load().belongings(network.name, bare_site(network.main, host, None))
    for request in network.chained:
        if request.config.string("type") not in FEATURES:
            feature = CHAINED[request.config.string("type")]()
            yield from feature.belongings(network.name, bare_site(request, host, None))


def _parse_whose(text: str) -> tuple[str, str, str]:
    identity, _, container_id, ifname = [*text.split(" "), "", "", ""][:4]
    return identity, container_id, ifname


def _identity(network: str, container_id: str, ifname: str) -> str:
    return Attachment(network=network, container_id=container_id, ifname=ifname, netns="").identity


def _join(network: str, clues: list[_Clue]) -> Trail:
    # The store's names come first, and are whole.
    identity, container_id, ifname = clues[0].whose
    return Trail(
        network=network,
        identity=identity,
        container_id=container_id,
        ifname=ifname,
        what=tuple(clue.what for clue in clues),
        reservations=tuple(clue.reservation for clue in clues if clue.reservation),
        joined_here=any(clue.proof for clue in clues),
        # Of the kernel's there is nothing then, but a file of `tuning` outlives a boot, too.
        of_earlier_boot=any(clue.old for clue in clues) and all(c.old for c in clues if c.reservation),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Veths:
    """The host ends of veths: what proves that an attachment of ours is alive."""

    names: frozenset[str]
    identities: frozenset[str]
    container_ids: frozenset[str]

    def show(self, trail: Trail) -> bool:
        """Tell whether an attachment has one, under whatever name; one without identity by its container."""
        if not trail.identity:
            return trail.container_id in self.container_ids
        return trail.identity in self.identities or host_ifname(trail.identity) in self.names


def list_veths(host: Namespace) -> Veths:
    """Return the veths that are here now."""
    links = list_links(host.netlink, kind="veth")
    whose = [_parse_whose(each.alias.removeprefix(MARK)) for each in links if each.alias.startswith(MARK)]
    return Veths(
        names=frozenset(each.name for each in links),
        identities=frozenset(identity for identity, _, _ in whose),
        container_ids=frozenset(container_id for _, container_id, _ in whose),
    )


def host_ifname(identity: str) -> str:
    """Return the name of the host's end of an attachment's veth."""
    return f"veth{identity[:11]}"
