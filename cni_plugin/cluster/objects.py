"""Objects of the Kubernetes API, reduced to what a network needs: Node.

The rest of the object, of which the names of its images are the most, is dropped as soon as it is read: of
1,000 nodes this keeps 1 MB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cni_plugin.contract.errors import CNIError
from cni_plugin.contract.inet import parse_cidr, parse_ip

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netaddr import IPAddress, IPNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of the cluster: its addresses on the underlay, preferred ones first, and its pods' subnets."""

    name: str
    created: str = ""
    """When, as RFC 3339 writes it in UTC: text that sorts by time."""
    addresses: tuple[IPAddress, ...] = ()
    pod_cidrs: tuple[IPNetwork, ...] = ()
    zone: str = ""
    network_unavailable: bool = False
    """A cloud's controller waits for somebody to say that the network is there."""

    def address(self, version: int) -> IPAddress | None:
        """Return the node's first address of a family."""
        return next((a for a in self.addresses if a.version == version), None)

    @property
    def first_addresses(self) -> tuple[IPAddress, ...]:
        """Return the node's first address of each family, in the order of all."""
        return tuple(a for a in self.addresses if a == self.address(a.version))


def parse_node(raw: dict[str, Any]) -> Node:
    """Return what the API's JSON says of a node; what can be no node's address is passed over."""
    metadata, spec, status = (raw.get(key) or {} for key in ("metadata", "spec", "status"))
    # podCIDR is what single-stack clusters of old had; podCIDRs repeats it.
    cidrs = spec.get("podCIDRs") or [spec.get("podCIDR")]
    addresses = [a.get("address") for a in status.get("addresses") or () if a.get("type") == "InternalIP"]
    return Node(
        name=metadata.get("name", ""),
        created=metadata.get("creationTimestamp") or "",
        addresses=tuple(dict.fromkeys(_parse_addresses(addresses))),
        pod_cidrs=tuple(_parse_networks(cidrs)),
        zone=(metadata.get("labels") or {}).get("topology.kubernetes.io/zone") or "",
        network_unavailable=any(_says_unavailable(c) for c in status.get("conditions") or ()),
    )


def _says_unavailable(condition: dict[str, str]) -> bool:
    return condition.get("type") == "NetworkUnavailable" and condition.get("status") == "True"


def _parse_addresses(texts: Iterable[str | None]) -> Iterable[IPAddress]:
    for text in filter(None, texts):
        try:
            address = parse_ip(text, "InternalIP")
        except CNIError:
            continue
        if int(address) and not (address.is_multicast() or address.is_loopback() or address.is_link_local()):
            yield address


def _parse_networks(texts: Iterable[str | None]) -> Iterable[IPNetwork]:
    for text in filter(None, texts):
        try:
            yield parse_cidr(text, "podCIDR").cidr
        except CNIError:
            continue
