"""The plugin type `static`: the IPAM type that takes addresses from the configuration."""

from __future__ import annotations

from cni_plugin.addresses import static
from cni_plugin.contract.dispatch import Plugin

PLUGIN = Plugin(
    add=static.allocate,
    delete=static.release,
    check=static.check,
    gc=static.collect,
    status=static.status,
)
