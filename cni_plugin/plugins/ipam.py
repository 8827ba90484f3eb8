"""The plugin type `podwire-ipam`, which also answers as `host-local`: the address manager alone."""

from __future__ import annotations

from cni_plugin.addresses import host_local
from cni_plugin.contract.dispatch import Plugin

PLUGIN = Plugin(
    add=host_local.allocate,
    delete=host_local.release,
    check=host_local.check,
    gc=host_local.collect,
    status=host_local.status,
)
