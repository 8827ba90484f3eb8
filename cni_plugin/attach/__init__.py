"""How a pod is joined to a network: one module per mode and the MODES dictionary.

A mode is a module with its own keys, its tests and its line here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.attach import bridge, routed, vxlan

if TYPE_CHECKING:
    from cni_plugin.attach.mode import Mode

MODES: dict[str, Mode] = {
    "bridge": bridge.MODE,
    "vxlan": vxlan.MODE,
    "routed": routed.MODE,
}
