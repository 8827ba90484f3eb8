"""What a node shall do with packets to Services: a plan for each frontend. Values only.

A frontend is an address, a protocol and a port that clients send to: a cluster address, a node port at
each eligible address of the node, an external address, a load balancer's. Addresses are packed, 4 or
16 bytes: there are ten thousands of them, and the kernel wants them so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from netaddr import IPAddress

if TYPE_CHECKING:
    from netaddr import IPNetwork

PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
VERSIONS = (4, 6)
LENGTHS = {4: 4, 6: 16}  # bytes of an address
PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


class Frontend(NamedTuple):
    """Where clients send to."""

    address: bytes
    protocol: int
    port: int

    @property
    def version(self) -> int:
        """Return the family: 4 or 6."""
        return 4 if len(self.address) == 4 else 6


class Endpoint(NamedTuple):
    """Where a connection goes."""

    address: bytes
    port: int


class Refusal(Enum):
    """What a client is told when there is no endpoint for it."""

    REFUSE = "refuse"
    """At once: TCP by a reset, others by ICMP. Nobody anywhere offers the Service."""
    DROP = "drop"
    """Nothing: another node has endpoints, and this one is not the one to ask (policy Local)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendPlan:
    """What is done with new connections to a frontend. `keep` in seconds, 0 without session affinity."""

    name: str
    """The Service and its port, as people know them: NAMESPACE/NAME:PORT."""
    endpoints: tuple[Endpoint, ...] = ()
    refusal: Refusal = Refusal.REFUSE
    """What happens without endpoints."""
    inside: tuple[Endpoint, ...] | None = None
    """The endpoints for this node and its pods, where these are others (policy Local)."""
    keep: int = 0
    is_cluster: bool = False
    """It is a cluster address: whatever else is sent to that address is refused."""
    masquerade: bool = False
    """Endpoints see this node as the client."""
    masquerade_node: bool = False
    """They do so when the node itself asks."""
    sources: tuple[IPNetwork, ...] | None = None
    """Who may ask; None for everybody."""
    draining: tuple[Endpoint, ...] = ()
    """Endpoints that get nothing new and keep the flows that they have: they end, or others are nearer."""

    @property
    def refuses(self) -> bool:
        """Tell whether a client that gets no endpoint is told so."""
        return self.refusal is Refusal.REFUSE


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a node's rules say beside the frontends."""

    addresses: tuple[bytes, ...] = ()
    """This node's own, the preferred one of each family first."""
    own_subnets: tuple[IPNetwork, ...] = ()
    """Where this node's pods are."""
    pod_networks: tuple[IPNetwork, ...] = ()
    """Where all nodes' pods are."""
    peer_addresses: frozenset[bytes] = field(default_factory=frozenset)
    """All nodes' addresses: they are no clients from outside."""
    cluster_cidrs: tuple[IPNetwork, ...] = ()
    """Where cluster addresses are; empty where nobody has said."""
    _bounds: tuple[tuple[bytes, bytes], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Keep the ends of the own subnets as addresses are: every endpoint is compared with them."""
        bounds = tuple(
            (IPAddress(c.first, c.version).packed, IPAddress(c.last, c.version).packed)
            for c in self.own_subnets
        )
        object.__setattr__(self, "_bounds", bounds)

    def first_address(self, version: int) -> bytes:
        """Return the node's address of a family; empty when it has none."""
        return next((each for each in self.addresses if len(each) == LENGTHS[version]), b"")

    def is_own_pod(self, address: bytes) -> bool:
        """Tell whether an address is one of this node's pods."""
        length = len(address)
        return any(len(first) == length and first <= address <= last for first, last in self._bounds)
