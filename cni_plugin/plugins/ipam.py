"""The plugin type `podwire-ipam`, which also answers as `host-local`: the address manager alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.addresses import host_local
from cni_plugin.contract.dispatch import Plugin
from cni_plugin.contract.result import require_prev_result

if TYPE_CHECKING:
    from cni_plugin.contract.request import Request


def _check(request: Request) -> None:
    previous = require_prev_result(request.config, request.cni_version)
    host_local.check(host_local.plan(request), previous)


PLUGIN = Plugin(
    add=lambda request: host_local.allocate(host_local.plan(request)),
    delete=host_local.release,
    check=_check,
    gc=host_local.collect,
    status=lambda request: host_local.status(host_local.plan(request)),
)
