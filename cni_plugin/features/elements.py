"""Elements of our nftables sets: claimed, released, collected, and whose each one is.

An element's comment begins with the identity of its attachment. An element is removed only after
reading, in the same generation of the ruleset, that it is still that attachment's: a late DEL must not
take what another pod has been given since.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from cni_plugin.kernel.link import get_link
from cni_plugin.kernel.nft_message import Element, ElementChange
from ipam.seam.undo import Undo

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
    from contextlib import ExitStack

    from netaddr import IPAddress

    from cni_plugin.features.damage import Damage
    from cni_plugin.features.feature import Site
    from cni_plugin.kernel.nfnetlink import Nftables

    Settlement = tuple[Collection[Element], Collection[Element]]  # what is made, and what of others goes

FAMILIES = ("inet", "bridge")
_AT_ONCE = 32
_IFNAME_SIZE = 16  # bytes of a key, IFNAMSIZ

ElementKey = tuple[str, str, bytes]  # family, set and key


def pack_ifname(name: str) -> bytes:
    """Return the name of a link as the key of an element, of type `ifname`."""
    return name.encode().ljust(_IFNAME_SIZE, b"\0")


def claim(
    site: Site,
    wanted: Sequence[Element],
    undo: ExitStack,
    settle: Callable[[], Settlement] | None = None,
) -> Collection[Element]:
    """Make the elements exist, all or none, and push their removal; one that exists is replaced.

    `settle` reads what others have that cannot stand beside them, and raises CNIError where that must
    stay. Returns what was made.
    """
    nftables = site.host.nftables
    made: Collection[Element] = wanted

    def decide() -> list[ElementChange]:
        nonlocal made
        made, gone = settle() if settle else (wanted, ())
        changes = [change for element in made for change in _replace(nftables, element, gone)]
        return [ElementChange(element, present=False) for element in gone] + changes

    undo.callback(release_exactly, site, wanted)  # first, as the answer may be lost
    nftables.update(decide)
    return made


def _replace(nftables: Nftables, wanted: Element, gone: Collection[Element]) -> Iterator[ElementChange]:
    found = nftables.get(wanted.family, wanted.set_name, wanted.key, table=wanted.table)
    if found == wanted:
        return
    if found is not None and found not in gone:
        yield ElementChange(found, present=False)
    yield ElementChange(wanted, present=True)


def is_of(site: Site, element: Element) -> bool:
    """Tell whether an element is the attachment's own."""
    return identity_of(element) == site.attachment.identity


def identity_of(element: Element) -> str:
    """Return the identity of the attachment that an element belongs to."""
    return element.comment.partition(" ")[0]


def release_exactly(site: Site, elements: Sequence[Element]) -> None:
    """Remove those of the elements that are there and the attachment's, whatever else they hold."""
    nftables = site.host.nftables

    def decide() -> list[ElementChange]:
        found = [nftables.get(e.family, e.set_name, e.key, table=e.table) for e in elements]
        own = [element for element in found if element and is_of(site, element)]
        return [ElementChange(element, present=False) for element in own]

    nftables.update(decide)


def release(site: Site, family: str, prefix: str, keys: Sequence[bytes] | None = None) -> list[Element]:
    """Remove the attachment's elements from all sets whose name begins with `prefix`; return them.

    Where nobody knows the keys (None) the sets are searched, which costs with their size.
    """
    names = site.sets(family, prefix)
    return _release_from(site, family, names, keys) if names and keys != [] else []


def release_addresses(site: Site, prefix: str, known: Iterable[IPAddress] | None) -> list[Element]:
    """Remove the attachment's elements from the sets of addresses whose name begins so; return them.

    The prefix is followed by the family's number; None where nobody tells the addresses.
    """
    removed: list[Element] = []
    for family in FAMILIES:
        for version in (4, 6):
            keys = None if known is None else [a.packed for a in known if a.version == version]
            removed += release(site, family, f"{prefix}{version}_", keys)
    return removed


def _release_from(
    site: Site, family: str, names: Sequence[str], keys: Sequence[bytes] | None
) -> list[Element]:
    nftables = site.host.nftables
    if keys is None:
        identity = site.attachment.identity
        found = nftables.search(lambda: chain(*(nftables.list_elements(family, n, identity) for n in names)))
        places = _places_of(found)
    else:
        places = [(family, name, key) for name in names for key in keys]
    return _remove(nftables, places, partial(is_of, site))


def _remove(
    nftables: Nftables, places: Sequence[ElementKey], may_go: Callable[[Element], bool]
) -> list[Element]:
    """Remove the elements in these places that may go; return them.

    A few at a time: what is decided about must be read in one generation, and a busy node has short ones.
    """
    removed: list[Element] = []
    for first in range(0, len(places), _AT_ONCE):
        some = places[first : first + _AT_ONCE]

        def decide(some: Sequence[ElementKey] = some) -> list[ElementChange]:
            found = filter(None, (nftables.get(*place) for place in some))
            return [ElementChange(element, present=False) for element in found if may_go(element)]

        removed += [change.element for change in nftables.update(decide)]
    return removed


def compare_elements(site: Site, wanted: Iterable[Element], what: str) -> Iterator[Damage]:
    """Yield the elements that the kernel does not hold as ADD made them; another attachment's stays."""
    from cni_plugin.features.damage import Damage  # no ADD or DEL needs it

    for element in wanted:
        found = site.host.nftables.get(element.family, element.set_name, element.key, table=element.table)
        own = found is None or is_of(site, found)
        # Words of a comment behind the identity are for people, and the pod's may have been cut.
        if found is None or not own or replace(found, comment=element.comment) != element:
            said = f"{what}: wanted {element.command}, found {found.command if found else 'none'}"
            yield Damage(kind="element", said=said, mend=partial(_restore, site, element) if own else None)


def _restore(site: Site, element: Element) -> None:
    """Make an element of a living attachment again, unless another has its key by now.

    A DEL removes the veth before anything else, so an element that was made before the veth was still seen is
    one that the DEL finds.
    """
    nftables = site.host.nftables

    def decide() -> list[ElementChange]:
        found = nftables.get(element.family, element.set_name, element.key, table=element.table)
        changes = [ElementChange(found, present=False)] if found and is_of(site, found) else []
        return [*changes, ElementChange(element, present=True)] if found is None or changes else []

    with Undo() as undo:
        undo.callback(release_exactly, site, [element])
        nftables.update(decide)
        if get_link(site.host.netlink, site.attachment.host_ifname) is not None:
            undo.pop_all()


def collect(nftables: Nftables, network: str, keep: Container[str]) -> list[Element]:
    """Remove the elements of a network's attachments whose identity is not to be kept; return them."""

    def may_go(element: Element) -> bool:
        return _is_of_network(element, network) and identity_of(element) not in keep

    return _remove(nftables, _places_of(filter(may_go, list_of(nftables, network))), may_go)


def _places_of(elements: Iterable[Element]) -> list[ElementKey]:
    """Return each place once, of whatever it has been seen with."""
    return list(dict.fromkeys((e.family, e.set_name, e.key) for e in elements))


def list_of(nftables: Nftables, network: str) -> list[Element]:
    """Return the elements of a network's attachments."""
    return nftables.search(lambda: _look_for(nftables, network))


def _look_for(nftables: Nftables, network: str) -> Iterator[Element]:
    for family in FAMILIES:
        for name in nftables.list_sets(family):
            found = nftables.list_elements(family, name, f" {network} ")
            yield from (element for element in found if _is_of_network(element, network))


def _is_of_network(element: Element, network: str) -> bool:
    return element.comment.partition(" ")[2].startswith(f"{network} ")
