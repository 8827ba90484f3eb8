"""The interface of an attach mode: its functions, in the order in which they are called.

`plan` reads the mode's keys and finds every configuration error before anything is made.
`connect` makes the link between pod and network, `configure` gives it its addresses, `check`
compares. What the pods share is made again by `synchronize`. Removing a pod's link takes no mode:
it is known by its name (attach/veth.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from cni_plugin.backend.shared_facts import Survey
    from cni_plugin.config.network import Addressing, Network, RemoteNetworks
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.result import Result
    from cni_plugin.features.feature import Site
    from cni_plugin.kernel.netns import Namespace

Plan = Any  # a mode's own frozen dataclass; nothing outside the mode looks inside
Connection = Any  # what `connect` made, likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One way of joining a pod to a network."""

    plan: Callable[[Fields, Network, Addressing], Plan]
    """Settings from the configuration and what is known of its addresses; raises CNIError 7."""
    connect: Callable[[Plan, Site, ExitStack], Connection]
    """Ensure what is shared, make what is the pod's."""
    configure: Callable[[Plan, Connection, Site, Result], Result]
    """With the result of the IPAM plugin: set addresses, routes, and the attachment's result."""
    check: Callable[[Plan, Site, Result], None]
    """Compare with prevResult: raise CNIError for the first thing that is not as ADD left it."""
    ready: Callable[[Plan, Namespace], None]
    """Raise CNIError 50 when the kernel lacks what this mode needs."""
    elsewhere: Callable[[Plan], RemoteNetworks]
    """The networks of the pods on other nodes, as far as the plan names them."""
    forwarded_by: Callable[[Plan], str]
    """The interface that the node forwards the pods' packets from and to; empty when it does not."""
    synchronize: Callable[[Plan, Namespace], int]
    """Make what the pods share equal to what is wanted; return the number of changes to peers."""
    explain_mtu: Callable[[Plan, Namespace], list[str]]
    """The computation of the pods' MTU, a step a line."""
    survey: Callable[[Plan, Namespace], Survey]
    """Compare what the pods share with what is wanted; CNIError for what cannot be."""
