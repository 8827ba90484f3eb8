"""Why this node cannot take pods now, as `GET /readyz` says it; nothing when it can.

The socket is asked as a shim would ask it: that this process lives says nothing of that.
"""

from __future__ import annotations

import socket
from typing import Final

from cni_plugin.state_file import read_state

_PATIENCE: Final = 1.0  # seconds; the kernel accepts for us


def find_reasons(path: str, state_file: str) -> list[str]:
    """Return the reasons; `state_file` is empty where the node is none of a cluster."""
    return [*_of_socket(path), *(_of_cluster(state_file) if state_file else [])]


def _of_socket(path: str) -> list[str]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(_PATIENCE)
        try:
            probe.connect(path)
        except OSError as error:
            return [f"{path}: wanted an agent that listens, found {error.strerror or error}"]
    return []


def _of_cluster(state_file: str) -> list[str]:
    state = read_state(state_file)
    if state is None:
        return [f"{state_file}: wanted what is known of the cluster, found nothing yet"]
    return [] if state.ready else list(state.reasons) or [f"node {state.node}: it is not ready"]
