"""The plugin type `static`: the addresses that the configuration names, and no others."""

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
