"""How a pod is joined to its node: one module per attach mode; MODES in its `__init__` lists them.

A mode is a module with its own keys, its tests and its line here. Each entry imports its module
when it is asked for, because a call needs one of them only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_plugin.attach.mode import Mode


def _bridge() -> Mode:
    from cni_plugin.attach import bridge

    return bridge.MODE


def _routed() -> Mode:
    from cni_plugin.attach import routed

    return routed.MODE


MODES: dict[str, Callable[[], Mode]] = {
    "bridge": _bridge,
    "routed": _routed,
}
