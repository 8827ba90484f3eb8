"""The network configurations that the kernel tests start from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.node import Node

V4 = [{"subnet": "10.22.0.0/24"}]
V6 = [{"subnet": "fd00:22::/64"}]


def network(node: Node, *ranges: list[dict[str, Any]], version: str = "1.1.0", **keys: Any) -> dict[str, Any]:
    """Return a bridge network over these range sets, with its store on the node."""
    ipam = {"type": "podwire-ipam", "dataDir": str(node.data_dir), "ranges": list(ranges)}
    base = {"cniVersion": version, "name": "test", "type": "podwire", "bridge": "cni0"}
    return base | ({"ipam": ipam} if ranges else {}) | keys


def dual_stack(node: Node, **keys: Any) -> dict[str, Any]:
    """Return a dual-stack network whose gateway is the node."""
    return network(node, V4, V6, **({"isDefaultGateway": True} | keys))
