"""The store on real files: host-local's format, its lock, and what a crash or a stranger left."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from netaddr import IPAddress

from ipam.cache import StoreCache
from ipam.errors import InvalidNetwork, LockTimeout, StoreUnavailable
from ipam.store import Owner, Store, list_networks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ONE = Owner(container_id="one", ifname="eth0")
TWO = Owner(container_id="two", ifname="eth0")
A = IPAddress("10.1.0.2")
B = IPAddress("fd00::2")


@pytest.fixture(params=["walks", "cached"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    cache = StoreCache() if request.param == "cached" else None
    return Store(tmp_path / "a" / "networks", "net", lock_timeout=5, cache=cache)


@pytest.fixture
def directory(store: Store) -> Path:
    """Return the network's directory as it is after a first ADD and DEL."""
    with store.locked():
        store.reserve(A, ONE)
        store.release(ONE)
    return Path(store.directory)


def write(path: str | Path, content: bytes = b"") -> None:
    Path(path).write_bytes(content)


def read(path: str | Path) -> bytes:
    return Path(path).read_bytes()


def tree(root: str | Path) -> list[str]:
    return sorted(map(str, Path(root).rglob("*")))


def mode(path: str | Path) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def test_files_have_the_reference_form(store: Store) -> None:
    with umask(0), store.locked():
        assert store.reserve(A, ONE)
        assert store.reserve(B, ONE)
        store.set_last_reserved(1, B)
    assert read(f"{store.directory}/10.1.0.2") == b"one\r\neth0"
    assert read(f"{store.directory}/fd00::2") == b"one\r\neth0"
    assert read(f"{store.directory}/last_reserved_ip.1") == b"fd00::2"
    assert read(f"{store.directory}/lock") == b""
    assert {mode(each) for each in Path(store.directory).iterdir()} == {0o600}
    assert mode(store.directory) == mode(Path(store.directory).parent) == 0o755
    assert not Path(store.temporary).exists()


def test_making_a_store_and_releasing_from_none_touches_nothing(store: Store, tmp_path: Path) -> None:
    assert store.release(ONE) == []
    assert store.owners() == {}
    assert store.last_reserved(0) is None
    assert tree(tmp_path) == []


def test_a_taken_address_is_not_reserved_again(store: Store) -> None:
    with store.locked():
        assert store.reserve(A, ONE)
        assert not store.reserve(A, TWO)
        assert not store.reserve(A, ONE)
    assert store.owner_of(A) == ONE


def test_an_empty_file_is_debris_and_reclaimed(store: Store, directory: Path) -> None:
    write(directory / "10.1.0.2")
    assert store.find(ONE).first_free(4, int(A), int(A)) == int(A)
    with store.locked():
        assert store.reserve(A, ONE)
    assert read(directory / "10.1.0.2") == b"one\r\neth0"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/nowhere")])
def test_what_is_no_file_blocks_its_address_and_harms_nothing(
    store: Store, directory: Path, make: Callable[[Path], None]
) -> None:
    make(directory / "10.1.0.2")
    with store.locked():
        assert not store.reserve(A, ONE)
        assert store.reserve(B, ONE)
        assert store.find(ONE).addresses == (B,)
        assert store.release(ONE) == [B]
    assert store.owners() == {}


def test_foreign_files_neither_count_nor_go(store: Store, directory: Path) -> None:
    strangers = [
        "notes",
        "beef",
        "10.1.0.2.bak",
        "FD00::2",
        "10.1.0.02",
        "last_reserved_ip.x",
        "::ffff:10.1.0.2",
    ]
    for name in (*strangers, os.fsdecode(b"\xff\xfe")):
        write(directory / name, ONE.content)
    (directory / "sub").mkdir()
    write(directory / "sub/10.1.0.9", ONE.content)
    before = tree(store.directory)
    with store.locked():
        assert store.release(ONE) == []
    assert store.owners() == {}
    assert store.reserved() == []
    assert tree(store.directory) == before


def test_the_temporary_of_a_crash_is_replaced_and_not_truncated(store: Store, directory: Path) -> None:
    """Killed between link(2) and unlink(2), the temporary is the address file's second name."""
    with store.locked():
        assert store.reserve(A, ONE)
        os.link(directory / "10.1.0.2", store.temporary)
        assert store.reserve(B, TWO)
    assert store.owners() == {A: ONE, B: TWO}
    assert not Path(store.temporary).exists()


def test_release_takes_exact_files_and_else_legacy_ones(store: Store, directory: Path) -> None:
    write(directory / "10.1.0.3", b"one")
    write(directory / "10.1.0.4", b" one\n")
    other = Owner(container_id="one", ifname="net1")
    with store.locked():
        store.reserve(A, ONE)
        store.reserve(B, other)
        assert store.release(ONE) == [A]
        assert sorted(store.release(ONE)) == [IPAddress("10.1.0.3"), IPAddress("10.1.0.4")]
        assert store.release(ONE) == []
    assert store.owners() == {B: other}


def test_release_believes_an_earlier_search_only_after_reading_again(store: Store) -> None:
    with store.locked():
        store.reserve(A, TWO)
        assert store.release(ONE, among=[A, B]) == []
    assert store.owners() == {A: TWO}


def test_legacy_and_empty_files_have_owners_without_names(store: Store, directory: Path) -> None:
    write(directory / "10.1.0.3", b"old\n")
    write(directory / "10.1.0.4")
    write(directory / "10.1.0.5", b"new\r\neth0\r\n")
    assert store.owners() == {
        IPAddress("10.1.0.3"): Owner(container_id="old", ifname=""),
        IPAddress("10.1.0.4"): Owner(container_id="", ifname=""),
        IPAddress("10.1.0.5"): Owner(container_id="new", ifname="eth0"),
    }


def test_an_id_longer_than_one_read_is_found(store: Store) -> None:
    long = Owner(container_id="x" * 1024, ifname="eth0")
    with store.locked():
        store.reserve(A, long)
        assert store.find(Owner(container_id="x" * 1023, ifname="eth0")).addresses == ()
        assert store.release(long) == [A]


@pytest.mark.parametrize("content", [b"", b"10.1.0.9\n", b"garbage", b"\xff", b"10.1.0.9/24"])
def test_garbage_in_a_pointer_is_no_last_address(store: Store, directory: Path, content: bytes) -> None:
    write(directory / "last_reserved_ip.0", content)
    assert store.last_reserved(0) is None


def test_a_pointer_is_read_back_and_replaced(store: Store) -> None:
    with store.locked():
        for address in (A, B):
            store.set_last_reserved(0, address)
            assert store.last_reserved(0) == address
    assert not Path(store.temporary).exists()


def test_waiting_for_the_lock_ends_with_path_and_seconds(store: Store, directory: Path) -> None:
    with (directory / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        began = time.monotonic()
        with pytest.raises(LockTimeout) as caught, Store(*os.path.split(store.directory), 0.05).locked():
            pytest.fail("two holders")
    assert 0.05 <= time.monotonic() - began < 1
    assert (
        str(caught.value) == f"lock {store.directory}/lock: wanted within 0.05 s, found held by another call"
    )


def test_the_lock_file_stays_the_same(store: Store, directory: Path) -> None:
    before = (directory / "lock").stat()
    for _ in range(3):
        with store.locked():
            assert (directory / "lock").stat().st_ino == before.st_ino
    after = (directory / "lock").stat()
    assert (after.st_ino, after.st_nlink, after.st_size) == (before.st_ino, 1, 0)


def test_an_exception_frees_the_lock(store: Store) -> None:
    with pytest.raises(KeyError), store.locked():
        raise KeyError
    with store.locked():
        pass


def test_a_file_in_place_of_the_directory_is_named(tmp_path: Path) -> None:
    write(tmp_path / "net")
    store = Store(tmp_path, "net")
    for refused in (lambda: store.locked().__enter__(), store.owners, store.check_writable, store.reserved):
        with pytest.raises(StoreUnavailable, match=r"cannot .*/net.*: Not a directory"):
            refused()


def test_an_unwritable_place_is_named_with_the_systems_reason(tmp_path: Path) -> None:
    write(tmp_path / "file")
    with pytest.raises(StoreUnavailable) as caught:
        Store(tmp_path / "file" / "networks", "net").check_writable()
    assert str(caught.value) == f"cannot write to {tmp_path}/file: Not a directory"


@pytest.mark.parametrize("populated", [False, True])
def test_asking_whether_it_is_writable_leaves_nothing(store: Store, tmp_path: Path, populated: bool) -> None:
    if populated:
        with store.locked():
            store.reserve(A, ONE)
    before = tree(tmp_path)
    store.check_writable()
    assert tree(tmp_path) == before


def test_a_relative_data_dir_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("networks", "net")
    store.check_writable()
    with store.locked():
        assert store.reserve(A, ONE)
    assert (tmp_path / "networks" / "net" / "10.1.0.2").read_bytes() == ONE.content


def test_networks_are_listed_without_dot_names_and_files(tmp_path: Path) -> None:
    assert list_networks(tmp_path / "none") == []
    for name in ("b", "a", ".podwire"):
        (tmp_path / name).mkdir()
    write(tmp_path / "file")
    assert list_networks(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("name", ["", ".", "..", ".podwire", "a/b", "/", "a\0"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidNetwork, match="network name: wanted a name without '/'"):
        Store(tmp_path, name)
