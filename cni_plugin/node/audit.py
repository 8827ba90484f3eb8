"""`podwire ipam check`: where store, configuration and kernel disagree about addresses.

Addresses themselves are set inside the pods, out of sight from here. What the node shows of a
pod is the alias of its veth and, in routed mode, its routes. Who is gone the liveness of liveness.py
says. Calls may be under way while we look, so that what counts is what is still wrong a second later.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cni_plugin.addresses import host_local
from cni_plugin.addresses.delegate import OWN_NAMES
from cni_plugin.config.network import data_dir, ipam_type
from cni_plugin.config.paths import DATA_DIR
from cni_plugin.contract.inet import width
from cni_plugin.kernel.netns import open_host
from cni_plugin.kernel.route import list_routes
from cni_plugin.node.configured import network_of
from cni_plugin.node.evidence import read_evidence
from cni_plugin.node.liveness import judge
from ipam.address import render_address
from ipam.fsck import check_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netaddr import IPAddress

    from cni_plugin.contract.request import Request
    from cni_plugin.node.evidence import Evidence
    from ipam.ranges import Range
    from ipam.store import Store

UNKNOWN: Final = "unknown"
_PATIENCE: Final = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One thing that is wrong with an address, a file or an interface of a network.

    `kind` is leaked (held by who is gone), unknown (held by who may live unseen, which is nothing wrong),
    unallocated (used, and not held), outside (of the ranges) or damaged.
    """

    network: str
    kind: str
    subject: str
    holder: str
    said: str
    repair: str = ""
    """The command that mends it, where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """One look at a network. `used` are the addresses of routes to pods, with the veth of the pod."""

    network: str
    store: Store
    place: str
    """What a command must be told to find the store."""
    ranges: tuple[Range, ...] | None
    """None where the runtime names ranges of its own."""
    attachments: list[Evidence]
    used: dict[IPAddress, int]


def audit(request: Request) -> list[Disagreement]:
    """Return what is wrong with the addresses of a network; nothing where another IPAM plugin keeps them.

    Raises CNIError for a configuration that cannot be, and IPAMError for a store that cannot be read.
    """
    if ipam_type(request.config) not in OWN_NAMES:
        return []
    before = set(_compare(_look(request)))
    if not before:
        return []
    time.sleep(_PATIENCE)
    return [each for each in _compare(_look(request)) if each in before]


def _look(request: Request) -> _Seen:
    with open_host() as host:
        attachments = read_evidence(network_of(request), host)
        links = {each.link.index for each in attachments if each.link}
        routes = (
            [route for version in (4, 6) for route in list_routes(host.netlink, version)] if links else []
        )
    return _Seen(
        network=request.network,
        store=host_local.open_store(request),
        place=place_of(request),
        ranges=_ranges(request),
        attachments=attachments,
        used={
            route.dst.ip: route.index
            for route in routes
            if route.index in links and route.dst.prefixlen == width(route.dst.ip)
        },
    )


def place_of(request: Request) -> str:
    """Return what a command must be told to find the network's store."""
    directory = data_dir(request.config)
    return "" if directory == DATA_DIR else f" --data-dir {shlex.quote(directory)}"


def _ranges(request: Request) -> tuple[Range, ...] | None:
    capabilities = request.config.section("capabilities")
    if capabilities is not None and capabilities.boolean("ipRanges"):
        return None
    return tuple(each for range_set in host_local.parse_range_sets(request) for each in range_set.ranges)


def _compare(seen: _Seen) -> Iterator[Disagreement]:
    for attachment in seen.attachments:
        yield from _find_unseen(seen, attachment)
    yield from _find_unallocated(seen)
    yield from _find_outside(seen)
    for name, wrong in check_files(seen.store):
        path = f"{seen.store.directory}/{name}"
        yield Disagreement(seen.network, "damaged", path, "", f"{path}: {wrong}")


def _find_unseen(seen: _Seen, attachment: Evidence) -> Iterator[Disagreement]:
    """Yield the addresses of one that is not alive; debris is found as damage."""
    liveness = judge(attachment)
    if liveness.is_alive or not attachment.container_id:
        return
    for each in attachment.reservations:
        text, owner = str(each), each.owner
        said = f"{text} is held by {owner}, which has no interface here"
        if liveness.is_dead or each.address in attachment.old:
            said += " and is of an earlier boot of this machine" if each.address in attachment.old else ""
            repair = f"podwire ipam release{seen.place} {seen.network} {text}"
            yield Disagreement(seen.network, "leaked", text, str(owner), f"{said}: {repair}", repair)
        else:
            yield Disagreement(seen.network, UNKNOWN, text, str(owner), f"{said}; {liveness.reason}")


def _find_unallocated(seen: _Seen) -> Iterator[Disagreement]:
    """Yield the pods that hold nothing, and the addresses with a route to a pod that does not hold them."""
    holders = {each.address: (who, each.owner) for who in seen.attachments for each in who.reservations}
    links = {each.link.index: each.link.name for each in seen.attachments if each.link}
    for who in seen.attachments:
        if who.link and not who.reservations:
            pod = " ".join(filter(None, (who.container_id, who.ifname, who.pod)))
            said = f"{who.link.name}: pod {pod} is attached and holds no address"
            yield Disagreement(seen.network, "unallocated", who.link.name, pod, said)
    for address, index in sorted(seen.used.items()):
        holder, owner = holders.get(address, (None, None))
        if holder and ((holder.link and holder.link.index == index) or not holder.identity):
            continue
        name, text = links[index], render_address(address)
        said = f"{text} is routed to {name}, and the store gives it to {owner or 'nobody'}"
        yield Disagreement(seen.network, "unallocated", text, name, said)


def _find_outside(seen: _Seen) -> Iterator[Disagreement]:
    held = {each.address: each.owner for who in seen.attachments for each in who.reservations}
    for address, owner in sorted(held.items()):
        if seen.ranges is not None and not any(each.allocatable(address) for each in seen.ranges):
            text = render_address(address)
            said = f"{text} is held by {owner}, and no range of this network gives it out"
            yield Disagreement(seen.network, "outside", text, str(owner), said)
