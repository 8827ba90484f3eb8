"""The allocator's policy on a real store, each claim one test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from netaddr import IPAddress

from ipam.allocator import allocate, collect, held, release, usage
from ipam.cache import StoreCache
from ipam.errors import (
    AddressTaken,
    AddressUnavailable,
    DuplicateAllocation,
    LockTimeout,
    NotInRange,
    PoolExhausted,
    StoreUnavailable,
)
from ipam.ranges import make_range, make_range_sets
from ipam.store import Owner, Store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ipam.ranges import RangeSet

V4 = "10.1.0.0/29"
V6 = "fd00::/64"


def owner(name: str, ifname: str = "eth0") -> Owner:
    return Owner(container_id=name, ifname=ifname)


def pools(*sets: str) -> tuple[RangeSet, ...]:
    """Each set is text: subnets separated by spaces."""
    return make_range_sets([[make_range(subnet=each) for each in one.split()] for one in sets])


def texts(addresses: Iterable[IPAddress]) -> list[str]:
    return sorted(map(str, addresses))


@pytest.fixture(params=["walks", "cached"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    cache = StoreCache() if request.param == "cached" else None
    return Store(tmp_path, "net", lock_timeout=5, cache=cache)


def given(store: Store, range_sets: tuple[RangeSet, ...], name: str, *requested: str) -> list[str]:
    made = allocate(store, range_sets, owner(name), [IPAddress(each) for each in requested])
    return [str(each.address) for each in made]


def write(store: Store, name: str, content: bytes) -> None:
    with store.locked():
        (Path(store.directory) / name).write_bytes(content)


def test_one_address_of_each_set_in_order_with_mask_and_gateway(store: Store) -> None:
    made = allocate(store, pools(V4, V6), owner("a"))
    assert [(str(m.address), str(m.subnet), str(m.gateway)) for m in made] == [
        ("10.1.0.2", V4, "10.1.0.1"),
        ("fd00::2", V6, "fd00::1"),
    ]
    assert texts(held(store, owner("a"))) == ["10.1.0.2", "fd00::2"]


def test_addresses_go_round_robin_and_a_released_one_is_not_reused_at_once(store: Store) -> None:
    sets = pools(V4)
    assert [given(store, sets, name) for name in "abc"] == [["10.1.0.2"], ["10.1.0.3"], ["10.1.0.4"]]
    release(store, owner("a"))
    assert [given(store, sets, name) for name in "def"] == [["10.1.0.5"], ["10.1.0.6"], ["10.1.0.2"]]


def test_a_set_goes_on_in_its_next_range(store: Store) -> None:
    sets = pools("10.1.0.0/30 10.2.0.0/30")
    assert [given(store, sets, name) for name in "ab"] == [["10.1.0.2"], ["10.2.0.2"]]


def test_a_full_pool_is_named_as_the_reference_names_it(store: Store) -> None:
    sets = pools("10.1.0.0/30 10.2.0.0/30")
    for name in "ab":
        given(store, sets, name)
    with pytest.raises(PoolExhausted) as caught:
        given(store, sets, "c")
    assert str(caught.value) == (
        "no IP addresses available in range set: 10.1.0.1-10.1.0.2,10.2.0.1-10.2.0.2"
    )


def test_a_single_address_without_gateway_is_a_pool(store: Store) -> None:
    made = allocate(store, pools("10.1.0.7/32"), owner("a"))
    assert [(str(m.address), m.gateway) for m in made] == [("10.1.0.7", None)]


def test_a_second_allocation_is_refused_and_releases_nothing(store: Store) -> None:
    given(store, pools(V4, V6), "a")
    with pytest.raises(DuplicateAllocation) as caught:
        given(store, pools(V4, V6), "a")
    assert str(caught.value) == ("10.1.0.2 has been allocated to a, duplicate allocation is not allowed")
    assert texts(held(store, owner("a"))) == ["10.1.0.2", "fd00::2"]


def test_a_duplicate_in_a_later_set_undoes_the_earlier_set_only(store: Store) -> None:
    given(store, pools(V6), "a")
    with pytest.raises(DuplicateAllocation):
        given(store, pools(V4, V6), "a")
    assert texts(store.owners()) == ["fd00::2"]


def test_another_interface_is_another_owner_but_a_legacy_file_counts_for_all(store: Store) -> None:
    allocate(store, pools(V4), owner("a", "eth0"))
    allocate(store, pools(V4), owner("a", "net1"))
    write(store, "10.1.0.6", b"old")
    with pytest.raises(DuplicateAllocation, match=r"10\.1\.0\.6 has been allocated to old"):
        given(store, pools(V4), "old")


def test_an_exhausted_later_set_undoes_the_earlier_ones(store: Store) -> None:
    given(store, pools("10.9.0.0/31"), "x")
    given(store, pools("10.9.0.0/31"), "y")
    with pytest.raises(PoolExhausted):
        given(store, pools(V4, V6, "10.9.0.0/31"), "a")
    assert texts(store.owners()) == ["10.9.0.0", "10.9.0.1"]
    assert held(store, owner("a")) == []


def test_a_pointer_that_cannot_be_written_undoes_everything(store: Store) -> None:
    with store.locked():
        (Path(store.directory) / "last_reserved_ip.1").mkdir()
    with pytest.raises(StoreUnavailable, match=r"cannot write .*last_reserved_ip\.1: Is a directory"):
        given(store, pools(V4, V6), "a")
    assert store.owners() == {}


def test_a_requested_address_is_given_and_moves_the_pointer(store: Store) -> None:
    assert given(store, pools(V4, V6), "a", "fd00::99") == ["10.1.0.2", "fd00::99"]
    assert given(store, pools(V4, V6), "b") == ["10.1.0.3", "fd00::9a"]


def test_a_requested_address_skips_the_duplicate_check(store: Store) -> None:
    given(store, pools(V4), "a")
    assert given(store, pools(V4), "a", "10.1.0.5") == ["10.1.0.5"]


def test_a_mapped_requested_address_is_ipv4(store: Store) -> None:
    assert given(store, pools(V4), "a", "::ffff:10.1.0.5") == ["10.1.0.5"]


def test_the_same_address_requested_twice_is_one_request(store: Store) -> None:
    assert given(store, pools(V4), "a", "10.1.0.5", "10.1.0.5") == ["10.1.0.5"]


@pytest.mark.parametrize(
    ("requested", "error", "message"),
    [
        (["10.1.0.1"], NotInRange, "requested ip 10.1.0.1 is subnet's gateway"),
        (["10.1.0.9"], NotInRange, "failed to allocate all requested IPs: 10.1.0.9"),
        (["10.1.0.3", "10.1.0.4"], NotInRange, "failed to allocate all requested IPs: 10.1.0.4"),
        (["fd00:1::1", "10.9.0.1"], NotInRange,
         "failed to allocate all requested IPs: fd00:1::1, 10.9.0.1"),
        (["10.1.0.6"], NotInRange,
         "requested IP address 10.1.0.6 is excluded from range set 10.1.0.1-10.1.0.6"),
        (["10.1.0.2"], AddressTaken,
         "10.1.0.2 is not available in range set 10.1.0.1-10.1.0.6: it is held by other (eth0)"),
    ],
)  # fmt: skip
def test_a_requested_address_that_cannot_be_had_is_refused(
    store: Store, requested: list[str], error: type[Exception], message: str
) -> None:
    given(store, pools(V4), "other")
    excluding = make_range(subnet=V4, exclude=["10.1.0.6/32"])
    sets = make_range_sets([[make_range(subnet=V6)], [excluding]])
    with pytest.raises(error) as caught:
        given(store, sets, "a", *requested)
    assert str(caught.value).endswith(message)
    assert isinstance(caught.value, AddressUnavailable)
    assert texts(store.owners()) == ["10.1.0.2"]


def test_debris_is_given_out_again_even_by_a_full_pool(store: Store) -> None:
    given(store, pools("10.1.0.0/31"), "a")
    write(store, "10.1.0.1", b"")
    assert [each.free for each in usage(store, pools("10.1.0.0/31"))] == [1]
    assert given(store, pools("10.1.0.0/31"), "b") == ["10.1.0.1"]


def test_release_of_what_is_not_held_is_fine_and_makes_nothing(store: Store, tmp_path: Path) -> None:
    assert release(store, owner("a")) == []
    assert list(tmp_path.iterdir()) == []


def test_release_returns_what_it_released_and_only_the_owners(store: Store) -> None:
    given(store, pools(V4, V6), "a")
    given(store, pools(V4, V6), "b")
    assert texts(release(store, owner("a"))) == ["10.1.0.2", "fd00::2"]
    assert release(store, owner("a")) == []
    assert texts(store.owners()) == ["10.1.0.3", "fd00::3"]


def test_release_waits_for_the_lock_no_longer_than_told(store: Store, tmp_path: Path) -> None:
    given(store, pools(V4), "a")
    with store.locked(), pytest.raises(LockTimeout):
        release(Store(tmp_path, "net", 0.01), owner("a"))


def test_collect_keeps_the_valid_and_legacy_files_of_a_valid_id(store: Store) -> None:
    for name in "abc":
        given(store, pools(V4), name)
    write(store, "10.1.0.5", b"a")
    write(store, "10.1.0.6", b"z")
    write(store, "fd00::5", b"")
    assert texts(collect(store, [owner("a"), owner("b", "net1")])) == [
        "10.1.0.3",
        "10.1.0.4",
        "10.1.0.6",
        "fd00::5",
    ]
    assert texts(store.owners()) == ["10.1.0.2", "10.1.0.5"]
    assert collect(store, [owner("a")]) == []


def test_nobody_valid_means_nothing_stays(store: Store) -> None:
    given(store, pools(V4, V6), "a")
    assert texts(collect(store, [])) == ["10.1.0.2", "fd00::2"]
    assert store.owners() == {}


def test_usage_counts_only_what_can_be_handed_out(store: Store) -> None:
    sets = pools(V4, V6)
    given(store, sets, "a")
    for name in ("10.1.0.1", "10.1.0.7", "10.77.0.1", "notes"):
        write(store, name, b"x\r\ny")
    assert [(each.used, each.free) for each in usage(store, sets)] == [(1, 4), (1, 2**64 - 3)]
    assert [each.range_set for each in usage(store, sets)] == list(sets)


def test_usage_of_no_directory_is_all_free(store: Store) -> None:
    assert [(each.used, each.free) for each in usage(store, pools(V4))] == [(0, 5)]
