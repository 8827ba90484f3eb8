"""The allocator on a real directory beside a dictionary: any sequence of verbs, reboots and strangers.

Without `coolDown` the model says which address comes; with it, which may.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from netaddr import IPAddress

from ipam import boot_mark, cooldown
from ipam.allocator import Terms, allocate, collect, reclaim, release, usage
from ipam.cache import StoreCache
from ipam.errors import AddressTaken, DuplicateAllocation, NotInRange, PoolExhausted
from ipam.ranges import make_range, make_range_sets
from ipam.store import Owner, Store
from tests.harness.storm.invariants import held as files_of

ANOTHER_BOOT = b"1b4e28ba-2fa1-11d2-883f-b9a761bde3fb"
# 19 and 5 addresses; the first has a band of 16.
SETS = make_range_sets(
    [
        [make_range(subnet="10.1.0.0/27", range_end="10.1.0.20")],
        [make_range(subnet="fd00::/124", range_start="fd00::4", range_end="fd00::8", gateway="none")],
    ]
)
BANDS = (16, 0)
POOLS = tuple(
    tuple(IPAddress(n, each.version) for a, b in each.ranges[0].spans() for n in range(a, b + 1))
    for each in SETS
)
NAMES = st.sampled_from([f"c{number}" for number in range(8)])
PODS = st.sampled_from(["", "shop/web-0/eth0", "shop/web-1/eth0"])
COOL = 5  # seconds, less than any machine has been up that runs this


def owner(name: str) -> Owner:
    return Owner(container_id=name, ifname="eth0")


@dataclass
class Model:
    """What the store holds and remembers."""

    held: dict[IPAddress, str] = field(default_factory=dict)
    dead: set[IPAddress] = field(default_factory=set)
    pointers: dict[int, IPAddress] = field(default_factory=dict)
    pods: dict[str, frozenset[IPAddress]] = field(default_factory=dict)
    released: dict[IPAddress, tuple[float, str]] = field(default_factory=dict)

    def order(self, index: int) -> list[IPAddress]:
        """Return a pool's addresses from behind the last one given."""
        pool = POOLS[index]
        after = self.pointers.get(index)
        turn = next((i for i, each in enumerate(pool) if after is not None and each > after), 0)
        return list(pool[turn:] + pool[:turn])

    def choose(self, index: int, terms: Terms) -> IPAddress | None:
        """Return what the pool gives to somebody new, by the rules without `coolDown`."""
        mine = [each for each in POOLS[index] if each in self.pods.get(terms.sticky, ())]
        for each in mine:
            if each not in self.held or each in self.dead:
                return each
        band = set(POOLS[index][: BANDS[index]]) if terms.keep_band else set()
        free = [each for each in self.order(index) if each not in self.held]
        return next(iter([each for each in free if each not in band] + sorted(set(free) & band)), None)


class StoreMachine(RuleBasedStateMachine):
    """Rules are the verbs and what may befall a store."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp(prefix="podwire-model-"))
        self.model = Model()
        self.now = 1_700_000_000.0
        self.clock = cooldown.time
        cooldown.time = lambda: self.now
        self.directory = self.place / "networks" / "net"

    def teardown(self) -> None:
        cooldown.time = self.clock
        shutil.rmtree(self.place)

    @initialize(keep=st.booleans(), cool=st.sampled_from((0, COOL)), remembers=st.booleans())
    def configure(self, keep: bool, cool: int, remembers: bool) -> None:
        self.keep, self.cool, self.remembers = keep, cool, remembers
        self.restart()

    def terms(self, pod: str) -> Terms:
        return Terms(keep_band=self.keep, sticky=pod, cool_down=self.cool)

    @rule()
    def restart(self) -> None:
        """Go on with another process."""
        self.store = Store(self.directory.parent, "net", cache=StoreCache() if self.remembers else None)

    @rule(names=st.lists(NAMES, min_size=1, max_size=6), pod=PODS)
    def add(self, names: list[str], pod: str) -> None:
        for name in names:
            self.add_one(name, pod)

    def add_one(self, name: str, pod: str) -> None:
        terms = self.terms(pod)
        doubled = {each for each, holder in self.model.held.items() if holder == name}
        possible = not doubled - self.model.dead and all(self.eligible(i, pod) for i in range(2))
        wanted = self.expect(name, terms) if possible and not self.cool else None
        if not possible:
            with pytest.raises(DuplicateAllocation if doubled - self.model.dead else PoolExhausted):
                allocate(self.store, SETS, owner(name), terms=terms)
            self.forget_dead()
            return
        made = [each.address for each in allocate(self.store, SETS, owner(name), terms=terms)]
        self.forget_dead()
        assert not set(made) & set(self.model.held)
        assert wanted is None or made == wanted
        for index, address in enumerate(made):
            assert address in POOLS[index]
            assert not self.cools(address, pod), (address, self.model.released)
            self.give(index, address, name, terms)
        self.remember(pod, made)

    def expect(self, name: str, terms: Terms) -> list[IPAddress]:
        """Return what comes, after what dead boots left has gone if it must."""
        first = [self.model.choose(index, terms) for index in range(2)]
        if None not in first and name not in self.model.held.values():
            return first
        kept = dict(self.model.held)
        self.model.held = {each: holder for each, holder in kept.items() if each not in self.model.dead}
        second = [self.model.choose(index, terms) for index in range(2)]
        self.model.held = kept
        return second

    def forget_dead(self) -> None:
        """Follow the store in what it has reclaimed."""
        there = {IPAddress(each) for each in files_of(self.directory.parent, "net")}
        for address in self.model.dead - there:
            self.model.held.pop(address, None)
        again = {each for each in self.model.dead & there if not self.is_marked(each)}
        for address in again:
            self.model.held.pop(address, None)
        self.model.dead = (self.model.dead & there) - again

    def is_marked(self, address: IPAddress) -> bool:
        return os.getxattr(self.directory / str(address), boot_mark.BOOT_MARK) == ANOTHER_BOOT

    def give(self, index: int, address: IPAddress, name: str, terms: Terms) -> None:
        self.model.held[address] = name
        banded = terms.keep_band and address in POOLS[index][: BANDS[index]]
        if address not in self.model.pods.get(terms.sticky, ()) and not banded:
            self.model.pointers[index] = address

    def remember(self, pod: str, made: list[IPAddress]) -> None:
        if pod:
            self.model.pods[pod] = frozenset(made)

    def cools(self, address: IPAddress, pod: str) -> bool:
        since, last = self.model.released.get(address, (-1e9, ""))
        return self.now - since < self.cool and not (
            pod and last == pod and address in self.model.pods.get(pod, ())
        )

    def eligible(self, index: int, pod: str) -> list[IPAddress]:
        free = [each for each in POOLS[index] if each not in self.model.held or each in self.model.dead]
        return [each for each in free if not self.cools(each, pod)]

    @rule(name=NAMES, address=st.sampled_from(POOLS[0] + (IPAddress("10.1.0.1"), IPAddress("10.1.0.30"))))
    def add_requested(self, name: str, address: IPAddress) -> None:
        free = address not in self.model.held or address in self.model.dead
        terms = self.terms("")
        try:
            (made,) = allocate(self.store, SETS[:1], owner(name), [address], terms)
        except NotInRange:
            assert address not in POOLS[0]
        except AddressTaken:
            assert not free
        else:
            assert made.address == address
            assert free
            self.forget_dead()
            self.give(0, address, name, terms)

    @rule(name=NAMES, pod=PODS)
    def delete(self, name: str, pod: str) -> None:
        gone = release(self.store, owner(name), self.terms(pod))
        assert set(gone) == {each for each, holder in self.model.held.items() if holder == name}
        self.drop(gone, pod)
        if pod and gone and not self.model.pods.get(pod):
            self.model.pods[pod] = frozenset(gone)

    def drop(self, gone: list[IPAddress], pod: str) -> None:
        for address in gone:
            del self.model.held[address]
            self.model.dead.discard(address)
            if self.cool:
                self.model.released[address] = (self.now, pod)

    @rule(names=st.lists(NAMES, max_size=5))
    def gc(self, names: list[str]) -> None:
        gone = collect(self.store, [owner(name) for name in names], self.terms(""))
        wanted = {each for each, holder in self.model.held.items() if holder not in names}
        assert wanted <= set(gone)
        self.drop(sorted(wanted), "")

    @rule()
    def reboot(self) -> None:
        """Start the machine anew: every file is of another boot, every pod gone."""
        for name in files_of(self.directory.parent, "net"):
            os.setxattr(self.directory / name, boot_mark.BOOT_MARK, ANOTHER_BOOT)
        self.model.dead = set(self.model.held)
        self.restart()

    @rule()
    def reclaim(self) -> None:
        gone = reclaim(self.store, self.terms(""))
        assert self.model.dead <= set(gone)
        for address in self.model.dead:
            del self.model.held[address]
        self.model.dead = set()

    @rule(seconds=st.sampled_from((1, 3, 6)))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @precondition(lambda self: not self.cool)
    @rule(address=st.sampled_from(POOLS[0] + POOLS[1]), name=NAMES)
    def go(self, address: IPAddress, name: str) -> None:
        """Let the Go host-local take or release an address."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / str(address)
        if path.exists() and path.stat().st_size:
            path.unlink()
            del self.model.held[address]
            self.model.dead.discard(address)
        elif not path.exists():
            path.write_bytes(owner(name).content)
            self.model.held[address] = name

    @rule(address=st.sampled_from(POOLS[0] + POOLS[1]))
    def crash(self, address: IPAddress) -> None:
        """Leave an empty file, and the temporary as a second name of a living one."""
        if address not in self.model.held and self.directory.exists():
            (self.directory / str(address)).touch()
        elif self.directory.exists() and not Path(self.store.temporary).exists():
            Path(self.store.temporary).parent.mkdir(exist_ok=True)
            os.link(self.directory / str(address), self.store.temporary)

    @rule(odds=st.integers(0, 7))
    def lose_hints(self, odds: int) -> None:
        if odds:
            return
        shutil.rmtree(Path(self.store.temporary).parent, ignore_errors=True)
        self.model.pods, self.model.released = {}, {}

    @invariant()
    def the_store_is_as_the_model(self) -> None:
        found = files_of(self.directory.parent, "net")
        held = {IPAddress(each): name for each, (name, _) in found.items() if name}
        assert held == self.model.held

    @invariant()
    def the_usage_is_as_the_model(self) -> None:
        if hasattr(self, "store"):
            for each, pool in zip(usage(self.store, SETS), POOLS, strict=True):
                assert each.used + each.free == len(pool)
                if not each.free:
                    assert not set(pool) - set(self.model.held), each
                    assert not self.model.dead & set(pool)


TestStore = StoreMachine.TestCase
