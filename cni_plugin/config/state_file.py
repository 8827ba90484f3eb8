"""The state files of the cluster's child process: small JSON, replaced by rename.

They are written by `podwire cluster` (dataplane) and read by whoever wants to know whether
pods can be added: STATUS of a network with the key `stateFile`, the agent's probes, `podwire doctor`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

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
        return _render(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicesState:
    """What a node does for the cluster's Services: in a file of its own, as it changes oftener.

    Times in seconds, `last_sync` and `updated` since 1970. `last_change_seconds` is how long a change took
    from the API's word until it was in the kernel.
    """

    node: str
    ready: bool = False
    reasons: tuple[str, ...] = ()
    services: int = 0
    frontends: int = 0
    endpoints: int = 0
    refused: int = 0
    """Frontends that the kernel refused."""
    syncs: int = 0
    elements: int = 0
    """Elements that syncs have changed."""
    errors: int = 0
    last_sync_seconds: float = 0.0
    last_change_seconds: float = 0.0
    last_sync: float = 0.0
    rivals: tuple[str, ...] = ()
    """What else here translates packets to Services."""
    updated: float = 0.0

    def render(self) -> str:
        """Return the file's text."""
        return _render(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyState:
    """What a node does about NetworkPolicy objects. `last_sync` and `updated` in seconds since 1970."""

    node: str
    ready: bool = False
    reasons: tuple[str, ...] = ()
    policies: int = 0
    pods: int = 0
    """Pods of this node whose policies are in force."""
    pending: tuple[str, ...] = ()
    """Pods of this node that are closed because nothing is known of them."""
    groups: int = 0
    members: int = 0
    """Addresses and ports in all sets."""
    ended: int = 0
    """Connections that policies have ended."""
    syncs: int = 0
    errors: int = 0
    last_sync_seconds: float = 0.0
    last_sync: float = 0.0
    updated: float = 0.0

    def render(self) -> str:
        """Return the file's text."""
        return _render(self)


StateT = TypeVar("StateT", ClusterState, ServicesState, PolicyState)


def policy_file(state_file: str) -> str:
    """Return where the state of policies is, beside the cluster's."""
    return os.path.join(os.path.dirname(state_file), "policy.json")


def policy_socket(state_file: str) -> str:
    """Return where ADDs ask for their pods' policies, beside the cluster's state."""
    return os.path.join(os.path.dirname(state_file), "policy.sock")


def read_policy_state(path: str) -> PolicyState | None:
    """Return what the file says of policies, None when there is none that can be read."""
    return _read(path, PolicyState)


def services_file(state_file: str) -> str:
    """Return where the state of Services is, beside the cluster's."""
    return os.path.join(os.path.dirname(state_file), "services.json")


def _render(state: ClusterState | ServicesState | PolicyState) -> str:
    return json.dumps({_camel(name): value for name, value in asdict(state).items()}, indent=4) + "\n"


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join("CIDRs" if word == "cidrs" else word.capitalize() for word in rest)


def read_state(path: str) -> ClusterState | None:
    """Return what the file says of the cluster, None when there is none that can be read."""
    return _read(path, ClusterState)


def read_services_state(path: str) -> ServicesState | None:
    """Return what the file says of Services, None when there is none that can be read."""
    return _read(path, ServicesState)


def _read(path: str, kind: type[StateT]) -> StateT | None:
    keys = {each.name: _camel(each.name) for each in fields(kind)}
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        known: dict[str, Any] = {
            name: tuple(found[key]) if isinstance(found[key], list) else found[key]
            for name, key in keys.items()
            if key in found
        }
        fitting = all(_fits(getattr(kind(node=""), name), value) for name, value in known.items())
        return kind(**known) if fitting else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def _fits(wanted: object, value: object) -> bool:
    """Tell whether a value is of the type of its key's default."""
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
