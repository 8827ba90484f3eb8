"""How nodes are joined: one module per backend; BACKENDS in its `__init__` lists them.

A backend is a module with its own section of the configuration, its tests and its line here. Each entry
imports its module when it is asked for, because a call needs one of them at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_plugin.backend.backend import Backend


def _vxlan() -> Backend:
    from cni_plugin.backend import vxlan

    return vxlan.BACKEND


def _host_gateway() -> Backend:
    from cni_plugin.backend import host_gateway

    return host_gateway.BACKEND


# By the name of the section that asks for it.
BACKENDS: dict[str, Callable[[], Backend]] = {
    "vxlan": _vxlan,
    "hostGateway": _host_gateway,
}
