"""The plugin types: one module per type, found by the name that the executable is called with.

Each entry imports its module when it is asked for, because a call needs one of them only.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_plugin.contract.dispatch import Plugin


def _podwire() -> Plugin:
    from cni_plugin.plugins import podwire

    return podwire.PLUGIN


def _ipam() -> Plugin:
    from cni_plugin.plugins import ipam

    return ipam.PLUGIN


def _loopback() -> Plugin:
    from cni_plugin.plugins import loopback

    return loopback.PLUGIN


def _static() -> Plugin:
    from cni_plugin.plugins import static

    return static.PLUGIN


def _chained(kind: str) -> Plugin:
    from cni_plugin.features import CHAINED
    from cni_plugin.plugins.chained import chained

    return chained(CHAINED[kind]())


_bandwidth = partial(_chained, "bandwidth")
_tuning = partial(_chained, "tuning")
_firewall = partial(_chained, "firewall")
_portmap = partial(_chained, "portmap")

PLUGINS: dict[str, Callable[[], Plugin]] = {
    "podwire": _podwire,
    "podwire-ipam": _ipam,
    # The reference's names, for a drop-in installation.
    "bridge": _podwire,
    "host-local": _ipam,
    "static": _static,
    "loopback": _loopback,
    "bandwidth": _bandwidth,
    "tuning": _tuning,
    "firewall": _firewall,
    "portmap": _portmap,
}


def type_of(program: str) -> str:
    """Return the plugin type that an executable of this name is; any other name is `podwire`."""
    name = os.path.basename(program)
    return name if name in PLUGINS else "podwire"
