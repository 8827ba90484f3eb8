"""Who is dead, and what proves it.

That there is no veth of ours proves it for attachments that our main plugin made in this network
namespace. Any other (Go's bridge with our addresses, macvlan, the Go host-local in the same
directory) may live without anything of ours to be seen: its word is the runtime's, of networks
that this runtime uses. What the runtime lists lives, whatever the kernel shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cni_plugin.node.leftovers import Trail, Veths
    from cni_plugin.node.runtime import Word


class Proof(StrEnum):
    """What shows that an attachment is no more."""

    KERNEL = "kernel"
    BOOT = "boot"
    RUNTIME = "runtime"
    DEBRIS = "debris"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is held of an attachment that does not seem to live, and why."""

    proof: Proof
    reason: str

    @property
    def is_dead(self) -> bool:
        """Tell whether it may go."""
        return self.proof is not Proof.NONE


def judge(trail: Trail, veths: Veths, word: Word | None, *, shared: bool) -> Verdict | None:
    """Return the verdict; None for an attachment that lives."""
    if not trail.identity and not trail.container_id:
        return Verdict(proof=Proof.DEBRIS, reason="an empty file, which a crash has left")
    if word is not None and word.lists(trail):
        return None
    if veths.show(trail):
        return _wonder(trail, word)
    if trail.joined_here:
        return Verdict(proof=Proof.KERNEL, reason="podwire joined it here, and its veth is gone")
    if trail.of_earlier_boot and not shared:
        return Verdict(proof=Proof.BOOT, reason="it is of an earlier boot of this machine")
    return _believe(trail, word, shared=shared)


def _wonder(trail: Trail, word: Word | None) -> Verdict | None:
    """Return what is strange about a veth that the runtime knows nothing of: it is nobody's to remove."""
    if word is None or trail.network not in word.networks:
        return None
    return _unproven("its veth is here, and the runtime does not list it: somebody holds its namespace")


def _believe(trail: Trail, word: Word | None, *, shared: bool) -> Verdict:
    unseen = "nothing here shows whether it lives"
    if shared:
        return _unproven(f"{unseen}: it may be on another node of a shared store")
    if word is None:
        return _unproven(f"{unseen}: the runtime would (--runtime-endpoint)")
    if trail.network not in word.networks:
        return _unproven(f"{unseen}: the runtime does not say that it uses this network (name it to say so)")
    if trail.identity and not trail.is_whole:
        return _unproven(f"{unseen}: its name is too long to be looked up")
    return Verdict(proof=Proof.RUNTIME, reason="the runtime does not list its container")


def _unproven(reason: str) -> Verdict:
    return Verdict(proof=Proof.NONE, reason=reason)
