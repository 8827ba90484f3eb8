"""The plugin type `static`: the IPAM type that takes addresses from the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.addresses import static
from cni_plugin.contract.dispatch import Plugin
from cni_plugin.contract.result import require_prev_result

if TYPE_CHECKING:
    from cni_plugin.contract.request import Request


def _check(request: Request) -> None:
    previous = require_prev_result(request.config, request.cni_version)
    static.check(static.plan(request), previous)


PLUGIN = Plugin(
    add=static.plan,
    delete=static.release,
    check=_check,
    gc=static.collect,
    status=static.status,
)
