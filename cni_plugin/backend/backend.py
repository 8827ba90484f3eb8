"""The interface of a backend: its functions, in the order in which they are called.

`plan` reads the backend's section of the configuration, before anything is made. `ensure` makes what
the network needs on this node because of other nodes, which all its pods share. How a pod is joined to
its node is no business of a backend (attach/mode.py), but for a segment that lies on the pods' bridge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cni_plugin.config.network import RemoteNetworks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from netaddr import IPNetwork

    from cni_plugin.backend.shared_facts import PeerPath
    from cni_plugin.kernel.netlink import Netlink
    from cni_plugin.kernel.netns import Namespace

Reach = Any  # a backend's own frozen dataclass; nothing outside the backend looks inside


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A link that shall be a port of the pods' bridge, so that the bridges of all nodes are one segment."""

    device: str
    gateway_mac: Callable[[object], str]
    """The MAC of what stands at an address: the same on every node."""


def _nothing(*_: object, **__: object) -> int:
    return 0


def _none(*_: object) -> tuple[Any, ...]:
    return ()


def _no_words(*_: object) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One way of joining the nodes of a network. `links` are those by which its pods' packets come in."""

    plan: Callable[..., Reach]
    """(Fields, Network, Addressing, *, segmented): settings from the configuration; raises CNIError 7.

    `segmented` tells whether the network's pods share a segment that a device may be a port of."""
    problem: Callable[[Reach], str] = _no_words
    """Why what was known of the peers before stays in force; empty when the present list can be read."""
    device: Callable[[Reach], str] = _no_words
    """The name of the link that it makes; empty where it makes none."""
    segment: Callable[[Reach], Segment | None]
    """The link that wants to be a port of the pods' bridge; None where nodes are routed to."""
    subnets: Callable[[Reach], Iterable[IPNetwork]] = _none
    """The subnets that are this node's alone; none where they are not."""
    mtu: Callable[[Reach, Netlink], int] = _nothing
    """The pods' MTU in bytes, configured or what this leaves; 0 where it decides none. CNIError 7, 11."""
    ensure: Callable[..., int] = _nothing
    """(Reach, Namespace, links, *, doubt): make it so and return the number of changes.

    Without `doubt` what the last sync has left in number is trusted."""
    list_undone: Callable[[Reach, Namespace, Iterable[str]], Iterable[str]] = _none
    """What `ensure` would do, as commands; changes nothing."""
    ready: Callable[[Reach, Namespace], object] = _nothing
    """Raise CNIError 50 when the kernel or the node lacks what this backend needs."""
    elsewhere: Callable[[Reach], RemoteNetworks] = lambda _: RemoteNetworks()
    """The networks of the pods on other nodes."""
    explain_mtu: Callable[[Reach, Netlink], list[str]] = lambda *_: []
    """The computation of the pods' MTU, a step a line; empty where it does not decide it."""
    ways: Callable[[Reach, Netlink], tuple[PeerPath, ...]] = _none
    """How packets get to each peer."""


NONE = Backend(plan=lambda *_, **__: None, segment=lambda _: None)
