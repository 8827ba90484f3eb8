"""The pods of this node as its links and routes show them: whose addresses are which attachment's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.config.network import comment_of_alias, parse_alias
from cni_plugin.contract.inet import width
from cni_plugin.dataplane.policy.desired import LocalPod
from cni_plugin.kernel.link import list_links
from cni_plugin.kernel.message import pack_address
from cni_plugin.kernel.nft import FAMILY
from cni_plugin.kernel.route import list_main_routes

if TYPE_CHECKING:
    from cni_plugin.kernel.netlink import Netlink


@dataclass(frozen=True, slots=True, kw_only=True)
class PodsHere:
    """The routed pods that are here, and the comment that each address's elements have."""

    pods: tuple[LocalPod, ...]
    comments: dict[bytes, str]

    @property
    def identities(self) -> set[str]:
        """Return the identities of the attachments."""
        return {pod.identity for pod in self.pods}


def list_local_pods(nl: Netlink, network: str) -> PodsHere:
    """Return the routed pods of a network, by the aliases of their links and the routes to them."""
    found = {}
    for link in list_links(nl, kind="veth"):
        label = parse_alias(link.alias)
        if label is not None and label.network == network:
            found[link.index] = (label, comment_of_alias(link.alias))
    addresses: dict[int, list[bytes]] = {}
    for version in FAMILY:
        for route in list_main_routes(nl, version):
            if route.index in found and route.dst.prefixlen == width(route.dst.ip):
                addresses.setdefault(route.index, []).append(pack_address(route.dst.ip))
    pods = []
    comments: dict[bytes, str] = {}
    for index, (label, comment) in found.items():
        namespace, _, name = label.pod.partition("/")
        own = tuple(addresses.get(index, ()))
        pods.append(LocalPod(identity=label.identity, namespace=namespace, name=name, addresses=own))
        comments |= dict.fromkeys(own, comment)
    return PodsHere(pods=tuple(pods), comments=comments)
