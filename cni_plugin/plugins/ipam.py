"""The plugin type `podwire-ipam`, which also answers as `host-local`: the address manager alone."""

from __future__ import annotations

from cni_plugin import addresses
from cni_plugin.contract.dispatch import Plugin

PLUGIN = Plugin(
    add=addresses.allocate,
    delete=addresses.release,
    check=addresses.check,
    gc=addresses.collect,
    status=addresses.status,
)
