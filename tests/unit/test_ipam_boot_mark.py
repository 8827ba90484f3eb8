"""What an earlier boot of the machine has left: proven by a mark on the file, and by nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from netaddr import IPAddress

from ipam import boot_mark
from ipam.allocator import Allocation, Terms, allocate, reclaim, release, usage
from ipam.cache import StoreCache
from ipam.errors import AddressTaken, DuplicateAllocation, PoolCooling, PoolExhausted
from ipam.ranges import make_range, make_range_sets
from ipam.store import Owner, Store

ROOT = Path(__file__).parents[2]
OLD = Owner(container_id="old", ifname="eth0")
NEW = Owner(container_id="new", ifname="eth0")
OTHER = Owner(container_id="other", ifname="eth0")
# Two addresses: .2 and .3
POOL = make_range_sets([[make_range(subnet="10.1.0.0/29", range_end="10.1.0.3")]])
A, B = IPAddress("10.1.0.2"), IPAddress("10.1.0.3")
STICKY = Terms(sticky="shop/web-0/eth0")


@pytest.fixture(params=["walks", "cached"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    cache = StoreCache() if request.param == "cached" else None
    return Store(tmp_path / "networks", "net", lock_timeout=5, cache=cache)


def path_of(store: Store, address: IPAddress) -> Path:
    return Path(store.directory, str(address))


def age(store: Store, *addresses: IPAddress) -> None:
    """Make these files what they would be if they were on the disk when the machine was started."""
    for address in addresses:
        os.setxattr(path_of(store, address), boot_mark.BOOT_MARK, b"1b4e28ba-2fa1-11d2-883f-b9a761bde3fb")


def unmark(store: Store, address: IPAddress) -> None:
    """Make the file what Go would have written."""
    os.removexattr(path_of(store, address), boot_mark.BOOT_MARK)


def given(made: list[Allocation]) -> list[IPAddress]:
    return [each.address for each in made]


def test_a_reservation_is_marked_with_this_boot_and_its_content_is_gos(store: Store) -> None:
    allocate(store, POOL, NEW)
    assert (
        os.getxattr(path_of(store, A), boot_mark.BOOT_MARK) == Path(boot_mark._BOOT_ID).read_bytes().strip()
    )
    assert path_of(store, A).read_bytes() == b"new\r\neth0"
    assert boot_mark.find_dead(store) == []


def test_what_a_dead_boot_left_is_given_when_nothing_else_is_free(store: Store) -> None:
    allocate(store, POOL, OLD)
    age(store, A)
    assert given(allocate(store, POOL, NEW)) == [B]
    assert boot_mark.find_dead(store) == [A]
    assert given(allocate(store, POOL, OTHER)) == [A]
    assert store.owners() == {A: OTHER, B: NEW}
    # The runtime's late word about the container of the dead boot.
    assert release(store, OLD) == []
    with pytest.raises(PoolExhausted):
        allocate(store, POOL, OLD)
    assert store.owners() == {A: OTHER, B: NEW}


def test_what_has_no_mark_is_kept_and_proven_dead_one_boot_later(store: Store) -> None:
    for each in (OLD, OTHER):
        allocate(store, POOL, each)
    unmark(store, A)
    for _ in range(2):
        with pytest.raises(PoolExhausted):
            allocate(store, POOL, NEW)
    assert os.getxattr(path_of(store, A), boot_mark.BOOT_MARK) == boot_mark.current()
    age(store, A)
    assert given(allocate(store, POOL, NEW)) == [A]


def test_a_container_that_is_started_again_after_a_boot_needs_no_del(store: Store) -> None:
    allocate(store, POOL, OLD)
    with pytest.raises(DuplicateAllocation):
        allocate(store, POOL, OLD)
    age(store, A)
    assert given(allocate(store, POOL, OLD)) == [B]
    assert store.owners() == {B: OLD}


def test_a_requested_address_of_a_dead_boot_is_given_and_a_living_one_is_not(store: Store) -> None:
    allocate(store, POOL, OLD)
    with pytest.raises(AddressTaken):
        allocate(store, POOL, NEW, [A])
    age(store, A)
    assert given(allocate(store, POOL, NEW, [A])) == [A]


def test_a_sticky_name_gets_back_what_its_pod_of_the_dead_boot_holds(store: Store) -> None:
    allocate(store, POOL, OLD, terms=STICKY)
    age(store, A)
    assert given(allocate(store, POOL, NEW, terms=STICKY)) == [A]


def test_addresses_of_a_dead_boot_rest_since_this_one_began(store: Store) -> None:
    for each in (OLD, OTHER):
        allocate(store, POOL, each)
    age(store, A, B)
    with pytest.raises(PoolCooling):
        allocate(store, POOL, NEW, terms=Terms(cool_down=int(boot_mark.uptime()) + 3600))
    assert store.owners() == {}
    assert given(allocate(store, POOL, NEW, terms=Terms(cool_down=int(boot_mark.uptime()) // 2))) == [A]


def test_a_full_pool_of_a_dead_boot_is_reported_free(store: Store) -> None:
    for each in (OLD, OTHER):
        allocate(store, POOL, each)
    assert [each.free for each in usage(store, POOL)] == [0]
    age(store, B)
    assert [each.free for each in usage(store, POOL)] == [1]


@pytest.mark.parametrize("content", [b"", b"\0" * 14, b"ol", b"old\r\n", b"\xff\xfe garbage\n\n"])
def test_whatever_a_power_cut_left_in_a_file_its_address_is_not_lost(store: Store, content: bytes) -> None:
    for each in (OLD, OTHER):
        allocate(store, POOL, each)
    path_of(store, A).write_bytes(content)
    age(store, A)
    assert given(allocate(store, POOL, NEW)) == [A]


def test_reclaim_releases_all_of_a_dead_boot_and_marks_the_rest(store: Store) -> None:
    for each in (OLD, OTHER):
        allocate(store, POOL, each)
    age(store, A)
    unmark(store, B)
    assert reclaim(store) == [A]
    assert store.owners() == {B: OTHER}
    assert os.getxattr(path_of(store, B), boot_mark.BOOT_MARK) == boot_mark.current()
    assert reclaim(store) == []


def test_a_store_that_is_not_there_has_nothing_of_a_dead_boot(store: Store) -> None:
    assert (boot_mark.find_dead(store), reclaim(store)) == ([], [])
    assert not Path(store.directory).exists()


def test_only_a_file_system_of_this_machine_alone_proves_a_boot_over() -> None:
    assert boot_mark._is_local(str(ROOT))
    # Where another kernel may be at work, or nobody knows.
    for place in ("/proc", "/sys", "/nowhere"):
        assert not boot_mark._is_local(place)
