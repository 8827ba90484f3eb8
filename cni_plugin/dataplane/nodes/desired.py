"""Desired state of a node because of its cluster: network configuration and peers. Pure.

The peers are a file beside the configuration, so that a node that comes or goes changes no
configuration. A peer that contradicts this node or a newer one is left out and named: one wrong
Node must not cost the others their network.
"""

from __future__ import annotations

import bisect
import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from netaddr import IPNetwork

from cni_plugin.cluster.settings import BRIDGE, HOST_GATEWAY, VXLAN
from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.contract.inet import width

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from netaddr import IPAddress

    from cni_plugin.cluster.objects import Node
    from cni_plugin.cluster.settings import ClusterSettings

# A runtime that knows the second key takes the newest version that it speaks.
_VERSION, _VERSIONS = "0.4.0", ["0.4.0", "1.0.0", "1.1.0"]
_LOOPBACK = "lo"
_COOL_DOWN = 30  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the files are that the configuration names."""

    peers_file: str
    state_file: str
    policy_socket: str = ""


def underlay_family(settings: ClusterSettings, me: Node) -> int:
    """Return the family (4, 6) in which nodes reach each other's tunnels."""
    return settings.tunnel.family or (4 if me.address(4) is not None else 6)


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


def render_network(
    settings: ClusterSettings, me: Node, device: str, places: Places, *, former_bridge: bool = False
) -> dict[str, Any]:
    """Return this node's conflist; `device` is the link that holds its address.

    `former_bridge` tells whether it has a bridge of the settings' name, which pods of before may be on.
    """
    plugin: dict[str, Any] = {
        "type": "podwire",
        **_render_attach(settings, former_bridge=former_bridge),
        **_render_backend(settings, me, "" if device == _LOOPBACK else device, places),
        **({"mtu": settings.mtu} if settings.mtu else {}),
        **({"mtuOverhead": settings.mtu_overhead} if settings.mtu_overhead else {}),
        "ipMasq": settings.masquerade,
        "sourceValidation": settings.source_validation,
        "nonMasqueradeCIDRs": [str(c) for c in (*settings.cluster_cidrs, *settings.non_masquerade_cidrs)],
        "capabilities": settings.capabilities,
        **_render_policy(settings, places),
        "stateFile": places.state_file,
        "ipam": {
            "type": "podwire-ipam",
            "dataDir": settings.data_dir,
            "ranges": [[{"subnet": str(cidr)}] for cidr in me.pod_cidrs],
            # Other nodes' sets may hold the pod that has left for as long.
            **({"coolDown": _COOL_DOWN} if settings.policy.on else {}),
        },
    }
    return {
        "cniVersion": _VERSION,
        "cniVersions": _VERSIONS,
        "name": settings.network,
        "plugins": [plugin],
    }


def _render_policy(settings: ClusterSettings, places: Places) -> dict[str, Any]:
    options = settings.policy
    if not options.on:
        return {}
    keys = {"socket": places.policy_socket, "timeout": options.timeout, "strict": options.strict}
    return {"networkPolicy": keys}


def _render_attach(settings: ClusterSettings, *, former_bridge: bool) -> dict[str, Any]:
    # A node that joins again may have another subnet.
    bridge = {"bridge": settings.bridge, "forceAddress": True}
    if settings.attach == BRIDGE:
        return {"mode": "bridge", **bridge, "isDefaultGateway": True, "hairpinMode": True}
    return {"mode": "routed", **(bridge if former_bridge else {})}


def _render_backend(settings: ClusterSettings, me: Node, device: str, places: Places) -> dict[str, Any]:
    common = {**({"device": device} if device else {}), "peersFile": places.peers_file}
    if settings.backend == HOST_GATEWAY:
        return {"hostGateway": common}
    tunnel = {
        "vni": settings.tunnel.vni,
        "port": settings.tunnel.port,
        "local": str(require_address(settings, me)),
        "addresses": [str(address) for address in me.addresses],
        **common,
    }
    return {"vxlan": tunnel}


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
    refuse: Callable[[Collection[IPAddress]], str] = lambda _: "",
) -> PeerPlan:
    """Return the peers of this node: every other node that has a subnet.

    `refuse` says why a node at these addresses cannot be one, as far as the kernel knows.
    """
    others = [node for node in nodes if node.name != me.name and node.pod_cidrs]
    holders = Counter(address for node in (me, *others) for address in set(node.addresses))
    claims = _Claims()
    claims.take(replace(me, addresses=me.first_addresses), me.pod_cidrs)
    family = underlay_family(settings, me)
    peers: list[dict[str, list[str]]] = []
    problems: list[str] = []
    # Of two that contradict each other the newer is right: the older is what a machine was before.
    for node in sorted(others, key=lambda node: (node.created, node.name), reverse=True):
        subnets, lack = _fit(settings, me, node)
        addresses, left = _drop_contested(node, holders, refuse)
        addresses.sort(key=lambda address: address.version != family)
        own = replace(node, addresses=tuple(addresses))
        refused = (_about(node, refuse(own.first_addresses)) or claims.take(own, subnets)) if subnets else ""
        problems += filter(None, (lack, refused, *left))
        if subnets and not refused:
            peers.append({"addresses": list(map(str, addresses)), "subnets": list(map(str, subnets))})
    lines = ",\n".join(sorted(json.dumps(peer) for peer in peers))
    text = f"[\n{lines}\n]\n" if lines else "[]\n"
    return PeerPlan(text=text, wanted=len(others), named=len(peers), problems=tuple(sorted(problems)))


def _drop_contested(
    node: Node, holders: Counter[IPAddress], refuse: Callable[[Collection[IPAddress]], str]
) -> tuple[list[IPAddress], list[str]]:
    """Return the addresses that are the node's alone, and why others are left out.

    Of each family the first one makes a node. A further one may float from node to node, as a virtual address
    does: while it is listed twice, or is on this machine, it leads to nobody.
    """
    kept, left = list(node.first_addresses), []
    for address in node.addresses:
        if address in node.first_addresses:
            continue
        wrong = f"{address} is another node's, too" if holders[address] > 1 else refuse([address])
        if wrong:
            left.append(_about(node, f"its further address {address} is left out: {wrong}"))
        else:
            kept.append(address)
    return kept, left


def _about(node: Node, problem: str) -> str:
    return f"node {node.name}: {problem}" if problem else ""


def _fit(settings: ClusterSettings, me: Node, node: Node) -> tuple[list[IPNetwork], str]:
    """Return those of a node's subnets that the mode can reach, and why not the others."""
    versions = {address.version for address in node.addresses}
    if settings.backend == VXLAN:
        version = underlay_family(settings, me)
        if version in versions:
            return list(node.pod_cidrs), ""
        return [], _about(node, f"wanted an InternalIP of IPv{version} like ours, found none")
    lacking = [str(cidr) for cidr in node.pod_cidrs if cidr.version not in versions]
    problem = _about(node, f"wanted an InternalIP of the family of {lacking}, found none") if lacking else ""
    return [cidr for cidr in node.pod_cidrs if cidr.version in versions], problem


class _Claims:
    """Whose which addresses are; blocks of one family never overlap and are kept sorted."""

    def __init__(self) -> None:
        self._blocks: dict[int, list[tuple[int, int, str]]] = {4: [], 6: []}

    def take(self, node: Node, subnets: Iterable[IPNetwork]) -> str:
        """Give a node its subnets and addresses, or none of them and return who has one."""
        blocks = [*subnets, *(IPNetwork(f"{address}/{width(address)}") for address in node.addresses)]
        for block in blocks:
            if taken := self._find(block):
                return _about(node, f"wanted {block} for it alone, found it is node {taken}'s")
        for block in blocks:
            bisect.insort(self._blocks[block.version], (block.first, block.last, node.name))
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
