"""Elements of our nftables sets and whose they are: claimed, released, collected, compared.

An element's comment begins with the identity of its attachment. Whoever takes an element away has
read that it is his, in the same generation of the ruleset: a late DEL must not take what another
pod has been given since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.contract.errors import broken
from cni_plugin.kernel.nfnetlink import Change, Element

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
    from contextlib import ExitStack

    from cni_plugin.kernel.nfnetlink import Nftables
    from cni_plugin.plumbing.feature import Site

FAMILIES = ("inet", "bridge")


def claim(
    site: Site,
    wanted: Sequence[Element],
    undo: ExitStack,
    rivals: Callable[[], Iterable[Element]] = tuple,
) -> None:
    """Make the elements exist, all or none, and push their removal; one that exists is replaced.

    `rivals` reads what others have that cannot stand beside them: it raises CNIError where that must
    stay, and returns what goes.
    """
    nftables = site.host.nftables

    def decide() -> list[Change]:
        gone = dict.fromkeys(rivals())
        changes = [change for element in wanted for change in _replace(nftables, element, gone)]
        return [Change(element, present=False) for element in gone] + changes

    nftables.update(decide)
    undo.callback(release_exactly, site, wanted)


def _replace(nftables: Nftables, wanted: Element, gone: Collection[Element]) -> Iterator[Change]:
    found = nftables.get(wanted.family, wanted.set_name, wanted.key)
    if found == wanted:
        return
    if found is not None and found not in gone:
        yield Change(found, present=False)
    yield Change(wanted, present=True)


def is_of(site: Site, element: Element) -> bool:
    """Tell whether an element is the attachment's own."""
    return identity_of(element) == site.attachment.identity


def identity_of(element: Element) -> str:
    """Return the identity of the attachment that an element belongs to."""
    return element.comment.partition(" ")[0]


def release_exactly(site: Site, elements: Sequence[Element]) -> None:
    """Remove those of the elements that are there and the attachment's, whatever else they hold."""
    nftables = site.host.nftables

    def decide() -> list[Change]:
        found = [nftables.get(e.family, e.set_name, e.key) for e in elements]
        return [Change(element, present=False) for element in found if element and is_of(site, element)]

    nftables.update(decide)


def release(site: Site, family: str, prefix: str, keys: Sequence[bytes] | None = None) -> list[Element]:
    """Remove the attachment's elements from all sets whose name begins with `prefix`; return them.

    Where nobody knows the keys (None) the sets are searched, which costs with their size.
    """
    names = site.host.nftables.list_sets(family, prefix)
    return _release_from(site, family, names, keys) if names and keys != [] else []


def _release_from(
    site: Site, family: str, names: Sequence[str], keys: Sequence[bytes] | None
) -> list[Element]:
    nftables = site.host.nftables

    def decide() -> list[Change]:
        found = (e for name in names for e in _find(site, family, name, keys))
        return [Change(element, present=False) for element in found if is_of(site, element)]

    return [change.element for change in nftables.update(decide)]


def _find(site: Site, family: str, name: str, keys: Sequence[bytes] | None) -> Iterable[Element]:
    nftables = site.host.nftables
    if keys is None:
        return nftables.list_elements(family, name, site.attachment.identity)
    return filter(None, (nftables.get(family, name, key) for key in keys))


def require(site: Site, wanted: Iterable[Element], what: str) -> None:
    """Raise CNIError 100 for the first element that the kernel does not hold as ADD made it."""
    for element in wanted:
        found = site.host.nftables.get(element.family, element.set_name, element.key)
        if found is None:
            raise broken(f"{what}: wanted {element.command}, found none")
        if found != element:
            raise broken(f"{what}: wanted {element.command}, found {found.command}")


def collect(nftables: Nftables, network: str, keep: Container[str], prefix: str = "") -> list[Element]:
    """Remove the elements of a network's attachments whose identity is not to be kept; return them.

    Of all sets, or those whose name begins with `prefix`.
    """

    def decide() -> list[Change]:
        found = list_of(nftables, network, prefix)
        return [Change(e, present=False) for e in found if identity_of(e) not in keep]

    return [change.element for change in nftables.update(decide)]


def list_of(nftables: Nftables, network: str, prefix: str = "") -> Iterator[Element]:
    """Yield the elements of a network's attachments."""
    for family in FAMILIES:
        for name in nftables.list_sets(family, prefix):
            for element in nftables.list_elements(family, name, f" {network} "):
                if element.comment.partition(" ")[2].startswith(f"{network} "):
                    yield element
