"""Who gets which address: pure policy over a store.

One address per range set, round robin from behind the last one given, all or nothing. The rules
are those of the reference `host-local` (backend/allocator/allocator.go); what differs: the whole
call is one hold of the lock, a failure releases only what the call itself reserved, and a search
for what to release or to collect is done before the lock is taken and verified under it.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from netaddr import IPAddress, IPNetwork

from ipam.address import collapse, render_address
from ipam.errors import AddressTaken, DuplicateAllocation, NotInRange, PoolCooling, PoolExhausted
from ipam.seam.undo import Undo
from ipam.store import Holdings, Owner, Store

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ipam.address import Version
    from ipam.cache import StoreCache
    from ipam.cooldown import CoolingAddress
    from ipam.namespace_mark import Reservation
    from ipam.ranges import Range, RangeSet, RangeSpan

__all__ = [
    "Allocation",
    "Owner",
    "Terms",
    "Usage",
    "allocate",
    "cached_usage",
    "collect",
    "give_up",
    "held",
    "reclaim",
    "release",
    "usage",
]

_NOTHING: Final = Holdings(exact=(), legacy=(), first_free=lambda _, first, __: first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What is asked for beyond what host-local does; by default nothing."""

    keep_band: bool = False
    """The first addresses of a set go to who requests them, to others only when no other is free."""
    sticky: str = ""
    """The name whose addresses are given to it again if they are free; empty for none."""
    cool_down: int = 0
    """For how many seconds a released address is given to nobody who did not request it."""
    netns_mark: str = ""
    """The namespace from which the caller attaches the owner, see `namespace_mark`; empty when others do."""


_PLAIN: Final = Terms()


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """An address that is reserved now; its mask is the subnet's prefix length."""

    address: IPAddress
    subnet: IPNetwork
    gateway: IPAddress | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How full a range set is; only its allocatable addresses count."""

    range_set: RangeSet
    used: int
    free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """What one allocation is about, the same for all its sets."""

    store: Store
    owner: Owner
    holdings: Holdings
    terms: Terms
    last: frozenset[IPAddress]
    """The addresses that a sticky name had last."""

    def reserve(self, address: IPAddress) -> bool:
        """Reserve the address for the owner; False if it is taken."""
        return self.store.reserve(address, self.owner, self.terms.netns_mark)

    def moves_pointer(self, range_set: RangeSet, address: IPAddress) -> bool:
        """Say whether the next call goes on behind the address: not if it was chosen out of turn."""
        return address not in self.last and not (self.terms.keep_band and range_set.in_band(address))


def allocate(
    store: Store,
    range_sets: Sequence[RangeSet],
    owner: Owner,
    requested: Sequence[IPAddress] = (),
    terms: Terms = _PLAIN,
) -> list[Allocation]:
    """Reserve one address of each set, in order, or nothing at all.

    Raises NotInRange, AddressTaken, DuplicateAllocation, PoolExhausted, LockTimeout and
    StoreUnavailable.
    """
    wanted = _assign(range_sets, requested)
    with store.locked():
        try:
            return _allocate(store, range_sets, owner, wanted, terms)
        except (PoolExhausted, DuplicateAllocation):
            if not _reclaim(store, terms):
                raise
        return _allocate(store, range_sets, owner, wanted, terms)


def _allocate(
    store: Store,
    range_sets: Sequence[RangeSet],
    owner: Owner,
    wanted: Sequence[IPAddress | None],
    terms: Terms,
) -> list[Allocation]:
    with Undo() as undo:
        holdings = store.find(owner, cooldown=terms.cool_down > 0) if None in wanted else _NOTHING
        call = _Call(
            store=store, owner=owner, holdings=holdings, terms=terms, last=_recall(store, terms.sticky)
        )
        made = []
        for index, (range_set, address) in enumerate(zip(range_sets, wanted, strict=True)):
            if address is None:
                allocation = _reserve_next(call, range_set, store.last_reserved(index))
            else:
                allocation = _reserve_requested(call, range_set, address)
            undo.callback(store.remove, allocation.address, owner)
            made.append(allocation)
        for index, allocation in enumerate(made):
            if call.moves_pointer(range_sets[index], allocation.address):
                store.set_last_reserved(index, allocation.address)
        _remember(call, made)
        undo.pop_all()
    return made


def release(store: Store, owner: Owner, terms: Terms = _PLAIN) -> list[IPAddress]:
    """Release what the owner holds; nothing to release is fine and takes no lock."""
    found = held(store, owner, terms)
    if not found:
        return []
    with store.locked():
        _start_cooldown(store, found, terms)
        released = store.release(owner, found)
        if terms.sticky and released:
            from ipam import sticky

            sticky.touch(store, terms.sticky, released)
    return released


def _start_cooldown(store: Store, addresses: Collection[IPAddress], terms: Terms, age: float = 0) -> None:
    if terms.cool_down:
        store.cooldown().add(addresses, terms.sticky, terms.cool_down, age)


def held(store: Store, owner: Owner, terms: Terms = _PLAIN) -> list[IPAddress]:
    """Return what the owner holds; legacy files by its id count where it has no others."""
    return list(store.find(owner, cooldown=terms.cool_down > 0).addresses)


def collect(store: Store, valid: Collection[Owner], terms: Terms = _PLAIN) -> list[IPAddress]:
    """Release everything that no valid owner holds, and the debris of crashes.

    A legacy file names no interface; it lives if its id is that of any valid owner.
    """
    owners, ids = frozenset(valid), {each.container_id for each in valid}
    stale = [
        (address, owner)
        for address, owner in store.owners().items()
        if owner not in owners and (owner.ifname or owner.container_id not in ids)
    ]
    if not stale and not store.has_debris():
        return []
    with store.locked():
        store.remove_debris()
        _start_cooldown(store, [address for address, _ in stale], terms)
        return store.remove_all(stale)


def reclaim(store: Store, terms: Terms = _PLAIN) -> list[IPAddress]:
    """Release what this machine's earlier boots have left, see `boots`; if that is nothing, without the lock.

    An ADD does so by itself before it says that there is no address. Raises LockTimeout and
    StoreUnavailable.
    """
    from ipam import boot_mark  # a DEL does without

    boot_mark.mark_unmarked(store)
    if not boot_mark.find_dead(store):
        return []
    with store.locked():
        return _reclaim(store, terms)


def _reclaim(store: Store, terms: Terms) -> list[IPAddress]:
    """Whoever had these addresses ended at the latest when this boot began: their cooldown began then."""
    from ipam import boot_mark

    dead, uptime = boot_mark.find_dead(store), boot_mark.uptime()
    if dead and uptime < terms.cool_down:
        _start_cooldown(store, dead, replace(terms, sticky=""), uptime)
    boot_mark.remove(store, dead)
    boot_mark.mark_unmarked(store)
    return dead


def give_up(store: Store, dead: Collection[Reservation], terms: Terms = _PLAIN) -> list[IPAddress]:
    """Release these reservations and no later one of the same address, not even of the same owner."""
    if not dead:
        return []
    from ipam.namespace_mark import list_reservations  # no call of the contract needs it

    with store.locked():
        found = set(list_reservations(store))
        stale = [(each.address, each.owner) for each in dead if each in found]
        _start_cooldown(store, [address for address, _ in stale], terms)
        return store.remove_all(stale)


def usage(store: Store, range_sets: Sequence[RangeSet], terms: Terms = _PLAIN) -> list[Usage]:
    """Return how full each set is; needs neither the lock nor write access.

    Addresses that cool down are in use.
    """
    cooling = store.cooldown().cooling(terms.cool_down) if terms.cool_down else []
    reserved = sorted({*store.reserved(), *cooling})
    found = [_usage(each, reserved) for each in range_sets]
    if all(each.free for each in found):
        return found
    # Debris is free to the next ADD, but only a look at each file tells it; worth it when full.
    from ipam import boot_mark

    dead = {(address.version, int(address)) for address in boot_mark.find_dead(store)}
    reserved = sorted({*store.reserved(skip_empty=True), *cooling} - dead)
    return [_usage(each, reserved) for each in range_sets]


def _assign(range_sets: Sequence[RangeSet], requested: Sequence[IPAddress]) -> list[IPAddress | None]:
    """Give each set at most one requested address; one that no set takes is an error."""
    left = list(dict.fromkeys(map(collapse, requested)))
    assigned = []
    for range_set in range_sets:
        address = next((each for each in left if range_set.range_of(each)), None)
        assigned.append(address)
        if address is not None:
            left.remove(address)
    if left:
        raise NotInRange.unused(map(render_address, left))
    return assigned


def _recall(store: Store, name: str) -> frozenset[IPAddress]:
    if not name:
        return frozenset()
    from ipam import sticky  # few networks ask for it

    return sticky.recall(store, name)


def _remember(call: _Call, made: Sequence[Allocation]) -> None:
    addresses = {each.address for each in made}
    if call.terms.sticky and addresses != call.last:
        from ipam import sticky

        sticky.keep(call.store, call.terms.sticky, addresses)


def _reserve_requested(call: _Call, range_set: RangeSet, address: IPAddress) -> Allocation:
    within = range_set.range_of(address)
    text = render_address(address)
    if within is None or address == within.gateway:
        raise NotInRange.gateway(text)
    if not within.allocatable(address):
        raise NotInRange.excluded(text, range_set)
    if not call.reserve(address):
        raise AddressTaken(text, range_set, str(call.store.owner_of(address) or "an unreadable file"))
    return _allocation(within, address)


def _reserve_next(call: _Call, range_set: RangeSet, after: IPAddress | None) -> Allocation:
    for each in (*call.holdings.exact, *call.holdings.legacy):
        if range_set.range_of(each):
            raise DuplicateAllocation(render_address(each), call.owner.container_id)
    return _reserve_last(call, range_set) or _reserve_free(call, range_set, after)


def _reserve_last(call: _Call, range_set: RangeSet) -> Allocation | None:
    for address in call.last:
        within = range_set.range_of(address)
        if within is None or not within.allocatable(address) or _cools_for_others(call, address):
            continue
        if call.reserve(address):
            return _allocation(within, address)
    return None


def _cools_for_others(call: _Call, address: IPAddress) -> bool:
    terms = call.terms
    return bool(terms.cool_down) and call.store.cooldown().cools_for(address, terms.sticky, terms.cool_down)


def _reserve_free(call: _Call, range_set: RangeSet, after: IPAddress | None) -> Allocation:
    """Reserve one outside of the band before one of the band, a fresh one before one that has cooled down."""
    band = range_set.band() if call.terms.keep_band else 0
    outside = tuple(range_set.spans_after(after, band))
    inside = range_set.band_spans() if band else ()
    for spans in (outside, inside):
        made = _reserve_fresh(call, spans) or _reserve_cooled(call, spans)
        if made:
            return made
    cooling = _oldest(call, outside + inside)
    if cooling:
        raise PoolCooling(range_set, cooling.name, cooling.remaining(call.terms.cool_down))
    raise PoolExhausted(range_set)


def _reserve_fresh(call: _Call, spans: Sequence[RangeSpan]) -> Allocation | None:
    first_free = call.holdings.first_free
    for within, first, last in spans:
        value = first_free(within.version, first, last)
        while value is not None:
            address = IPAddress(value, within.version)
            if call.reserve(address):
                return _allocation(within, address)
            value = first_free(within.version, value + 1, last)
    return None


def _reserve_cooled(call: _Call, spans: Sequence[RangeSpan]) -> Allocation | None:
    while (cooling := _oldest(call, spans)) and not cooling.remaining(call.terms.cool_down):
        if call.reserve(cooling.address):
            within = next(each for each, _, _ in spans if each.contains(cooling.address))
            return _allocation(within, cooling.address)
    return None


def _oldest(call: _Call, spans: Sequence[RangeSpan]) -> CoolingAddress | None:
    if not spans:
        return None
    return call.holdings.oldest(spans[0][0].version, [(first, last) for _, first, last in spans])


def _allocation(within: Range, address: IPAddress) -> Allocation:
    return Allocation(address=address, subnet=within.subnet, gateway=within.gateway)


def cached_usage(cache: StoreCache, store: Store, range_sets: Sequence[RangeSet]) -> list[Usage] | None:
    """Return how full each set is without a walk; None where this process has cached too little.

    Addresses that cool down are not in use.
    """
    cached = cache.known(store.directory)
    counts = [cached.counted(_spans(each)) if cached else None for each in range_sets]
    used = [count for count in counts if count is not None]
    if len(used) < len(range_sets):
        return None
    return [
        Usage(range_set=each, used=count, free=each.size() - count)
        for each, count in zip(range_sets, used, strict=True)
    ]


def _usage(range_set: RangeSet, reserved: Sequence[tuple[int, int]]) -> Usage:
    used = sum(
        bisect_left(reserved, (version, last + 1)) - bisect_left(reserved, (version, first))
        for version, first, last in _spans(range_set)
    )
    return Usage(range_set=range_set, used=used, free=range_set.size() - used)


def _spans(range_set: RangeSet) -> list[tuple[Version, int, int]]:
    return [(range_set.version, *span) for each in range_set.ranges for span in each.spans()]
