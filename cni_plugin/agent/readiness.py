"""Why this node cannot take pods now: the answer of `GET /readyz`.

It calls its own socket as a shim does: that this process lives does not prove that the socket answers.
"""

from __future__ import annotations

import os
import socket
from typing import Final

from cni_plugin.agent.wire import peer_of
from cni_plugin.config.state_file import read_state

_PATIENCE: Final = 1.0  # seconds; the kernel accepts for us


class Readiness:
    """What to ask; `state_file` is empty where the node is none of a cluster.

    What a predecessor said of the cluster does not count: its settings may have been others.
    """

    def __init__(self, state_file: str) -> None:
        """Remember the state file as it is now, before whoever follows the cluster for us writes it."""
        self._state_file = state_file
        self._before = _identify(state_file)

    def find_reasons(self, path: str) -> list[str]:
        """Return the reasons; `path` is the agent's socket."""
        return [*_of_socket(path, anywhere=True), *(self._of_cluster() if self._state_file else [])]

    def _of_cluster(self) -> list[str]:
        state = read_state(self._state_file)
        if state is None:
            return [f"{self._state_file}: wanted what is known of the cluster, found nothing yet"]
        if _identify(self._state_file) == self._before:
            return [f"{self._state_file}: wanted the state as this agent finds it, found an earlier one's"]
        return [] if state.ready else list(state.reasons) or [f"node {state.node}: it is not ready"]


def _identify(path: str) -> tuple[int, int] | None:
    """Return what tells a file from the one that replaces it; None without one."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def find_reasons_here(path: str) -> list[str]:
    """Return why the agent of this container is not the one that answers at the socket `path`.

    While one takes over from another, what answers over HTTP may still be the other.
    """
    return _of_socket(path, anywhere=False)


def _of_socket(path: str, *, anywhere: bool) -> list[str]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(_PATIENCE)
        try:
            probe.connect(path)
        except OSError as error:
            return [f"{path}: wanted an agent that listens, found {error.strerror or error}"]
        if not anywhere and not peer_of(probe).pid:
            return [f"{path}: wanted the agent of this container (PID namespace), found another's"]
    return []
