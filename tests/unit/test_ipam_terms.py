"""What a network may ask of its addresses beyond host-local, on a real store."""

from __future__ import annotations

from pathlib import Path

import pytest
from netaddr import IPAddress

from ipam.allocator import Terms, allocate, release
from ipam.cache import StoreCache
from ipam.errors import PoolExhausted
from ipam.ranges import make_range, make_range_sets
from ipam.sticky import keep, recall
from ipam.store import Owner, Store

POOLS = make_range_sets([[make_range(subnet="10.1.0.0/27")]])
BAND = [f"10.1.0.{number}" for number in range(2, 18)]
OTHERS = [f"10.1.0.{number}" for number in range(18, 31)]


def owner(name: str) -> Owner:
    return Owner(container_id=name, ifname="eth0")


@pytest.fixture(params=["walks", "cached"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    cache = StoreCache() if request.param == "cached" else None
    return Store(tmp_path, "net", lock_timeout=5, cache=cache)


KEEPING = Terms(keep_band=True)


def given(store: Store, name: str, *requested: str, terms: Terms = KEEPING) -> str:
    (made,) = allocate(store, POOLS, owner(name), [IPAddress(each) for each in requested], terms)
    return str(made.address)


def test_the_band_is_given_to_others_only_when_nothing_else_is_free(store: Store) -> None:
    assert [given(store, f"pod{number}") for number in range(29)] == [*OTHERS, *BAND]
    with pytest.raises(PoolExhausted):
        given(store, "one more")
    release(store, owner("pod3"))
    release(store, owner("pod20"))
    assert [given(store, name) for name in ("again", "and again")] == [OTHERS[3], BAND[20 - 13]]


def test_a_request_from_the_band_does_not_move_where_the_others_go_on(store: Store) -> None:
    assert given(store, "one") == "10.1.0.18"
    assert given(store, "two", "10.1.0.5") == "10.1.0.5"
    assert given(store, "three", "10.1.0.25") == "10.1.0.25"
    assert given(store, "four", "10.1.0.6") == "10.1.0.6"
    assert given(store, "five") == "10.1.0.26"


def test_a_band_begins_to_be_kept_where_the_pointer_stands_in_it(store: Store) -> None:
    assert [given(store, name, terms=Terms()) for name in "ab"] == ["10.1.0.2", "10.1.0.3"]
    assert [given(store, name) for name in "cd"] == ["10.1.0.18", "10.1.0.19"]


def sticky(name: str) -> Terms:
    return Terms(sticky=name)


def test_a_name_gets_its_address_again_and_others_do_not_notice(store: Store) -> None:
    assert given(store, "one", terms=sticky("web-0")) == "10.1.0.2"
    assert given(store, "two", terms=sticky("web-1")) == "10.1.0.3"
    release(store, owner("one"), sticky("web-0"))
    assert given(store, "three") == "10.1.0.18"
    assert given(store, "four", terms=sticky("web-0")) == "10.1.0.2"
    assert given(store, "five") == "10.1.0.19"


def test_a_container_that_was_released_by_another_program_leaves_its_address_to_its_name(
    store: Store,
) -> None:
    given(store, "one", terms=sticky("web-0"))
    release(store, owner("one"))
    assert given(store, "two", terms=sticky("web-0")) == "10.1.0.2"


def test_an_address_that_another_holds_is_left_to_it_and_the_new_one_is_kept(store: Store) -> None:
    given(store, "one", terms=sticky("web-0"))
    assert given(store, "two", terms=sticky("web-0")) == "10.1.0.3"
    release(store, owner("one"), sticky("web-0"))
    release(store, owner("two"), sticky("web-0"))
    assert given(store, "three", terms=sticky("web-0")) == "10.1.0.3"


def test_a_requested_address_becomes_the_names(store: Store) -> None:
    given(store, "one", terms=sticky("web-0"))
    release(store, owner("one"), sticky("web-0"))
    assert given(store, "two", "10.1.0.9", terms=sticky("web-0")) == "10.1.0.9"
    release(store, owner("two"), sticky("web-0"))
    assert given(store, "three", terms=sticky("web-0")) == "10.1.0.9"


def test_an_address_that_is_no_longer_given_out_is_not_given_to_its_name(store: Store) -> None:
    given(store, "one", terms=sticky("web-0"))
    release(store, owner("one"), sticky("web-0"))
    pools = make_range_sets([[make_range(subnet="10.1.0.0/27", exclude=["10.1.0.2/32"])]])
    (made,) = allocate(store, pools, owner("two"), terms=sticky("web-0"))
    assert str(made.address) == "10.1.0.3"


def test_a_name_in_use_is_remembered_and_the_file_does_not_grow_without_end(tmp_path: Path) -> None:
    store = Store(tmp_path, "net")
    for number in range(2_500):
        name = "always" if number % 200 == 0 else f"a-pod-with-{'a-long-' * 12}name-of-its-own-{number}"
        with store.locked():
            keep(store, name, [IPAddress("10.1.0.9" if name == "always" else "10.1.0.8")])
    assert recall(store, "always") == {IPAddress("10.1.0.9")}
    assert recall(store, f"a-pod-with-{'a-long-' * 12}name-of-its-own-1") == frozenset()
    assert recall(store, name) == {IPAddress("10.1.0.8")}
    assert sum(path.stat().st_size for path in tmp_path.glob(".podwire/net.sticky*")) < 150_000


@pytest.mark.parametrize("left", [b"web-0", b"web-0 10.1.0.9", b"web-0 nonsense\n", b"\0\0\xff\n", b"\n\n"])
def test_what_a_crash_left_of_a_line_costs_no_address(store: Store, left: bytes) -> None:
    given(store, "one", terms=sticky("web-0"))
    with Path(store.hints("sticky")).open("wb") as file:
        file.write(left)
    assert given(store, "two", terms=sticky("web-0")) == "10.1.0.3"
    assert given(store, "three", terms=sticky("web-0")) == "10.1.0.4"


def test_hints_that_cannot_be_written_cost_no_address(store: Store) -> None:
    given(store, "one")
    Path(store.hints("sticky")).mkdir()
    assert given(store, "two", terms=sticky("web-0")) == "10.1.0.19"
    assert [str(each) for each in release(store, owner("two"), sticky("web-0"))] == ["10.1.0.19"]


def test_without_terms_no_hint_is_written(store: Store) -> None:
    given(store, "one", terms=Terms())
    release(store, owner("one"))
    assert list(Path(store.temporary).parent.iterdir()) == []
