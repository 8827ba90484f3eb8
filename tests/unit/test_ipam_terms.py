"""What a network may ask of its addresses beyond host-local, on a real store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from netaddr import IPAddress

from ipam import Memory, Owner, PoolExhausted, Store, Terms, allocate, make_range, make_range_sets, release

if TYPE_CHECKING:
    from pathlib import Path

POOLS = make_range_sets([[make_range(subnet="10.1.0.0/27")]])
BAND = [f"10.1.0.{number}" for number in range(2, 18)]
OTHERS = [f"10.1.0.{number}" for number in range(18, 31)]


def owner(name: str) -> Owner:
    return Owner(container_id=name, ifname="eth0")


@pytest.fixture(params=["walks", "remembers"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    memory = Memory() if request.param == "remembers" else None
    return Store(tmp_path, "net", lock_timeout=5, memory=memory)


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
