"""Policies become groups of allowances, and the sets of peers and ports that these name. Pure.

Peers that mean the same share a set, whichever policies have them. A policy that is larger than what a
node may be asked for is not compiled: its pods are closed in its directions, and it is named.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cni_plugin.dataplane.policy.ruleset import Allowance, Direction, Group

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni_plugin.cluster.policy_objects import NetworkPolicy, PolicyPeer, PolicyPort, PolicyRule

# Of one policy and direction. A packet pays some 100 ns for each of its group until one allows it.
MOST_ALLOWANCES = 2000
_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PortQuestion:
    """A port by name: of the pods that `peer` means, None for all; an ingress rule means the pod's own."""

    name: str
    protocol: int
    peer: PolicyPeer | None
    is_local: bool = False
    """Only pods of this node are meant: an ingress rule is about the pod's own ports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledPolicy:
    """What one policy says in one direction, and which sets it needs; `problem` where it is too large."""

    key: str
    allowances: tuple[Allowance, ...] = ()
    peers: dict[str, PolicyPeer] = field(default_factory=dict)
    named: dict[str, PortQuestion] = field(default_factory=dict)
    problem: str = ""


def compile_policy(policy: NetworkPolicy, direction: Direction) -> CompiledPolicy | None:
    """Return what a policy says in a direction; None when it says nothing of it."""
    rules = policy.ingress if direction is Direction.INGRESS else policy.egress
    if rules is None:
        return None
    size = sum(len(rule.peers or (None,)) * len(rule.ports or (None,)) for rule in rules)
    if size > MOST_ALLOWANCES:
        problem = (
            f"policy {policy.key}: wanted {MOST_ALLOWANCES} peers and ports of {direction.value} at most, "
            f"found {size}; the pods that it selects are closed"
        )
        return CompiledPolicy(key=policy.key, problem=problem)
    peers: dict[str, PolicyPeer] = {}
    named: dict[str, PortQuestion] = {}
    allowances = [
        allowance
        for number, rule in enumerate(rules)
        for allowance in _compile_rule(f"{policy.key} {number}", rule, direction, (peers, named))
    ]
    return CompiledPolicy(key=policy.key, allowances=tuple(allowances), peers=peers, named=named)


_Sets = tuple[dict[str, "PolicyPeer"], dict[str, PortQuestion]]


def _compile_rule(name: str, rule: PolicyRule, direction: Direction, sets: _Sets) -> Iterator[Allowance]:
    for peer in (None,) if rule.peers is None else rule.peers:
        for port in (None,) if rule.ports is None else rule.ports:
            # What is no pod has no port by a name.
            is_pod = peer is None or peer.block is None
            if is_pod or port is None or not port.name or direction is Direction.INGRESS:
                yield _allow(name, peer, port, direction, sets)


def _allow(
    name: str, peer: PolicyPeer | None, port: PolicyPort | None, direction: Direction, sets: _Sets
) -> Allowance:
    peers, named = sets
    block = peer.block if peer is not None else None
    peer_set = ""
    if peer is not None and block is None:
        peer_set = f"peers_{_digest(peer)}"
        peers[peer_set] = peer
    port_set = ""
    if port is not None and port.name:
        is_local = direction is Direction.INGRESS
        asked = None if is_local else peer
        question = PortQuestion(name=port.name, protocol=port.protocol, peer=asked, is_local=is_local)
        port_set = f"named_{direction.value[0]}_{_digest(question)}"
        named[port_set] = question
    number = None if port is None or port.name else port
    return Allowance(policy=name, peers=peer_set, block=block, port=number, named=port_set)


def make_group(direction: Direction, policies: Iterable[CompiledPolicy]) -> Group:
    """Return the group of the pods that these policies select; the order does not matter."""
    ordered = sorted(policies, key=lambda each: each.key)
    # What two allow by the same set is one rule.
    every = [allowance for each in reversed(ordered) for allowance in reversed(each.allowances)]
    kept = {(a.peers, a.block, a.port, a.named): a for a in every}
    allowances = tuple(sorted(kept.values(), key=lambda a: (a.policy, repr(a))))
    names = tuple(each.key for each in ordered)
    name = f"g_{direction.value}_{_digest((direction.value, names, allowances))}"
    return Group(name=name, policies=names, allowances=allowances)


def _digest(thing: object) -> str:
    return hashlib.sha256(repr(thing).encode()).hexdigest()[:_DIGITS]
