"""Liveness: which attachments are dead, and what proves it.

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
    from cni_plugin.node.leftovers import Leftover, Veths
    from cni_plugin.node.runtime import RuntimeState


class Proof(StrEnum):
    """What shows that an attachment is no more."""

    KERNEL = "kernel"
    BOOT = "boot"
    RUNTIME = "runtime"
    DEBRIS = "debris"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """Why an attachment does not seem to live, and what proves it."""

    proof: Proof
    reason: str

    @property
    def is_dead(self) -> bool:
        """Tell whether it may go."""
        return self.proof is not Proof.NONE


def judge(leftover: Leftover, veths: Veths, state: RuntimeState | None, *, shared: bool) -> Liveness | None:
    """Return why the attachment does not seem to live; None for one that lives."""
    if not leftover.identity and not leftover.container_id:
        return Liveness(proof=Proof.DEBRIS, reason="an empty file, which a crash has left")
    if state is not None and state.lists(leftover):
        return None
    if veths.show(leftover):
        return _judge_by_veth(leftover, state)
    if leftover.joined_here:
        return Liveness(proof=Proof.KERNEL, reason="podwire joined it here, and its veth is gone")
    if leftover.of_earlier_boot and not shared:
        return Liveness(proof=Proof.BOOT, reason="it is of an earlier boot of this machine")
    return _judge_by_runtime(leftover, state, shared=shared)


def _judge_by_veth(leftover: Leftover, state: RuntimeState | None) -> Liveness | None:
    """Judge an attachment whose veth is here: it is kept, even if the runtime does not list it."""
    if state is None or leftover.network not in state.networks:
        return None
    return _unproven("its veth is here, and the runtime does not list it: somebody holds its namespace")


def _judge_by_runtime(leftover: Leftover, state: RuntimeState | None, *, shared: bool) -> Liveness:
    unseen = "nothing here shows whether it lives"
    if shared:
        return _unproven(f"{unseen}: it may be on another node of a shared store")
    if state is None:
        return _unproven(f"{unseen}: the runtime would (--runtime-endpoint)")
    if leftover.network not in state.networks:
        return _unproven(f"{unseen}: the runtime does not say that it uses this network (name it to say so)")
    if leftover.identity and not leftover.is_whole:
        return _unproven(f"{unseen}: its name is too long to be looked up")
    return Liveness(proof=Proof.RUNTIME, reason="the runtime does not list its container")


def _unproven(reason: str) -> Liveness:
    return Liveness(proof=Proof.NONE, reason=reason)
