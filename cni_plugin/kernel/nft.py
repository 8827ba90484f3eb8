"""Writes nftables by the program `nft`: chains at their hooks, with rules, and the sets that they use.

A ruleset is written in one transaction by the `nft` program when the kernel's is another, which
a digest in the comment of every rule tells. It belongs to a network or to the node, never to a
pod: what is a pod's are elements (kernel/nfnetlink.py). By hand: `nft list table inet podwire`.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.kernel.nft_layout import TABLE
from cni_plugin.kernel.nft_message import MAX_COMMENT
from ipam.seam import step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cni_plugin.kernel.nfnetlink import Nftables
    from cni_plugin.kernel.nft_layout import Place

log = logging.getLogger("podwire")

FAMILY = {4: "ip", 6: "ip6"}  # as rules name them
_DIGEST_DIGITS, _SCOPE_DIGITS = 16, 12


def scope_of(settings: str) -> str:
    """Return what the names of chains and sets end with that serve these settings alone."""
    return hashlib.sha256(settings.encode()).hexdigest()[:_SCOPE_DIGITS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain; `hook` is empty for one that only others jump to."""

    name: str
    rules: tuple[str, ...]
    hook: str = ""


def hooked(place: Place, rules: Iterable[str], scope: str = "") -> Chain:
    """Return the base chain at a place of the layout that serves `scope`."""
    return Chain(name=place.name(scope), hook=place.declaration, rules=tuple(rules))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """Chains that are written together, in a table of ours; `sets` are (declaration, type and flags).

    For example `("set masq4_1234", "typeof ip saddr;")`. `title` says in every rule whose it is.
    It is `typeof` and not `type` (but for the maps of host ports), and no rule has a `vmap` of its own: an
    nft before 1.1.2 ends with a segmentation fault at those of a newer one (nftables, be737a1986bf).
    Rules are in the words of `nft`, without a comment. `filled` are sets whose elements are as
    static as the rules: `fill` returns them by the set's name, and is called when they are written.
    What they depend on stands in `fingerprint`. `kept` are chains that others fill: made when missing,
    never flushed.
    """

    family: str
    title: str
    chains: tuple[Chain, ...]
    table: str = TABLE
    sets: tuple[tuple[str, str], ...] = ()
    filled: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    fingerprint: str = ""
    fill: Callable[[], Mapping[str, Iterable[object]]] = field(default=dict, repr=False)

    @property
    def digest(self) -> str:
        """Return what tells this ruleset from another of the same names."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:_DIGEST_DIGITS]

    @property
    def comment(self) -> str:
        """Return the comment of every rule."""
        text = f"{self.digest} {self.title}"
        return text.encode()[:MAX_COMMENT].decode(errors="ignore")

    def render(self) -> list[str]:
        """Return the transaction that makes it so, whatever was there."""
        table = f"{self.family} {self.table}"
        lines = [f"add table {table}"]
        for declaration, kind in self.sets:
            what, _, name = declaration.partition(" ")
            lines.append(f"add {what} {table} {name} {{ {kind} }}")
        lines += [f"flush set {table} {name}" for name in self.filled]
        for name, elements in (self.fill() if self.filled else {}).items():
            if text := ", ".join(map(str, elements)):
                lines.append(f"add element {table} {name} {{ {text} }}")
        lines += [f"add chain {table} {name}" for name in self.kept]
        for chain in self.chains:
            hook = f" {{ {chain.hook} }}" if chain.hook else ""
            lines += [f"add chain {table} {chain.name}{hook}", f"flush chain {table} {chain.name}"]
        comment = self.comment
        for chain in self.chains:
            lines += [f'add rule {table} {chain.name} {rule} comment "{comment}"' for rule in chain.rules]
        return lines


def ensure_ruleset(nftables: Nftables, wanted: Ruleset) -> bool:
    """Make the kernel's chains be as `wanted`, in one transaction; tell whether they were not.

    Raises CNIError 50 when there is no nft, 11 with nft's own words when it refuses.
    """
    if find_difference(nftables, wanted) is None:
        return False
    run_nft(wanted.render())
    return True


def delete_ruleset(nftables: Nftables, unwanted: Ruleset) -> bool:
    """Delete the chains in one transaction; tell whether there were any. Sets stay: others may have them."""
    present = list_present(nftables, unwanted)
    table = f"{unwanted.family} {unwanted.table}"
    if present:
        run_nft(f"{verb} chain {table} {name}" for verb in ("flush", "delete") for name in present)
    return bool(present)


def list_present(nftables: Nftables, ruleset: Ruleset) -> list[str]:
    """Return the names of those of the chains that there are, whatever is in them."""
    names = (chain.name for chain in ruleset.chains)
    return [name for name in names if nftables.get_chain(ruleset.family, ruleset.table, name)]


def find_difference(nftables: Nftables, wanted: Ruleset) -> str | None:
    """Return the name of the first chain that is not as `wanted`; None when all are."""
    comment = wanted.comment
    for chain in wanted.chains:
        found = nftables.list_comments(wanted.family, chain.name, table=wanted.table)
        if found != [comment] * len(chain.rules):
            return chain.name
    return None


def require_nft() -> str:
    """Return the path of the nft program; CNIError 50 when there is none."""
    program = shutil.which("nft")
    if program is None:
        raise CNIError(Code.NOT_AVAILABLE, "nft: wanted the program of nftables, found none in PATH")
    return program


def run_nft(script: Iterable[str]) -> None:
    """Run a script in one transaction; CNIError 11 with nft's own words when it refuses."""
    lines = list(script)
    for line in lines:
        log.debug("nft %s", line)
    if refusal := _run(lines):
        raise CNIError(Code.TRY_AGAIN_LATER, f"nft -f -: {refusal}", "\n".join(lines))


def try_ruleset(wanted: Ruleset) -> str:
    """Return why nft or the kernel would refuse the ruleset; empty when not. Nothing is changed."""
    return _run(wanted.render(), "-c")


def _run(lines: list[str], *options: str) -> str:
    """Return what nft says when it refuses; empty when it does not."""
    argv = [require_nft(), *options, "-f", "-"]
    text = "".join(f"{line}\n" for line in lines)
    import subprocess

    run = partial(subprocess.run, input=text, capture_output=True, text=True, check=False)
    try:
        done = step("program", run, argv)
    except OSError as error:
        return f"{argv[0]} cannot be started: {error.strerror}"
    return (done.stderr.strip() or _describe_end(done.returncode)) if done.returncode != 0 else ""


def _describe_end(status: int) -> str:
    """Return what an exit status says of an nft that has said nothing itself.

    nft reads every table at its start. One before 1.1.2 dies of what 1.1.2 and newer write about a set's type
    (nftables commit be737a1986bf), and a node may have both: one on the host, one in a container.
    """
    from signal import SIGSEGV

    if status == -SIGSEGV:
        return (
            "wanted an nft that reads the node's ruleset, found that it dies of it (SIGSEGV); "
            "before version 1.1.2 it does so of any set that a newer nft has made: nft --version"
        )
    return f"exit {status}"
