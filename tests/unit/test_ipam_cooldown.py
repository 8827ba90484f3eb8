"""Addresses cool down after their release: on a real store, by a clock that the test turns."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from netaddr import IPAddress

from ipam import cooldown
from ipam.allocator import Terms, allocate, collect, release, usage
from ipam.cache import StoreCache
from ipam.errors import IPAMError, PoolCooling, StoreUnavailable
from ipam.ranges import make_range, make_range_sets
from ipam.store import Owner, Store

if TYPE_CHECKING:
    from collections.abc import Callable

POOLS = make_range_sets([[make_range(subnet="10.1.0.0/29")]])
ALL = [f"10.1.0.{number}" for number in range(2, 7)]
COOL = Terms(cool_down=60)


class Clock:
    """Seconds since 1970 as the test wants them."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(cooldown, "time", made)
    return made


def owner(name: str) -> Owner:
    return Owner(container_id=name, ifname="eth0")


@pytest.fixture(params=["walks", "cached"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    cache = StoreCache() if request.param == "cached" else None
    return Store(tmp_path, "net", lock_timeout=5, cache=cache)


def given(store: Store, name: str, *requested: str, terms: Terms = COOL) -> str:
    (made,) = allocate(store, POOLS, owner(name), [IPAddress(each) for each in requested], terms)
    return str(made.address)


def fill(store: Store) -> dict[str, str]:
    """Give all addresses out; return who has which."""
    return {address: given(store, address) for address in ALL}


def test_a_released_address_is_given_last_and_the_one_released_first_before_others(
    store: Store, clock: Clock
) -> None:
    fill(store)
    for address in (ALL[3], ALL[0], ALL[2]):
        release(store, owner(address), COOL)
        clock.now += 1
    clock.now += 60
    assert [given(store, name) for name in "abc"] == [ALL[3], ALL[0], ALL[2]]


def test_a_place_of_the_hints_that_is_no_directory_costs_the_hints_and_is_said(store: Store) -> None:
    Path(store.directory).parent.mkdir(exist_ok=True)
    Path(store.temporary).parent.touch()
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="Not a directory"):
            allocate(store, POOLS, owner("one"), terms=Terms(cool_down=60, sticky="shop/web-0/eth0"))
        assert [each.free for each in usage(store, POOLS, COOL)] == [len(ALL)]
    assert release(store, owner("one"), COOL) == []


def test_an_address_that_nobody_had_comes_before_one_that_has_cooled_down(store: Store, clock: Clock) -> None:
    given(store, "a")
    release(store, owner("a"), COOL)
    clock.now += 3600
    assert [given(store, name) for name in "bcdef"] == [*ALL[1:], ALL[0]]


def test_a_full_pool_says_which_address_can_be_given_when(store: Store, clock: Clock) -> None:
    fill(store)
    release(store, owner(ALL[1]), COOL)
    clock.now += 10
    release(store, owner(ALL[0]), COOL)
    with pytest.raises(PoolCooling) as caught:
        given(store, "one more")
    assert str(caught.value) == (
        "no IP addresses available in range set: 10.1.0.1-10.1.0.6: "
        "10.1.0.3 was released, wanted 50.0 s more before another pod gets it"
    )
    assert [(each.used, each.free) for each in usage(store, POOLS, COOL)] == [(5, 0)]
    assert [(each.used, each.free) for each in usage(store, POOLS)] == [(3, 2)]
    clock.now += 50
    assert [(each.used, each.free) for each in usage(store, POOLS, COOL)] == [(4, 1)]
    assert given(store, "one more") == ALL[1]
    with pytest.raises(PoolCooling, match=r"10\.1\.0\.2 was released, wanted 10\.0 s more"):
        given(store, "and another")


def test_without_the_option_nothing_rests(store: Store) -> None:
    fill(store)
    release(store, owner(ALL[1]), COOL)
    with pytest.raises(PoolCooling):
        given(store, "one more")
    assert given(store, "one more", terms=Terms()) == ALL[1]


def test_what_gc_releases_rests_too(store: Store) -> None:
    fill(store)
    assert len(collect(store, [owner(ALL[0])], COOL)) == 4
    with pytest.raises(PoolCooling):
        given(store, "one more")


def test_what_another_program_releases_was_always_free(store: Store) -> None:
    fill(store)
    release(store, owner(ALL[0]), COOL)
    (Path(store.directory) / ALL[4]).unlink()
    assert given(store, "one more") == ALL[4]
    with pytest.raises(PoolCooling):
        given(store, "and another")


def test_what_another_program_takes_does_not_rest(store: Store, clock: Clock) -> None:
    fill(store)
    release(store, owner(ALL[0]), COOL)
    clock.now += 1
    release(store, owner(ALL[1]), COOL)
    (Path(store.directory) / ALL[0]).write_bytes(b"theirs\r\neth0")
    with pytest.raises(PoolCooling, match=ALL[1]):
        given(store, "one more")
    clock.now += 100
    assert given(store, "one more") == ALL[1]


def test_a_requested_address_is_given_at_once(store: Store) -> None:
    fill(store)
    release(store, owner(ALL[2]), COOL)
    assert given(store, "its own", ALL[2]) == ALL[2]


def test_an_address_that_cools_down_is_no_reason_to_spare_the_band_but_one_that_rests_is(
    tmp_path: Path, clock: Clock
) -> None:
    store, terms = Store(tmp_path, "net"), Terms(cool_down=60, keep_band=True)
    pools = make_range_sets([[make_range(subnet="10.1.0.0/27", range_end="10.1.0.19")]])

    def add(name: str) -> str:
        (made,) = allocate(store, pools, owner(name), terms=terms)
        return str(made.address)

    assert [add("a"), add("b")] == ["10.1.0.18", "10.1.0.19"]
    release(store, owner("a"), terms)
    assert add("c") == "10.1.0.2"
    clock.now += 60
    assert add("d") == "10.1.0.18"


def named(name: str) -> Terms:
    return Terms(cool_down=60, sticky=name)


def test_a_sticky_name_need_not_wait_for_itself_but_for_others(store: Store) -> None:
    assert given(store, "one", terms=named("web-0")) == ALL[0]
    release(store, owner("one"), named("web-0"))
    assert given(store, "two", terms=named("web-0")) == ALL[0]
    release(store, owner("two"), named("web-0"))
    assert given(store, "three", ALL[0], terms=named("web-1")) == ALL[0]
    release(store, owner("three"), named("web-1"))
    assert given(store, "four", terms=named("web-0")) == ALL[1]


@pytest.mark.parametrize(
    ("stamp", "cools"),
    [("1699999999", True), ("1700000030.5", True), ("1699999940", False), ("1700000060", False),
     ("nan", False), ("inf", False), ("nonsense", False), ("", False), ("\udcff", False)],
)  # fmt: skip
def test_a_time_that_cannot_be_holds_no_address_back(store: Store, stamp: str, cools: bool) -> None:
    fill(store)
    release(store, owner(ALL[0]))
    Path(store.hints("released")).write_bytes(os.fsencode(f"{stamp} {ALL[0]} \nhalf a line {ALL[0]}"))
    if cools:
        with pytest.raises(PoolCooling):
            given(store, "one more")
    else:
        assert given(store, "one more") == ALL[0]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/nowhere")])
def test_hints_that_cannot_be_written_or_read_hold_no_address_back(
    store: Store, make: Callable[[Path], None]
) -> None:
    fill(store)
    make(Path(store.hints("released")))
    assert [str(each) for each in release(store, owner(ALL[0]), COOL)] == [ALL[0]]
    assert given(store, "one more") == ALL[0]


def test_many_releases_are_remembered_in_two_files_of_bounded_size(store: Store) -> None:
    fill(store)
    release(store, owner(ALL[0]), COOL)
    for number in range(0, 130_000, 200):
        store.cooldown().add([IPAddress((10 << 24) + each) for each in range(number, number + 200)], "", 60)
        if number == 20_000:
            with pytest.raises(PoolCooling):
                given(store, "one more")
    sizes = [path.stat().st_size for path in Path(store.hints("released")).parent.glob("net.released*")]
    assert len(sizes) == 2
    assert sum(sizes) < 2_200_000
    assert given(store, "one more") == ALL[0]


def test_files_of_what_has_cooled_down_stay_small(store: Store) -> None:
    for number in range(0, 100_000, 100):
        store.cooldown().add([IPAddress((10 << 24) + each) for each in range(number, number + 100)], "", 0)
    assert sum(path.stat().st_size for path in Path(store.hints("released")).parent.iterdir()) < 140_000


def test_an_agent_remembers_so_many_and_forgets_what_was_released_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cooldown, "_MOST_KEPT", 3)
    store = Store(tmp_path, "net", cache=StoreCache())
    fill(store)
    for address in ALL:
        release(store, owner(address), COOL)
    assert sorted(given(store, name) for name in "ab") == ALL[:2]
    with pytest.raises(PoolCooling, match=ALL[2]):
        given(store, "c")


@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_gives_what_a_simple_model_gives(tmp_path: Path, clock: Clock, seed: int) -> None:
    """Two agents and processes of one call share the directory; some die before their release."""
    chance = random.Random(seed)
    caches = [StoreCache(), StoreCache(), None]
    rests: dict[str, float] = {}
    held: dict[str, str] = {}
    for step in range(600):
        store = Store(tmp_path, "net", cache=chance.choice(caches))
        what = chance.choices(["add", "delete", "wait", "crash", "rotate"], [10, 10, 10, 2, 0.3])[0]
        if what == "add":
            said = said_by(store, f"pod{step}")
            assert said in expected(rests, held, clock.now)
            if said in ALL:
                held[said] = f"pod{step}"
                rests.pop(said, None)
        elif what == "wait":
            clock.now += chance.choice([0.5, 5, 30])
        elif what == "rotate" and Path(store.hints("released")).exists():
            rotate(store)
        elif held:
            address = chance.choice(list(held))
            if what == "delete":
                assert [str(each) for each in release(store, owner(held.pop(address)), COOL)] == [address]
                rests[address] = clock.now
            elif what == "crash":
                with store.locked():
                    store.cooldown().add([IPAddress(address)], "", 60)


def said_by(store: Store, name: str) -> str:
    try:
        return given(store, name)
    except IPAMError as error:
        return str(error)


def expected(rests: dict[str, float], held: dict[str, str], now: float) -> list[str]:
    """Return the addresses that may be given, or the error."""
    fresh = [each for each in ALL if each not in held and each not in rests]
    if fresh:
        return fresh
    text = "no IP addresses available in range set: 10.1.0.1-10.1.0.6"
    if not rests:
        return [text]
    oldest = min(rests, key=rests.__getitem__)
    oldest = next(each for each in rests if rests[each] == rests[oldest])
    left = 60 - (now - rests[oldest])
    return (
        [oldest]
        if left <= 0
        else [f"{text}: {oldest} was released, wanted {left:.1f} s more before another pod gets it"]
    )


def rotate(store: Store) -> None:
    """Let the file become the old one as if it were full, with all that was known in it."""
    path, old = Path(store.hints("released")), Path(store.hints("released.old"))
    both = (old.read_bytes() if old.exists() else b"") + path.read_bytes()
    with path.open("ab") as file:
        file.write(both)
    path.rename(old)


def test_an_agent_looks_at_none_of_the_files_that_did_not_change(tmp_path: Path) -> None:
    """A walk of 5,000 files takes 20 ms, what is remembered a tenth of one."""
    stores = [Store(tmp_path, "net", cache=cache) for cache in (StoreCache(), None)]
    fill(stores[0])
    others = [IPAddress((10 << 24) + (2 << 16) + number) for number in range(5000)]
    for number, address in enumerate(others):
        Path(stores[0].directory, str(address)).write_bytes(b"%d\r\neth0" % number)
    stores[0].cooldown().add(others[::10], "", 60)
    stores[0].find(owner(ALL[0]), cooldown=True)
    remembering, walking = (min(timed(each) for _ in range(5)) for each in stores)
    assert remembering < walking / 10


def timed(store: Store) -> float:
    began = time.perf_counter()
    assert len(store.find(owner(ALL[0]), cooldown=True).addresses) == 1
    return time.perf_counter() - began
