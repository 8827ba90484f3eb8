"""Computes the MTU of a pod from the interface that carries its traffic.

Automatic (`mtu` 0 or absent) is the smallest MTU of the interfaces that hold the default
routes of the families in use, 1500 without a default route. A bridge that is not ours to change
lowers it (kernel/bridge.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.kernel.link import get_link_by_index
from cni_plugin.kernel.route import find_default_route

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.kernel.netlink import Netlink

WITHOUT_UPLINK = 1500  # bytes, Ethernet's


def automatic_mtu(nl: Netlink, families: frozenset[int]) -> int:
    """Return the MTU in bytes for these families (4, 6)."""
    return min(_uplink_mtus(nl, families), default=WITHOUT_UPLINK)


def _uplink_mtus(nl: Netlink, families: frozenset[int]) -> Iterator[int]:
    for version in sorted(families):
        route = find_default_route(nl, version)
        uplink = get_link_by_index(nl, route.index) if route else None
        if uplink is not None:
            yield uplink.mtu
