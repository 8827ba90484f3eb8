"""Checks the agent: does it listen, does it answer, is it of this release."""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, Final

from cni_plugin import __version__
from cni_plugin.agent import wire
from cni_plugin.config.paths import SOCKET_UNIT
from cni_plugin.config.state_file import read_state
from cni_plugin.doctor.executables import list_own
from cni_plugin.doctor.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.doctor.finding import Severity
    from cni_plugin.doctor.site import Examined

_PATIENCE: Final = 5.0  # seconds
_NEEDED: Final = "the executables can do nothing without it: every ADD and DEL is told to try again later"
_WELCOME: Final = "the executables do the work themselves, at 0.1 s a call"


def check(site: Examined) -> Iterator[Finding]:
    """Yield what is wrong with the agent; that there is none is wrong only where one is needed."""
    own = list_own(site)
    needed = any(each.needs_agent for each in own)
    sockets = {
        each.socket for each in own if each.socket and (each.needs_agent or os.path.exists(each.socket))
    }
    for path in sorted({site.socket} if site.socket else sockets):
        yield from _check_socket(path, needed=needed)
    yield from _check_cluster(site)


def _check_socket(path: str, *, needed: bool) -> Iterator[Finding]:
    severity: Severity = "error" if needed else "warning"
    try:
        reply = wire.ask(path, "podwire", _PATIENCE)
    except (OSError, wire.WireError) as error:
        said = (
            "it does not answer"
            if isinstance(error, TimeoutError)
            else getattr(error, "strerror", "") or str(error)
        )
        yield Finding(
            severity=severity,
            object=path,
            found=f"no agent there: {said}",
            meaning=_NEEDED if needed else _WELCOME,
            remedy=_start(path),
        )
        return
    found = re.search(rb" plugin v(\S+)", reply.stderr)
    version = found[1].decode() if found else "unknown"
    if version != __version__:
        yield Finding(
            severity="warning",
            object=path,
            found=f"the agent is of podwire {version}, this program of {__version__}",
            meaning="an upgrade was not finished: the agent runs the code of before",
            remedy="systemctl try-restart podwire.service"
            if os.path.exists(SOCKET_UNIT)
            else f"restart it: {_start(path)}",
        )


def _start(path: str) -> str:
    if os.path.exists(SOCKET_UNIT):
        return "systemctl restart podwire.socket podwire.service"
    return f"podwire agent --socket {shlex.quote(path)}"


def _check_cluster(site: Examined) -> Iterator[Finding]:
    state = read_state(site.state_file)
    if state is not None and not state.ready:
        yield Finding(
            severity="error",
            object=f"node {state.node}",
            found="; ".join(state.reasons) or "the agent has not found it ready",
            meaning="the pod network of this node is not ready, so the node is NotReady",
            remedy=f"kubectl get node {shlex.quote(state.node)} -o yaml; the agent's log has the rest",
        )
