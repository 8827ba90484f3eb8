"""What an attach mode is: its functions, in the order in which they are called.

`plan` reads the mode's keys and finds every configuration error before anything is made.
`connect` makes the link between pod and network, `configure` gives it its addresses, `check`
compares, `disconnect` removes the link with nothing but the attachment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from cni_plugin.config import Addressing, Attachment, Network
    from cni_plugin.contract.result import Result
    from cni_plugin.kernel.netns import Namespace

Plan = Any  # a mode's own frozen dataclass; nothing outside the mode looks inside
Wire = Any  # what `connect` made, likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One way of joining a pod to a network."""

    plan: Callable[[Network, Addressing], Plan]
    """Settings from the configuration and what is known of its addresses; raises CNIError 7."""
    connect: Callable[[Plan, Namespace, Namespace, ExitStack], Wire]
    """Host, pod and the undo stack: ensure what is shared, make what is the pod's."""
    configure: Callable[[Plan, Wire, Namespace, Namespace, Result], Result]
    """Host, pod and the delegate's result: addresses, routes, and the attachment's result."""
    check: Callable[[Plan, Namespace, Namespace, Result], None]
    """Host, pod and prevResult: raise CNIError for the first thing that is not as ADD left it."""
    disconnect: Callable[[Attachment, Namespace], bool]
    """Remove the link from the host's side; tell whether there was one."""
    ready: Callable[[Plan, Namespace], None]
    """Raise CNIError 50 when the kernel lacks what this mode needs."""
