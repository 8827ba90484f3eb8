"""Uses pyroute2 to pack the settings of bridges and VXLAN devices, which pods share.

They are made once and have dozens of settings, whose names and types pyroute2 knows. What is made or
read for every pod is packed and taken apart in kernel/message.py: that costs a hundredth, and a call
that finds its bridge there need not import the library, which takes 30 ms.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def pack_device(kind: str, settings: Iterable[tuple[str, object]], **attributes: object) -> bytes:
    """Return the body of a link message for a device of this kind.

    `settings` are the kind's own, `attributes` those of every link without their "IFLA_", in
    pyroute2's spelling.
    """
    _skip_package_init()
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    data = {"attrs": list(settings)}
    info = {"attrs": [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", data)]}
    message = ifinfmsg()
    message["attrs"] = [(f"IFLA_{name}", value) for name, value in attributes.items()]
    message["attrs"].append(("IFLA_LINKINFO", info))
    message.encode()
    return bytes(message.data[16:])  # behind struct nlmsghdr


def _skip_package_init() -> None:
    """Let `pyroute2.netlink...` be imported without `pyroute2/__init__.py`.

    That file imports all 164 modules of the library, asyncio among them, which costs more than a whole ADD.
    """
    if "pyroute2" in sys.modules:
        return
    spec = importlib.util.find_spec("pyroute2")
    if spec is not None:
        package = types.ModuleType("pyroute2")
        package.__path__ = list(spec.submodule_search_locations or ())
        package.__spec__ = spec
        sys.modules["pyroute2"] = package
