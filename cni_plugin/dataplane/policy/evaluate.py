"""Whether one may speak with another, by the policies in force, and by which of their rules. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.dataplane.policy.ruleset import ACCEPT, CLOSED, Direction
from cni_plugin.kernel.message import parse_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.cluster.policy_objects import PolicyPort
    from cni_plugin.dataplane.policy.desired import PolicyModel
    from cni_plugin.dataplane.policy.ruleset import Allowance, Binding


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A new connection: packed addresses, a protocol's number, and a port, 0 where the protocol has none."""

    source: bytes
    destination: bytes
    protocol: int
    port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What one end of a connection says of it, and why."""

    direction: Direction
    pod: str
    allowed: bool
    reason: str


def judge(model: PolicyModel, attempt: Attempt) -> Iterator[Judgement]:
    """Yield what the pods of this node at both ends say; nothing where neither is one."""
    ends = ((Direction.EGRESS, attempt.source), (Direction.INGRESS, attempt.destination))
    for direction, address in ends:
        binding = model.rules.bindings.get(address)
        if binding is not None:
            allowed, reason = _judge_end(model, binding, direction, attempt)
            yield Judgement(direction=direction, pod=binding.pod, allowed=allowed, reason=reason)


def _judge_end(
    model: PolicyModel, binding: Binding, direction: Direction, attempt: Attempt
) -> tuple[bool, str]:
    name = binding.ingress if direction is Direction.INGRESS else binding.egress
    if name == ACCEPT:
        return True, "no policy selects it"
    if name == CLOSED:
        return False, "a policy that selects it is too large to be in force"
    if attempt.source == attempt.destination:
        return True, "a pod may speak with itself"
    group = model.rules.groups[name]
    for allowance in group.allowances:
        if _allows(model, allowance, direction, attempt):
            policy, _, rule = allowance.policy.partition(" ")
            return True, f"policy {policy} allows it by rule {rule}"
    return False, f"none of the policies {' '.join(group.policies)} allows it"


def _allows(model: PolicyModel, allowance: Allowance, direction: Direction, attempt: Attempt) -> bool:
    other = attempt.source if direction is Direction.INGRESS else attempt.destination
    if allowance.peers and other not in model.rules.members[allowance.peers]:
        return False
    if allowance.block is not None:
        address = parse_address(other)
        excepted = any(address in cidr for cidr in allowance.block.excepted)
        if excepted or address not in allowance.block.cidr:
            return False
    if allowance.named:
        key = (
            attempt.destination
            + bytes([attempt.protocol, 0, 0, 0])
            + attempt.port.to_bytes(2, "big")
            + b"\0\0"
        )
        return key in model.rules.members[allowance.named]
    return allowance.port is None or _is_at(allowance.port, attempt)


def _is_at(port: PolicyPort, attempt: Attempt) -> bool:
    if port.protocol != attempt.protocol:
        return False
    return not port.first or port.first <= attempt.port <= port.last
