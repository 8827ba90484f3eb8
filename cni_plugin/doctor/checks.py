"""The list of the doctor's checks, in the order in which they run.

One module per group of checks and the tuple CHECKS, in the order in which a call of the runtime meets
what they look at. A check yields findings, changes nothing, and says nothing where all is well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cni_plugin.contract.errors import CNIError
from cni_plugin.doctor import (
    agent,
    configuration,
    executables,
    networks,
    node,
    peers,
    pods,
    policy,
    runtime,
    services,
)
from cni_plugin.doctor.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni_plugin.doctor.site import Examined

CHECKS: Final[tuple[Callable[[Examined], Iterator[Finding]], ...]] = (
    runtime.check,
    runtime.check_word,
    configuration.check,
    executables.check,
    agent.check,
    networks.check,
    node.check,
    peers.check,
    services.check,
    policy.check,
    pods.check,
)
NOTES: Final = (policy.NOT_ENFORCED,)


def examine(site: Examined) -> list[Finding]:
    """Return all findings and the notes; a check that fails is a finding, too."""
    found = [finding for check in CHECKS for finding in _run(check, site)]
    return found if policy.is_enforced(site) else [*found, *NOTES]


def _run(check: Callable[[Examined], Iterator[Finding]], site: Examined) -> Iterator[Finding]:
    try:
        yield from check(site)
    except (CNIError, OSError) as error:
        yield Finding(
            severity="error",
            object=f"check of {check.__module__.rpartition('.')[2]}",
            found=str(error),
            meaning="this could not be looked at",
            remedy="run it as root, in the node's own network namespace",
        )
