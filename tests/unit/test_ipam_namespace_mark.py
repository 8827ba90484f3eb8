"""The mark that says where the holder of an address is joined, and releasing what was seen and no other."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from ipam.allocator import Terms, allocate, give_up
from ipam.boot_mark import NETNS_MARK
from ipam.namespace_mark import list_reservations
from ipam.ranges import make_range, make_range_sets
from ipam.store import Owner, Store

if TYPE_CHECKING:
    from pathlib import Path

    from ipam.namespace_mark import Reservation

SETS = make_range_sets([[make_range(subnet="10.1.0.0/29")], [make_range(subnet="fd00::/64")]])
OWNER = Owner(container_id="a", ifname="eth0")


def reserve(store: Store, owner: Owner = OWNER, netns_mark: str = "here 1") -> list[Reservation]:
    allocate(store, SETS, owner, terms=Terms(netns_mark=netns_mark))
    return list_reservations(store)


def test_a_reservation_says_where_its_holder_is_and_one_without_mark_does_not(tmp_path: Path) -> None:
    store = Store(tmp_path, "net")
    reserve(store)
    reserve(store, Owner(container_id="b", ifname="eth0"), "")
    (tmp_path / "net" / "10.1.0.6").write_bytes(b"go\r\neth0")
    netns_marks = {each.owner.container_id: each.netns_mark for each in list_reservations(store)}
    assert netns_marks == {"a": "here 1", "b": "", "go": ""}
    assert os.getxattr(tmp_path / "net" / "10.1.0.2", NETNS_MARK) == b"here 1"


def test_the_content_stays_what_go_reads(tmp_path: Path) -> None:
    reserve(Store(tmp_path, "net"))
    assert (tmp_path / "net" / "fd00::2").read_bytes() == b"a\r\neth0"


def test_what_was_seen_is_released(tmp_path: Path) -> None:
    store = Store(tmp_path, "net")
    seen = reserve(store)
    reserve(store, Owner(container_id="b", ifname="eth0"))
    assert [str(address) for address in give_up(store, seen)] == ["10.1.0.2", "fd00::2"]
    assert {each.owner.container_id for each in list_reservations(store)} == {"b"}
    assert give_up(store, seen) == []


def test_a_reservation_that_was_made_anew_stays_though_its_owner_is_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path, "net")
    seen = reserve(store)
    kept = tmp_path / "kept"
    kept.hardlink_to(tmp_path / "net" / "10.1.0.2")  # so that the inode's number is not used again
    store.release(OWNER)
    allocate(store, SETS, OWNER, [each.address for each in seen])
    assert give_up(store, seen) == []
    assert len(list_reservations(store)) == 2


def test_one_that_changed_hands_stays(tmp_path: Path) -> None:
    store = Store(tmp_path, "net")
    seen = reserve(store)
    (tmp_path / "net" / "10.1.0.2").write_bytes(b"b\r\neth0")
    assert [str(address) for address in give_up(store, seen)] == ["fd00::2"]


def test_a_copy_has_no_mark(tmp_path: Path) -> None:
    reserve(Store(tmp_path, "net"))
    (tmp_path / "copy").mkdir()
    for path in (tmp_path / "net").iterdir():
        shutil.copyfile(path, tmp_path / "copy" / path.name)
    assert {each.netns_mark for each in list_reservations(Store(tmp_path, "copy"))} == {""}


def test_what_is_no_regular_file_is_passed_over(tmp_path: Path) -> None:
    store = Store(tmp_path, "net")
    reserve(store)
    os.mkfifo(tmp_path / "net" / "10.1.0.5")
    (tmp_path / "net" / "10.1.0.6").symlink_to("10.1.0.2")
    assert [str(each) for each in list_reservations(store)] == ["10.1.0.2", "fd00::2"]


def test_giving_up_nothing_takes_no_lock(tmp_path: Path) -> None:
    assert give_up(Store(tmp_path, "net"), []) == []
    assert not (tmp_path / "net").exists()
