"""The underlay: the interface and address that carry a network's traffic between nodes.

The MTU follows from it: that of the actual path's interface, less what the tunnel adds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import CNIError, Code, invalid_config
from cni_plugin.kernel.addr import list_addresses, list_lasting
from cni_plugin.kernel.link import Link, get_link, get_link_by_index
from cni_plugin.kernel.route import find_path, list_default_routes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netaddr import IPAddress

    from cni_plugin.backend.peer_list import Peer
    from cni_plugin.kernel.netlink import Netlink

# Outer Ethernet (of the inner frame), IP, UDP and VXLAN headers: RFC 7348 section 5.
VXLAN_OVERHEAD = {4: 14 + 20 + 8 + 8, 6: 14 + 40 + 8 + 8}  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Underlay:
    """An interface of the node and its address there; `mtu` in bytes."""

    index: int
    name: str
    mtu: int
    address: IPAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderlayOptions:
    """What the configuration says of the underlay; empty and None mean automatic."""

    device: str = ""
    local: IPAddress | None = None
    group: IPAddress | None = None


def find_underlay(
    nl: Netlink, options: UnderlayOptions, peers: Iterable[Peer], kept: IPAddress | None = None
) -> Underlay:
    """Return the underlay: the device named, else the path to the first peer, else the default route's.

    Its address is the one named, else `kept`, which peers know already, while the interface has it; else one
    that is there to stay: an address may come and go beside it, as a virtual one does.

    Raises CNIError 7 for a device or address that the node does not have and for a peer that is the
    node itself, 11 when there is no route to any peer yet.
    """
    found = _find(nl, options, peers)
    if options.local is not None:
        return found
    version = found.address.version
    present = {address.ip for address in list_addresses(nl, found.index)}
    if kept is not None and kept.version == version and kept in present:
        return replace(found, address=kept)
    lasting = list_lasting(nl, found.index, version)
    if found.address in lasting or not lasting:
        return found
    # The oldest: of IPv6 the kernel lists the newest first.
    return replace(found, address=lasting[0 if version == 4 else -1])


def _find(nl: Netlink, options: UnderlayOptions, peers: Iterable[Peer]) -> Underlay:
    if options.device:
        link = get_link(nl, options.device)
        if link is None:
            raise invalid_config(f'"device" {options.device}: wanted an interface of this node, found none')
        return _underlay(link, _address_on(nl, link, options, next(iter(peers), None)))
    _require_local(nl, options)
    unreachable = []
    for peer in peers:
        path = find_path(nl, peer.vtep)
        if path is not None:
            if path.local:
                raise ourselves(peer)
            return _underlay(_require(nl, path.index), options.local or path.source)
        unreachable.append(str(peer))
    if unreachable:
        raise CNIError(Code.TRY_AGAIN_LATER, f"peers: wanted a route to one of {unreachable}, found none")
    return _default_underlay(nl, options)


def ourselves(peer: Peer) -> CNIError:
    """Return the error for a peer that is this node."""
    return invalid_config(f"peer {peer}: wanted another node, found an address of this one")


def _require_local(nl: Netlink, options: UnderlayOptions) -> None:
    """Raise CNIError 7 for an address that no interface has; it may be another's than the underlay's."""
    if options.local is not None and options.local not in {address.ip for address in list_addresses(nl)}:
        raise invalid_config(f'"local" {options.local}: wanted an address of this node, found none like it')


def _default_underlay(nl: Netlink, options: UnderlayOptions) -> Underlay:
    hint = options.local or options.group
    for version in (4, 6) if hint is None else (hint.version,):
        for route in list_default_routes(nl, version):
            link = _require(nl, route.index)
            addresses = [a.ip for a in list_addresses(nl, link.index) if a.version == version]
            if options.local or addresses:
                return _underlay(link, options.local or addresses[0])
    raise CNIError(
        Code.TRY_AGAIN_LATER,
        'underlay: wanted "device", a peer or a default route with an address to find it by, found none',
    )


def _require(nl: Netlink, index: int) -> Link:
    link = get_link_by_index(nl, index)
    if link is None:
        raise CNIError(Code.TRY_AGAIN_LATER, f"underlay: interface {index} vanished while it was looked at")
    return link


def _underlay(link: Link, address: IPAddress) -> Underlay:
    return Underlay(index=link.index, name=link.name, mtu=link.mtu, address=address)


def _address_on(nl: Netlink, link: Link, options: UnderlayOptions, peer: Peer | None) -> IPAddress:
    """Return the address to use on a device that was named."""
    present = [address.ip for address in list_addresses(nl, link.index)]
    if options.local is not None:
        if options.local not in present:
            raise invalid_config(
                f'"local" {options.local}: wanted an address of {link.name}, found {[*map(str, present)]}'
            )
        return options.local
    hint = options.group or (peer.vtep if peer else None)
    fitting = [address for address in present if hint is None or address.version == hint.version]
    if not fitting:
        family = f"IPv{hint.version} " if hint is not None else ""
        raise invalid_config(f'"device" {link.name}: wanted an {family}address on it, found none')
    return fitting[0]


def explain_whole_mtu(automatic: int, mtu_overhead: int, configured: int) -> list[str]:
    """Return the computation of an MTU (bytes) that no tunnel takes from, a step a line."""
    if configured:
        return [f"pods get {configured}, as configured", f"automatic would be {automatic}"]
    return [
        f"the interface towards other nodes carries {automatic + mtu_overhead}",
        f"mtuOverhead takes {mtu_overhead}",
        f"pods get {automatic}",
    ]


def overlay_mtu(configured: int, underlay: Underlay, overhead: int, mtu_overhead: int) -> int:
    """Return the MTU (bytes) that fits: the configured one, or all that the underlay leaves.

    Raises CNIError 7 when the configured one does not fit.
    """
    available = underlay.mtu - overhead - mtu_overhead
    if configured > available:
        raise invalid_config(
            f'"mtu": wanted {configured}, found room for {available}: '
            f"{underlay.name} carries {underlay.mtu}, the tunnel takes {overhead + mtu_overhead}"
        )
    return configured or available
