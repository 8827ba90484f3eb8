"""What a table of policies shall hold: sets of peers, groups of rules, who is in which group.

Values only. A group is what a distinct set of policies says in one direction: the pods that the same
policies select share it. Addresses are packed, as the kernel has them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cni_plugin.cluster.policy_objects import Block, PolicyPort


_PORT_KEY = struct.Struct("!B3xH2x")


def pack_port(address: bytes, protocol: int, port: int) -> bytes:
    """Return a port of an address as the kernel's key."""
    return address + _PORT_KEY.pack(protocol, port)


class Direction(Enum):
    """Which way a connection goes, as the pod sees it."""

    INGRESS = "ingress"
    EGRESS = "egress"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What one rule allows: one peer, or everybody, at one port, or at all.

    `peers` names a set of addresses, `named` a set of ports; at most one of `peers` and `block` is there.
    """

    policy: str
    """NAMESPACE/NAME of the policy and the number of its rule."""
    peers: str = ""
    block: Block | None = None
    port: PolicyPort | None = None
    named: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The rules of a distinct set of policies in a direction: what none of them allows is denied."""

    name: str
    policies: tuple[str, ...]
    allowances: tuple[Allowance, ...] = ()


ACCEPT, CLOSED = "accept", "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What holds for a pod's addresses: a group's name in each direction, ACCEPT, or CLOSED."""

    pod: str
    identity: str
    """Of the attachment that the addresses were given to."""
    ingress: str
    egress: str

    @property
    def isolates(self) -> bool:
        """Tell whether anything may be denied."""
        return (self.ingress, self.egress) != (ACCEPT, ACCEPT)


@dataclass(slots=True)
class PolicyRules:
    """All of it, by name. Of sets it says which keys were touched since somebody last looked."""

    members: dict[str, dict[bytes, str]] = field(default_factory=dict)
    """The keys of each set, as the kernel has them, and the pod that each is there for."""
    groups: dict[str, Group] = field(default_factory=dict)
    bindings: dict[bytes, Binding] = field(default_factory=dict)
    touched: dict[str, set[bytes]] = field(default_factory=dict)

    def take_touched(self) -> dict[str, set[bytes]]:
        """Return the keys of each set that may have come or gone since the last call."""
        touched, self.touched = self.touched, {}
        return touched
