"""The interface of an attach mode: its functions, in the order in which they are called.

`plan` reads the mode's keys and finds every configuration error before anything is made.
`connect` makes the link between pod and network, `configure` gives it its addresses, `check`
compares. What the pods share is made again by `synchronize`. Removing a pod's link takes no mode:
it is known by its name (attach/veth.py). How nodes are joined is a backend's (backend/backend.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from contextlib import ExitStack

    from netaddr import IPNetwork

    from cni_plugin.backend.backend import Segment
    from cni_plugin.backend.shared_facts import Survey
    from cni_plugin.config.network import Addressing, Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.result import Result
    from cni_plugin.features.damage import Damage
    from cni_plugin.features.feature import Site
    from cni_plugin.kernel.netns import Namespace

Plan = Any  # a mode's own frozen dataclass; nothing outside the mode looks inside
Connection = Any  # what `connect` made, likewise


def _nothing(*_: object) -> int:
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One way of joining a pod to a network; `mtu` is in bytes, what a backend leaves, 0 for automatic."""

    plan: Callable[[Fields, Network, Addressing], Plan]
    """Settings from the configuration and what is known of its addresses; raises CNIError 7."""
    join_segment: Callable[[Plan, Segment], Plan] | None = None
    """The plan with a port that leads to the other nodes; None where the pods share no segment."""
    stated_families: Callable[[Plan], frozenset[int]]
    """The families (4, 6) that the configuration names."""
    links: Callable[[Plan], Iterable[str]]
    """The links by which packets of the pods come into the node, as names or patterns of names."""
    forwarded_by: Callable[[Plan], str]
    """The interface that the node forwards the pods' packets from and to; empty when it does not."""
    connect: Callable[[Plan, int, Site, ExitStack], Connection]
    """(plan, mtu, ...): ensure what is shared, make what is the pod's."""
    configure: Callable[[Plan, Connection, Site, Result], Result]
    """With the result of the IPAM plugin: set addresses, routes, and the attachment's result."""
    check: Callable[[Plan, Site, Result], None]
    """Compare with prevResult: raise CNIError for the first thing that is not as ADD left it."""
    compare: Callable[[Plan, int, Site, Result], Iterable[Damage]]
    """(plan, mtu, ...): what the node does not hold of an attachment as ADD left it; looks into no pod."""
    compare_shared: Callable[[Plan, int, Namespace], Iterable[Damage]]
    """(plan, mtu, ...): what is not as wanted of that which the pods share, as far as it has been made."""
    ready: Callable[[Plan, Namespace], None]
    """Raise CNIError 50 when the kernel lacks what this mode needs."""
    synchronize: Callable[[Plan, int, Namespace], int] = _nothing
    """(plan, mtu, ...): make what the pods share equal to what is wanted; the number of changes."""
    drop_others: Callable[[Plan, Collection[IPNetwork], Namespace], int] = _nothing
    """Remove what the node has of subnets but these, which are its own now; the number of changes."""
    explain_mtu: Callable[[Plan, Namespace], list[str]]
    """The computation of the pods' MTU where no backend decides it, a step a line."""
    survey: Callable[[Plan, int, Namespace], Survey]
    """(plan, mtu, ...): compare what the pods share with what is wanted; CNIError for what cannot be."""
