"""What a network's pods share on this node, as values: underlay, tunnel, paths to peers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netaddr import IPAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class SurveyProblem:
    """Something on this node that a pod's ADD stumbles over, and the command that mends it."""

    object: str
    found: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPath:
    """How packets get to another node: a whole packet of `mtu` bytes to `outer`, of `inner_mtu` to `inner`.

    `inner` are pairs of our own address and the peer's that answers inside the tunnel `device` on `port`,
    empty where there is none.
    """

    outer: IPAddress
    link: str
    mtu: int
    inner: tuple[tuple[IPAddress, IPAddress], ...] = ()
    inner_mtu: int = 0
    device: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What there is on this node of what a network's pods share; reading it changes nothing."""

    undone: tuple[str, ...] = ()
    """What `synchronize` would do, as commands."""
    troubles: tuple[SurveyProblem, ...] = ()
    """What it could not."""
    ways: tuple[PeerPath, ...] = ()
    mtu: int = 0
    """What pods get now, in bytes."""
