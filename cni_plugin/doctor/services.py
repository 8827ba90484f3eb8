"""Checks the node's Services, where podwire serves them: in force, whole, and served by nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cni_plugin.config.state_file import read_services_state, services_file
from cni_plugin.doctor.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.doctor.site import Examined

_SUBJECT: Final = "Services"


def check(site: Examined) -> Iterator[Finding]:
    """Yield what the state of Services says; nothing where somebody else serves them."""
    path = services_file(site.state_file)
    state = read_services_state(path)
    if state is None:
        return
    if not state.ready:
        yield Finding(
            severity="error",
            object=_SUBJECT,
            found="; ".join(state.reasons) or f"{path} says that they are not in force",
            meaning="pods and the node reach Services as they were, or not at all",
            remedy="mend what is named; the agent tries again by itself",
        )
    else:
        for reason in state.reasons:
            yield Finding(
                severity="warning",
                object=_SUBJECT,
                found=reason,
                meaning="the others are served; what is named is not, or not as wanted",
                remedy="mend what is named; the agent tries again by itself",
            )
    for rival in state.rivals:
        found, _, remedy = rival.partition(": ")
        yield Finding(
            severity="warning",
            object=_SUBJECT,
            found=found,
            meaning="podwire decides; the other's rules cost every new connection",
            remedy=remedy,
        )
