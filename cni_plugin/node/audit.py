"""`podwire ipam check`: where store, configuration and kernel disagree about addresses.

Addresses themselves are set inside the pods, out of sight from here. What the node shows of a
pod is the alias of its veth and, in routed mode, its routes. That there is no veth of ours proves
a container gone only where our plugin alone attaches pods. Calls may be under way while we look,
so that what counts is what is still wrong a second later.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cni_plugin.addresses import host_local
from cni_plugin.addresses.delegate import OWN_NAMES, is_ours
from cni_plugin.config.network import MARK, Attachment, alias_prefix, data_dir, ipam_type
from cni_plugin.config.paths import DATA_DIR
from cni_plugin.contract.inet import width
from cni_plugin.kernel.link import list_links
from cni_plugin.kernel.netns import open_host
from cni_plugin.kernel.route import list_routes
from ipam.address import render_address
from ipam.boot_mark import find_dead
from ipam.fsck import check_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netaddr import IPAddress

    from cni_plugin.contract.request import Request
    from cni_plugin.kernel.link import Link
    from ipam.ranges import Range
    from ipam.store import Owner, Store

_PATIENCE: Final = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One thing that is wrong with an address, a file or an interface of a network.

    `kind` is leaked (held by who is gone), unused (held by who has no interface of ours, which may be a
    pod that another plugin attached), unallocated (used, and not held), outside (of the ranges) or damaged.
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
    """One look at a network. `used` are the addresses of routes to pods, with the identity of the pod."""

    network: str
    store: Store
    place: str
    """What a command must be told to find the store."""
    held: dict[IPAddress, Owner]
    ranges: tuple[Range, ...] | None
    """None where the runtime names ranges of its own."""
    links: dict[str, Link]
    used: dict[IPAddress, str]
    alone: bool
    """All pods of this node are attached by us."""
    dead: frozenset[IPAddress]
    """Reserved before this machine was started anew, which no container has survived."""


def audit(request: Request) -> list[Disagreement]:
    """Return what is wrong with the addresses of a network; nothing where another IPAM plugin keeps them.

    Raises CNIError for a configuration that cannot be, and IPAMError for a store that cannot be read.
    """
    if ipam_type(request.config) not in OWN_NAMES:
        return []
    before = set(_judge(_look(request)))
    if not before:
        return []
    time.sleep(_PATIENCE)
    return [each for each in _judge(_look(request)) if each in before]


def _look(request: Request) -> _Seen:
    """Read the store first: an ADD makes the link before it takes the address."""
    store, directory = host_local.open_store(request), data_dir(request.config)
    held = store.owners()
    with open_host() as host:
        every = list_links(host.netlink, kind="veth")
        links = {_identity(link): link for link in every if _is_of(link, request.network)}
        by_index = {link.index: identity for identity, link in links.items()}
        routes = (
            [route for version in (4, 6) for route in list_routes(host.netlink, version)] if links else []
        )
    return _Seen(
        network=request.network,
        store=store,
        place="" if directory == DATA_DIR else f" --data-dir {directory}",
        held=held,
        ranges=_ranges(request),
        links=links,
        used={
            route.dst.ip: by_index[route.index]
            for route in routes
            if route.index in by_index and route.dst.prefixlen == width(route.dst.ip)
        },
        alone=_is_our_plugin(request) and all(link.alias.startswith(MARK) for link in every),
        dead=frozenset(find_dead(store)),
    )


def _ranges(request: Request) -> tuple[Range, ...] | None:
    capabilities = request.config.section("capabilities")
    if capabilities is not None and capabilities.boolean("ipRanges"):
        return None
    return tuple(each for range_set in host_local.parse_range_sets(request) for each in range_set.ranges)


def _identity(link: Link) -> str:
    return link.alias.removeprefix(MARK).partition(" ")[0]


def _is_of(link: Link, network: str) -> bool:
    return link.alias.startswith(alias_prefix(_identity(link), network))


def _is_our_plugin(request: Request) -> bool:
    """Tell whether the runtime runs us for this network: under the name `bridge` it may be another's."""
    kind = request.config.string("type")
    found = (os.path.join(directory, kind) for directory in request.path)
    return kind == "podwire" or is_ours(next(filter(os.path.isfile, found), ""))


def _judge(seen: _Seen) -> Iterator[Disagreement]:
    yield from _find_dead(seen)
    yield from _find_unallocated(seen)
    yield from _find_outside(seen)
    for name, wrong in check_files(seen.store):
        path = f"{seen.store.directory}/{name}"
        yield Disagreement(seen.network, "damaged", path, "", f"{path}: {wrong}")


def _find_dead(seen: _Seen) -> Iterator[Disagreement]:
    """Yield the addresses whose owner has no interface; a legacy file names no interface to look for."""
    ids = {(link.alias.split(" ") + [""] * 3)[2] for link in seen.links.values()}
    for address, owner in sorted(seen.held.items()):
        living = (
            _owner_identity(seen.network, owner) in seen.links if owner.ifname else owner.container_id in ids
        )
        if living or not owner.container_id:
            continue
        certain = address in seen.dead or (seen.alone and bool(owner.ifname))
        text = render_address(address)
        said = f"{text} is held by {owner}, which has no interface here"
        said += " and is of an earlier boot of this machine" if address in seen.dead else ""
        repair = f"podwire ipam release{seen.place} {seen.network} {text}"
        said += f": {repair}" if certain else f"; maybe another plugin attached it; if it is gone: {repair}"
        yield Disagreement(seen.network, "leaked" if certain else "unused", text, str(owner), said, repair)


def _owner_identity(network: str, owner: Owner) -> str:
    return Attachment(
        network=network, container_id=owner.container_id, ifname=owner.ifname, netns=""
    ).identity


def _find_unallocated(seen: _Seen) -> Iterator[Disagreement]:
    """Yield the pods that hold nothing, and the addresses with a route to a pod that does not hold them."""
    holders = {address: _owner_identity(seen.network, owner) for address, owner in seen.held.items()}
    holding = set(holders.values())
    legacy = {owner.container_id for owner in seen.held.values() if not owner.ifname}
    for identity, link in sorted(seen.links.items()):
        pod = " ".join(link.alias.split(" ")[2:])
        if identity not in holding and not legacy & set(pod.split(" ")):
            said = f"{link.name}: pod {pod} is attached and holds no address"
            yield Disagreement(seen.network, "unallocated", link.name, pod, said)
    for address, identity in sorted(seen.used.items()):
        owner = seen.held.get(address)
        if holders.get(address) == identity or (owner and not owner.ifname):
            continue
        name, text = seen.links[identity].name, render_address(address)
        said = f"{text} is routed to {name}, and the store gives it to {owner or 'nobody'}"
        yield Disagreement(seen.network, "unallocated", text, name, said)


def _find_outside(seen: _Seen) -> Iterator[Disagreement]:
    for address, owner in sorted(seen.held.items()):
        if seen.ranges is not None and not any(each.allocatable(address) for each in seen.ranges):
            text = render_address(address)
            said = f"{text} is held by {owner}, and no range of this network gives it out"
            yield Disagreement(seen.network, "outside", text, str(owner), said)
