"""Liveness: which attachments are alive, which are dead, and what proves it, for every command.

For attachments that our main plugin made in this network namespace, the missing veth is the proof. Any
other (Go's bridge with our addresses, macvlan, the Go host-local in the same directory) may live without
a veth of ours. There the runtime decides, for the networks that it uses. What the runtime lists lives,
whatever the kernel shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cni_plugin.node.evidence import Evidence
    from cni_plugin.node.runtime import RuntimeState


class State(StrEnum):
    """What is held of an attachment."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


class Proof(StrEnum):
    """What shows it."""

    KERNEL = "kernel"
    BOOT = "boot"
    RUNTIME = "runtime"
    DEBRIS = "debris"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """Whether an attachment lives, and why that is held."""

    state: State
    proof: Proof
    reason: str

    @property
    def is_dead(self) -> bool:
        """Tell whether it may go."""
        return self.state is State.DEAD

    @property
    def is_alive(self) -> bool:
        """Tell whether it is seen."""
        return self.state is State.ALIVE


def judge(evidence: Evidence, runtime: RuntimeState | None = None) -> Liveness:
    """Return the liveness; `runtime` is what the runtime says, None where it was not asked."""
    if not evidence.identity and not evidence.container_id:
        return _dead(Proof.DEBRIS, "an empty file, which a crash has left")
    if runtime is not None and runtime.lists(evidence):
        return _alive(Proof.RUNTIME, "the runtime lists its container")
    if evidence.link is not None:
        return _wonder(evidence, runtime)
    if evidence.joined_here:
        return _dead(Proof.KERNEL, "podwire joined it here, and its veth is gone")
    if evidence.of_earlier_boot and not evidence.shared:
        return _dead(Proof.BOOT, "it is of an earlier boot of this machine")
    return _believe(evidence, runtime)


def _wonder(evidence: Evidence, runtime: RuntimeState | None) -> Liveness:
    """Return what a veth shows: one that the runtime knows nothing of is strange, and nobody's to remove."""
    if runtime is None or evidence.network not in runtime.networks:
        return _alive(Proof.KERNEL, "its veth is here")
    return _unknown("its veth is here, and the runtime does not list it: somebody holds its namespace")


def _believe(evidence: Evidence, runtime: RuntimeState | None) -> Liveness:
    unseen = "nothing here shows whether it lives"
    if evidence.shared:
        return _unknown(f"{unseen}: it may be on another node of a shared store")
    if runtime is None:
        return _unknown(f"{unseen}: the runtime would (--runtime-endpoint)")
    if evidence.network not in runtime.networks:
        return _unknown(f"{unseen}: the runtime does not say that it uses this network (name it to say so)")
    if evidence.identity and not evidence.is_whole:
        return _unknown(f"{unseen}: its name is too long to be looked up")
    return _dead(Proof.RUNTIME, "the runtime does not list its container")


def _alive(proof: Proof, reason: str) -> Liveness:
    return Liveness(state=State.ALIVE, proof=proof, reason=reason)


def _dead(proof: Proof, reason: str) -> Liveness:
    return Liveness(state=State.DEAD, proof=proof, reason=reason)


def _unknown(reason: str) -> Liveness:
    return Liveness(state=State.UNKNOWN, proof=Proof.NONE, reason=reason)
