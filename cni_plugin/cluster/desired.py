"""What one node must have because of the cluster: its network's configuration, and its peers. Pure.

The peers are a file beside the configuration, so that a node that comes or goes changes no
configuration. A peer that contradicts this node or a newer one is left out and named: one wrong
Node must not cost the others their network.
"""

from __future__ import annotations

import bisect
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netaddr import IPNetwork

from cni_plugin.cluster.settings import HOST_GATEWAY, VXLAN
from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.contract.inet import width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from netaddr import IPAddress

    from cni_plugin.cluster.nodes import Node
    from cni_plugin.cluster.settings import ClusterSettings

# A runtime that knows the second key takes the newest version that it speaks.
_VERSION, _VERSIONS = "0.4.0", ["0.4.0", "1.0.0", "1.1.0"]
_LOOPBACK = "lo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the files are that the configuration names."""

    peers_file: str
    state_file: str


def underlay_family(settings: ClusterSettings, me: Node) -> int:
    """Return the family (4, 6) in which nodes reach each other's tunnels."""
    return settings.underlay or (4 if me.address(4) is not None else 6)


def require_address(settings: ClusterSettings, me: Node) -> IPAddress:
    """Return this node's address on the underlay; CNIError 50 while it has none of the family."""
    version = underlay_family(settings, me)
    address = me.address(version)
    if address is None:
        raise CNIError(
            Code.NOT_AVAILABLE,
            f"node {me.name}: wanted an InternalIP of IPv{version}, found {list(map(str, me.addresses))}",
        )
    return address


def require_pod_cidrs(me: Node) -> None:
    """Raise CNIError 50 while the controller manager has given this node no subnet."""
    if not me.pod_cidrs:
        raise CNIError(
            Code.NOT_AVAILABLE,
            f"node {me.name}: wanted spec.podCIDRs, found none; "
            "does the controller manager run with --allocate-node-cidrs and --cluster-cidr?",
        )


def render_network(settings: ClusterSettings, me: Node, device: str, places: Places) -> dict[str, Any]:
    """Return this node's conflist; `device` is the link that holds its address."""
    plugin: dict[str, Any] = {
        "type": "podwire",
        **_render_mode(settings, me, "" if device == _LOOPBACK else device, places),
        **({"mtu": settings.mtu} if settings.mtu else {}),
        **({"mtuOverhead": settings.mtu_overhead} if settings.mtu_overhead else {}),
        "ipMasq": settings.masquerade,
        "nonMasqueradeCIDRs": [str(c) for c in (*settings.cluster_cidrs, *settings.non_masquerade_cidrs)],
        "capabilities": settings.capabilities,
        "stateFile": places.state_file,
        "ipam": {
            "type": "podwire-ipam",
            "dataDir": settings.data_dir,
            "ranges": [[{"subnet": str(cidr)}] for cidr in me.pod_cidrs],
        },
    }
    return {
        "cniVersion": _VERSION,
        "cniVersions": _VERSIONS,
        "name": settings.network,
        "plugins": [plugin],
    }


def _render_mode(settings: ClusterSettings, me: Node, device: str, places: Places) -> dict[str, Any]:
    common = {**({"device": device} if device else {}), "peersFile": places.peers_file}
    if settings.mode == HOST_GATEWAY:
        return {"mode": "routed", "hostGateway": common}
    tunnel = {
        "vni": settings.vni,
        "port": settings.port,
        "local": str(require_address(settings, me)),
        "addresses": [str(address) for address in me.addresses],
        **common,
    }
    return {
        "mode": "vxlan",
        "bridge": settings.bridge,
        "isDefaultGateway": True,
        "forceAddress": True,  # a node that joins again may have another subnet
        "hairpinMode": True,
        "vxlan": tunnel,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPlan:
    """The peers file, how many nodes it should and does name, and why some are missing from it."""

    text: str
    wanted: int
    named: int
    problems: tuple[str, ...]


def plan_peers(
    settings: ClusterSettings,
    me: Node,
    nodes: Iterable[Node],
    refuse: Callable[[Iterable[IPAddress]], str] = lambda _: "",
) -> PeerPlan:
    """Return the peers of this node: every other node that has a subnet.

    `refuse` says why a node at these addresses cannot be one, as far as the kernel knows.
    """
    others = [node for node in nodes if node.name != me.name and node.pod_cidrs]
    claims = _Claims()
    for owned in _claims_of(me, me.pod_cidrs):
        claims.take(f"node {me.name}", [owned])
    peers, problems = [], []
    # Of two that contradict each other the newer is right: the older is what a machine was before.
    for node in sorted(others, key=lambda node: (node.created, node.name), reverse=True):
        addresses, subnets, problem = _fit(settings, me, node)
        problem = problem or _about(node, refuse(addresses))
        problem = problem or claims.take(f"node {node.name}", list(_claims_of(node, subnets)))
        if problem:
            problems.append(problem)
        if addresses and subnets and not problem:
            peers.append({"addresses": list(map(str, addresses)), "subnets": list(map(str, subnets))})
    lines = ",\n".join(sorted(json.dumps(peer) for peer in peers))
    text = f"[\n{lines}\n]\n" if lines else "[]\n"
    return PeerPlan(text=text, wanted=len(others), named=len(peers), problems=tuple(sorted(problems)))


def _about(node: Node, problem: str) -> str:
    return f"node {node.name}: {problem}" if problem else ""


def _fit(settings: ClusterSettings, me: Node, node: Node) -> tuple[list[IPAddress], list[IPNetwork], str]:
    """Return a node's addresses and subnets as the mode needs them, and what it lacks."""
    if settings.mode == VXLAN:
        version = underlay_family(settings, me)
        reached = [a for a in node.addresses if a.version == version]
        problem = (
            "" if reached else f"node {node.name}: wanted an InternalIP of IPv{version} like ours, found none"
        )
        return [*reached, *(a for a in node.addresses if a.version != version)], list(node.pod_cidrs), problem
    versions = {a.version for a in node.addresses}
    lacking = [str(cidr) for cidr in node.pod_cidrs if cidr.version not in versions]
    problem = (
        f"node {node.name}: wanted an InternalIP of the family of {lacking}, found none" if lacking else ""
    )
    return list(node.addresses), list(node.pod_cidrs), problem


def _claims_of(node: Node, subnets: Iterable[IPNetwork]) -> Iterator[IPNetwork]:
    """Yield what must be one node's alone: its subnets and its addresses."""
    yield from subnets
    yield from (IPNetwork(f"{address}/{width(address)}") for address in node.addresses)


class _Claims:
    """Whose which addresses are; blocks of one family never overlap and are kept sorted."""

    def __init__(self) -> None:
        self._blocks: dict[int, list[tuple[int, int, str]]] = {4: [], 6: []}

    def take(self, owner: str, blocks: list[IPNetwork]) -> str:
        """Give all blocks to the owner, or none and return who has one of them."""
        for block in blocks:
            if taken := self._find(block):
                return f"{owner}: wanted {block} for it alone, found it is {taken}'s"
        for block in blocks:
            bisect.insort(self._blocks[block.version], (block.first, block.last, owner))
        return ""

    def _find(self, block: IPNetwork) -> str:
        """Return who owns an address of the block; empty for nobody."""
        known = self._blocks[block.version]
        after = bisect.bisect_left(known, (block.first, 0, ""))
        return next(
            (
                owner
                for first, last, owner in known[max(after - 1, 0) : after + 1]
                if first <= block.last and last >= block.first
            ),
            "",
        )
