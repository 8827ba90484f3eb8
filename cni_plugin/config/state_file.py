"""The state file of the cluster's child process: small JSON, replaced by rename.

It is written by `podwire cluster` (dataplane/follow.py) and read by whoever wants to know whether
pods can be added: STATUS of a network with the key `stateFile`, the agent's probes, `podwire doctor`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from cni_plugin.contract.errors import CNIError, Code


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterState:
    """One node's view of the cluster. `last_sync` and `updated` in seconds since 1970.

    `reasons` says what is wrong; some of it, such as a peer that cannot be, leaves the node ready.
    """

    node: str
    ready: bool = False
    reasons: tuple[str, ...] = ()
    mode: str = ""
    network: str = ""
    pod_cidrs: tuple[str, ...] = ()
    peers_wanted: int = 0
    peers_programmed: int = 0
    syncs: int = 0
    repairs: int = 0
    repairs_by_kind: dict[str, int] = field(default_factory=dict)
    errors: int = 0
    last_sync_seconds: float = 0.0
    last_sync: float = 0.0
    updated: float = 0.0

    def render(self) -> str:
        """Return the file's text."""
        return json.dumps({_KEYS[name]: value for name, value in asdict(self).items()}, indent=4) + "\n"


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join("CIDRs" if word == "cidrs" else word.capitalize() for word in rest)


_KEYS = {each.name: _camel(each.name) for each in fields(ClusterState)}


def read_state(path: str) -> ClusterState | None:
    """Return what the file says, None when there is none that can be read."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        known: dict[str, Any] = {
            name: tuple(found[key]) if isinstance(found[key], list) else found[key]
            for name, key in _KEYS.items()
            if key in found
        }
        return ClusterState(**known) if all(_fits(name, value) for name, value in known.items()) else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _fits(name: str, value: object) -> bool:
    """Tell whether a value is of its key's type."""
    wanted = getattr(ClusterState(node=""), name)
    if isinstance(wanted, tuple):
        return isinstance(value, tuple) and all(isinstance(each, str) for each in value)
    if isinstance(wanted, dict):
        return isinstance(value, dict) and all(type(each) is int for each in value.values())
    return isinstance(value, (int, float)) if isinstance(wanted, float) else type(value) is type(wanted)


def require_ready(path: str) -> None:
    """Raise CNIError 50 with the reasons unless the file says that the node is ready."""
    state = read_state(path)
    if state is None:
        raise CNIError(
            Code.NOT_AVAILABLE,
            f'"stateFile" {path}: wanted the word of podwire agent --kubernetes, found none',
        )
    if not state.ready:
        raise CNIError(Code.NOT_AVAILABLE, "; ".join(state.reasons) or f"node {state.node} is not ready")
