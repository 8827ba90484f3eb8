"""Damage: something that a node does not hold as an ADD or a sync left it, and what mends it.

Whoever makes something on the node compares it here, too: a mode, a backend, a feature. It yields what is
wrong, in the order in which it can be mended. CHECK refuses the first one, `podwire status` and the
doctor name all of them, `podwire sync` and the agent mend them (node/repair.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from cni_plugin.contract.errors import broken
from cni_plugin.kernel.nft import ensure_ruleset, find_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cni_plugin.kernel.nfnetlink import Nftables
    from cni_plugin.kernel.nft import Ruleset

Kind = Literal["link", "port", "address", "route", "neighbour", "sysctl", "chain", "element", "limit", "peer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One thing: `said` names the object, what was wanted and what was found."""

    kind: Kind
    said: str
    mend: Callable[[], object] | None
    """Makes it as it was, by whoever made it; it may mend more than this. None for what nobody here can."""
    remedy: str = ""
    """The command that mends what nobody here may: it is somebody else's."""


def kind_of(command: str) -> Kind:
    """Return what an undone command of a backend is about: a switch, or what leads to its peers."""
    return "sysctl" if command.startswith("sysctl ") else "peer"


def refuse(found: Iterable[Damage]) -> None:
    """Raise CNIError 100 for the first one."""
    for damage in found:
        raise broken(damage.said)


def compare_ruleset(nftables: Nftables, ruleset: Ruleset, what: str) -> Iterator[Damage]:
    """Yield the first chain that is not as wanted; all of them are written together."""
    if chain := find_difference(nftables, ruleset):
        said = f"nft chain {ruleset.family} podwire {chain}: wanted {what}, found others"
        yield Damage(kind="chain", said=said, mend=partial(ensure_ruleset, nftables, ruleset))
