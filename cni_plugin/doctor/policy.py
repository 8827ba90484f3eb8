"""Checks the node's policies, where podwire enforces them: in force, whole, and no pod left closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cni_plugin.config.state_file import policy_file, read_policy_state
from cni_plugin.doctor.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.doctor.site import Examined

_SUBJECT: Final = "NetworkPolicy"
NOT_ENFORCED: Final = Finding(
    severity="note",
    object=_SUBJECT,
    found="podwire does not enforce NetworkPolicy objects",
    meaning="every pod reaches every pod, whatever such an object says",
    remedy='where that matters set "networkPolicy": true in cluster.json, or run a policy engine beside it',
)


def check(site: Examined) -> Iterator[Finding]:
    """Yield what the state of policies says; a note where nobody asked for them."""
    path = policy_file(site.state_file)
    state = read_policy_state(path)
    if state is None:
        return
    for reason in state.reasons or (() if state.ready else (f"{path} says that they are not in force",)):
        yield Finding(
            severity="warning" if state.ready else "error",
            object=_SUBJECT,
            found=reason,
            meaning="pods are as policies said before, or closed; none is open that a policy closes",
            remedy="mend what is named; the agent tries again by itself",
        )
    if state.pending:
        yield Finding(
            severity="warning",
            object=_SUBJECT,
            found=f"nothing is known of {' '.join(state.pending)}",
            meaning="these pods are closed until the API knows them",
            remedy="kubectl get pods -A -o wide",
        )


def is_enforced(site: Examined) -> bool:
    """Tell whether this node enforces policies."""
    return read_policy_state(policy_file(site.state_file)) is not None
