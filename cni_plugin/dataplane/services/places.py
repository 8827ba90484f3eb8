"""What of the cluster's nodes Services depend on: this node's place, and what is around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.dataplane.services.desired import NodePlace
from cni_plugin.dataplane.services.endpoints import Here
from cni_plugin.dataplane.services.plan import Surroundings
from cni_plugin.kernel.addr import list_addresses
from cni_plugin.kernel.message import pack_address

if TYPE_CHECKING:
    from collections.abc import Mapping

    from netaddr import IPNetwork

    from cni_plugin.cluster.objects import Node
    from cni_plugin.cluster.settings import ClusterSettings, ServiceSettings
    from cni_plugin.kernel.netns import Namespace


def find_place(host: Namespace, me: Node, settings: ServiceSettings) -> NodePlace:
    """Return where node ports are: at the node's InternalIPs, or its addresses in the networks asked for."""
    addresses = list(me.addresses)
    if settings.node_port_cidrs:
        found = [each.ip for each in list_addresses(host.netlink)]
        addresses = [ip for ip in found if any(ip in cidr for cidr in settings.node_port_cidrs)]
    return NodePlace(
        here=Here(node=me.name, zone=me.zone),
        node_ports=tuple(dict.fromkeys(map(pack_address, addresses))),
        masquerade_all=settings.masquerade_all,
    )


def find_surroundings(me: Node, nodes: Mapping[str, Node], settings: ClusterSettings) -> Surroundings:
    """Return what the rules say of this node and of all others."""
    others = {pack_address(each) for node in nodes.values() for each in node.addresses}
    networks = {cidr for node in nodes.values() for cidr in node.pod_cidrs}
    return Surroundings(
        addresses=tuple(map(pack_address, me.addresses)),
        own_subnets=tuple(me.pod_cidrs),
        pod_networks=tuple(sorted(networks | {*settings.cluster_cidrs}, key=_by_place)),
        peer_addresses=frozenset(others),
        cluster_cidrs=settings.services.cidrs,
    )


def _by_place(cidr: IPNetwork) -> tuple[int, int, int]:
    return cidr.version, cidr.first, cidr.prefixlen
