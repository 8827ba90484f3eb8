"""Syncs what the kernel holds for a network's peers: routes, neighbours, FDB entries, rules.

`Desired` is the whole wanted state as values; `sync` reads the actual one, adds what is missing,
then deletes what is too much. The routes that a sync owns carry podwire's protocol number and a
priority that is the network's own, so that what a peer left behind is found on whatever link.
Counting is much cheaper than reading: an ADD that finds the stamp of the last sync and as many
objects as it made leaves it at that.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.backend.stamp import Stamp, read_stamp, write_stamp
from cni_plugin.contract.errors import CNIError, combine
from cni_plugin.kernel.addr import delete_address, ensure_address, list_addresses
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.neigh import (
    ABSENT,
    ALL_ZERO,
    FdbEntry,
    Neighbour,
    count_fdb,
    count_neighbours,
    list_fdb,
    list_neighbours,
    remove_fdb,
    remove_neighbour,
    set_fdb,
    set_neighbour,
)
from cni_plugin.kernel.route import (
    MAIN_TABLE,
    PODWIRE_PROTO,
    SYNC_PRIORITY,
    RouteSpec,
    count_own_routes,
    list_own_routes,
    remove_route,
    set_route,
)
from cni_plugin.kernel.rule import RuleSpec, add_rule, list_rules, remove_rule

if TYPE_CHECKING:
    from netaddr import IPAddress, IPNetwork

    from cni_plugin.kernel.netlink import Change, Netlink

_FAMILIES = (4, 6)
# Acknowledgements wait in the socket's buffer until all of a send are made.
_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """The objects of one network's peers; `device` is the VXLAN device's index, 0 without one."""

    device: int
    priority: int
    addresses: frozenset[IPNetwork] = frozenset()
    fdb: frozenset[FdbEntry] = frozenset()
    neighbours: frozenset[Neighbour] = frozenset()
    routes: frozenset[RouteSpec] = frozenset()
    rules: frozenset[RuleSpec] = frozenset()
    """Those that lead to the table whose number is `priority`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a comparison found: changes to make, by the commands that would make them."""

    missing: tuple[Change, ...] = ()
    excess: tuple[Change, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether there is anything to change."""
        return bool(self.missing or self.excess)


def network_priority(network: str) -> int:
    """Return the route priority ("metric") that marks the routes of a network as its own."""
    return SYNC_PRIORITY | int.from_bytes(hashlib.sha256(network.encode()).digest()[:3], "big")


def peer_route(dst: IPNetwork, gw: IPAddress, index: int, *, priority: int, onlink: bool) -> RouteSpec:
    """Return the route to a peer's subnet, in the form in which the kernel shows it."""
    return RouteSpec(
        dst=dst,
        gw=gw,
        index=index,
        onlink=onlink,
        priority=priority,
        table=MAIN_TABLE,
        scope=0,
        proto=PODWIRE_PROTO,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many objects of each kind there are, by family (4, 6) where a kind has two."""

    addresses: int = 0
    fdb: int = 0
    neighbours: tuple[int, int] = (0, 0)
    routes: tuple[int, int] = (0, 0)
    rules: tuple[int, int] = (0, 0)


def count_desired(desired: Desired) -> Counts:
    """Return the counts of a desired set."""
    return Counts(
        addresses=len(desired.addresses),
        fdb=len(desired.fdb),
        neighbours=_by_family([neighbour.address.version for neighbour in desired.neighbours]),
        routes=_by_family([route.dst.version for route in desired.routes]),
        rules=_by_family([rule.src.version for rule in desired.rules]),
    )


def _by_family(versions: list[int]) -> tuple[int, int]:
    return versions.count(4), versions.count(6)


def count_actual(nl: Netlink, device: int, priority: int) -> Counts:
    """Return the counts of what the kernel holds for a network; only the addresses are read."""
    routes = count_own_routes(nl, 4, priority), count_own_routes(nl, 6, priority)
    if not device:
        return Counts(routes=routes)
    return Counts(
        addresses=len(list_addresses(nl, device)),
        fdb=count_fdb(nl, device),
        neighbours=(count_neighbours(nl, device, 4), count_neighbours(nl, device, 6)),
        routes=routes,
        rules=(len(list_rules(nl, 4, priority)), len(list_rules(nl, 6, priority))),
    )


def compare(nl: Netlink, desired: Desired) -> Difference:
    """Return how the kernel differs from the desired set, reading all of it."""
    missing: list[Change] = []
    excess: list[Change] = []
    if desired.device:
        fdb = list_fdb(nl, desired.device)
        missing += [set_fdb(desired.device, entry) for entry in desired.fdb - fdb]
        replaced = {entry.mac for entry in desired.fdb} - {ALL_ZERO}
        excess += [remove_fdb(desired.device, e) for e in fdb - desired.fdb if e.mac not in replaced]
        neighbours = {n for v in _FAMILIES for n in list_neighbours(nl, desired.device, v)}
        missing += [set_neighbour(desired.device, n) for n in desired.neighbours - neighbours]
        kept = {n.address for n in desired.neighbours}
        excess += [remove_neighbour(desired.device, n) for n in neighbours if n.address not in kept]
        rules = {r for version in _FAMILIES for r in list_rules(nl, version, desired.priority)}
        missing += [add_rule(rule) for rule in desired.rules - rules]
        excess += [remove_rule(rule) for rule in rules - desired.rules]
    routes = {r for version in _FAMILIES for r in list_own_routes(nl, version, desired.priority)}
    missing += [set_route(route) for route in desired.routes - routes]
    # A route that only differs was replaced by the one before; what is left goes first.
    kept_routes = {route.dst for route in desired.routes}
    excess = [remove_route(route) for route in routes if route.dst not in kept_routes] + excess
    return Difference(missing=tuple(missing), excess=tuple(excess))


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncMark:
    """Where the stamp of a network's last sync is, and what it says when nothing changed since."""

    path: str
    digest: str
    content: str
    followed: bool = False
    """Somebody else compares everything when it changes and from time to time (dataplane/follow.py)."""


def is_trusted(nl: Netlink, mark: SyncMark, device: int, priority: int) -> bool:
    """Tell whether the last sync was asked for the same and all it made is still there, by number."""
    stamp = read_stamp(mark.path)
    if stamp.digest != mark.digest:
        return False
    return mark.followed or stamp.counts == str(count_actual(nl, device, priority))


def settle(nl: Netlink, mark: SyncMark, desired: Desired) -> int:
    """Sync and leave the stamp; return the number of changes. Only under the network's lock."""
    changes = sync(nl, desired)
    counts = str(count_desired(desired))
    write_stamp(mark.path, Stamp(digest=mark.digest, counts=counts, content=mark.content))
    return changes


def sync(nl: Netlink, desired: Desired) -> int:
    """Make the kernel hold the desired set; return the number of changes, 0 when it was so already.

    Adds first and deletes after, keeps going, and raises what went wrong at the end as one error.
    """
    changed = _sync_addresses(nl, desired)
    difference = compare(nl, desired)
    errors = _apply(nl, difference.missing) + _apply(nl, difference.excess)
    if errors:
        raise combine(errors)
    return changed + len(difference.missing) + len(difference.excess)


def _sync_addresses(nl: Netlink, desired: Desired) -> int:
    """Give the device its addresses: the routes over it need them as their source."""
    if not desired.device:
        return 0
    present = set(list_addresses(nl, desired.device))
    for address in desired.addresses - present:
        ensure_address(nl, desired.device, address)
    for address in present - desired.addresses:
        delete_address(nl, desired.device, address)
    return len(desired.addresses ^ present)


def _apply(nl: Netlink, changes: tuple[Change, ...]) -> list[CNIError]:
    """Make the changes in batches and return what was refused; what is gone already is fine."""
    errors: list[CNIError] = []
    for start in range(0, len(changes), _BATCH):
        try:
            nl.change(*changes[start : start + _BATCH], tolerate=ABSENT)
        except KernelError as error:
            errors.append(error)
    return errors
