"""Crashes and bad disks: kill -9 before every line, a full and a read-only file system.

Run as a script the file is the process that is killed, or the one that lives in a mount
namespace of its own, so that no mount outlives a test whatever happens to it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest
from netaddr import IPAddress

from ipam.allocator import Terms, allocate, collect, held, release, usage
from ipam.errors import StoreUnavailable
from ipam.ranges import make_range, make_range_sets
from ipam.store import Owner, Store, list_networks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

ROOT = Path(__file__).parents[2]
MINE = Owner(container_id="mine", ifname="eth0")
OTHER = Owner(container_id="other", ifname="eth0")
ALL_TERMS = Terms(cool_down=3600, sticky="shop/web-0/eth0", keep_band=True)
# To MINE, which is the first to get any.
GIVEN_FIRST = ("10.1.0.2", "fd00::2")
POOLS = make_range_sets([[make_range(subnet="10.1.0.0/29")], [make_range(subnet="fd00::/64")]])


def run(*arguments: object, prefix: Sequence[str] = ()) -> str:
    done = subprocess.run(
        [*prefix, sys.executable, __file__, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(params=["plain", "all terms"])
def terms(request: pytest.FixtureRequest) -> str:
    return request.param


def test_kill_before_any_line_of_add_leaves_what_the_next_del_removes(tmp_path: Path, terms: str) -> None:
    assert int(run("kill", "allocate", tmp_path, terms)) > 100


def test_kill_before_any_line_of_del_leaves_what_the_next_del_removes(tmp_path: Path, terms: str) -> None:
    assert int(run("kill", "release", tmp_path, terms)) > 50


def test_kill_before_any_line_of_gc_leaves_what_the_next_gc_removes(tmp_path: Path, terms: str) -> None:
    assert int(run("kill", "collect", tmp_path, terms)) > 50


def test_a_full_file_system_reserves_nothing_and_says_so(tmp_path: Path) -> None:
    run("full", tmp_path, prefix=["unshare", "--mount"])
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_file_system_can_be_read_and_says_so(tmp_path: Path) -> None:
    run("read_only", tmp_path, prefix=["unshare", "--mount"])
    assert list(tmp_path.iterdir()) == []


def kill(operation: str, data_dir: Path | str, kind: str) -> None:
    """Run the operation in a child that dies before its first, second, third ... line of ours."""
    terms = Terms() if kind == "plain" else ALL_TERMS
    operate = {
        "allocate": lambda store: allocate(store, POOLS, MINE, terms=terms),
        "release": lambda store: release(store, MINE, terms),
        "collect": lambda store: collect(store, [OTHER], terms),
    }[operation]
    line = 0
    while True:
        store = Store(data_dir, f"net{line}", lock_timeout=1)
        if operation != "allocate":
            allocate(store, POOLS, MINE)
        allocate(store, POOLS, OTHER)
        line += 1
        survived = run_until(line, lambda: operate(store))  # noqa: B023 - it is called at once
        if kind != "plain" and operation != "allocate":
            check_cooldown(store)
        check_reclaimable(store)
        if survived:
            sys.stdout.write(f"{line}\n")
            return


def run_until(line: int, operate: Callable[[], object]) -> bool:
    child = os.fork()
    if child == 0:
        die_before(line)
        operate()
        sys.settrace(None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in {0, -signal.SIGKILL}
    return status == 0


def die_before(line: int) -> None:
    left = line

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal left
        if "/ipam/" not in frame.f_code.co_filename:
            return None
        left -= event == "line"
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def check_cooldown(store: Store) -> None:
    """Whatever was released cools down, though its release did not come to an end."""
    known = {IPAddress(value, version) for version, value in store.cooldown().cooling(3600)}
    released = {IPAddress(each) for each in GIVEN_FIRST} - set(store.owners())
    assert released <= known, (released, known)


def check_reclaimable(store: Store) -> None:
    third = Owner(container_id="third", ifname="eth0")
    owners = store.owners()
    assert set(owners.values()) <= {MINE, OTHER}, owners
    assert len(store.find(OTHER).exact) == 2
    temporaries = [each.name for each in Path(store.temporary).parent.glob("*.new")]
    assert temporaries in ([], [Path(store.temporary).name])
    # A left temporary may be the second name of a live file: the next write must not touch it.
    allocate(store, POOLS, third)
    assert {a: o for a, o in store.owners().items() if o != third} == owners
    assert not Path(store.temporary).exists()
    assert sorted(map(str, release(store, MINE))) == sorted(str(a) for a, o in owners.items() if o == MINE)
    assert len(collect(store, [])) == 4
    assert not store.owners()


def refused(operate: Callable[[], object], *words: str) -> None:
    try:
        operate()
    except StoreUnavailable as error:
        said = str(error)
    else:
        said = "nothing was refused"
    assert all(word in said for word in words), said


def mount(place: str, *options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", *options, "podwire-test", place], check=True)


def full(place: str) -> None:
    mount(place, "-o", "size=64k")
    ballast_file = Path(place, "ballast")
    store = Store(place, "net")
    allocate(store, POOLS, OTHER)
    before = store.owners()
    with ballast_file.open("wb", buffering=0) as ballast:
        refused(lambda: fill(ballast), "No space left on device")
    refused(lambda: allocate(store, POOLS, MINE), "cannot reserve", "No space left on device")
    refused(store.check_writable, "cannot write to", "No space left on device")
    assert store.owners() == before
    assert {each.name for each in Path(place).iterdir()} == {".podwire", "ballast", "net"}
    assert not list(Path(place, ".podwire").iterdir())
    assert len(release(store, OTHER)) == 2
    ballast_file.unlink()
    assert len(allocate(store, POOLS, MINE)) == 2
    # Room for one page: the first set's file fits, the second's does not.
    release(store, MINE)
    with ballast_file.open("wb", buffering=0) as ballast:
        refused(lambda: fill(ballast), "No space left on device")
        os.ftruncate(ballast.fileno(), os.fstat(ballast.fileno()).st_size - 4096)
    refused(lambda: allocate(store, POOLS, MINE), "cannot reserve", "No space left on device")
    assert store.owners() == {}


def fill(ballast: BinaryIO) -> None:
    try:
        while ballast.write(b"x" * 4096):
            pass
    except OSError as error:
        raise StoreUnavailable("fill", ballast.name, error) from error


def read_only(place: str) -> None:
    mount(place)
    store = Store(place, "net")
    made = allocate(store, POOLS, MINE)
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    addresses = sorted(each.address for each in made)
    assert sorted(store.owners()) == sorted(held(store, MINE)) == addresses
    assert [each.used for each in usage(store, POOLS)] == [1, 1]
    assert list_networks(place) == ["net"]
    assert release(store, OTHER) == []
    reason = "Read-only file system"
    refused(lambda: allocate(store, POOLS, OTHER), f"cannot lock {place}/net/lock", reason)
    refused(lambda: allocate(Store(place, "new"), POOLS, OTHER), "cannot lock", reason)
    refused(lambda: release(store, MINE), "cannot lock", reason)
    refused(store.check_writable, "cannot write to", reason)
    refused(Store(f"{place}/not/there", "net").check_writable, f"cannot write to {place}", reason)


if __name__ == "__main__":
    {"kill": kill, "full": full, "read_only": read_only}[sys.argv[1]](*sys.argv[2:])
