"""What a process remembers of a directory equals what is there, whoever wrote to it in between.

Run as a script the file is the second process, which has a memory of its own and does what it reads.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ipam.allocator import allocate, release
from ipam.cache import StoreCache
from ipam.errors import IPAMError, LockTimeout, PoolExhausted
from ipam.ranges import make_range, make_range_sets
from ipam.store import Owner, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
GO = "/usr/lib/cni/host-local"
SUBNETS = ("10.1.0.0/27", "fd00::/123")
POOLS = make_range_sets([[make_range(subnet=each)] for each in SUBNETS])
SPANS = ((4, 10 << 24 | 1 << 16), (6, 0xFD << 120))
NAMES = [f"pod{number}" for number in range(12)]


def owner(name: str) -> Owner:
    return Owner(container_id=name, ifname="eth0")


def remembering(tmp_path: Path) -> Store:
    """Return a store whose directory has been looked at, so that the next look learns it."""
    store = Store(tmp_path, "net", lock_timeout=5, cache=StoreCache())
    allocate(store, POOLS, owner("first"))
    allocate(store, POOLS, owner("second"))
    return store


def seen(store: Store) -> tuple[list[object], list[int | None]]:
    """Return all that a search can tell: what these hold and which single addresses are free."""
    found = [store.find(owner(name)) for name in (*NAMES, "first", "second", "old")]
    held = [(sorted(each.exact), sorted(each.legacy)) for each in found]
    free = found[0].first_free
    return held, [free(version, base + n, base + n) for version, base in SPANS for n in range(32)]


def assert_true(store: Store) -> None:
    """Compare what is remembered with a walk."""
    assert seen(store) == seen(Store(*os.path.split(store.directory)))


def go(command: str, data_dir: Path, name: str) -> None:
    ranges = [[{"subnet": each}] for each in SUBNETS]
    ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(data_dir)}
    config = json.dumps({"cniVersion": "0.4.0", "name": "net", "ipam": ipam})
    environ = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": name,
        "CNI_NETNS": "/var/run/netns/none",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/usr/lib/cni",
    }
    # Refusals are part of the game: a duplicate, or a pool that is full.
    subprocess.run([GO], env=environ, input=config.encode(), capture_output=True, check=False)


def ours(command: str, store: Store, name: str) -> str:
    try:
        made = (
            [each.address for each in allocate(store, POOLS, owner(name))]
            if command == "ADD"
            else release(store, owner(name))
        )
    except IPAMError as error:
        return type(error).__name__
    return " ".join(sorted(map(str, made)))


@contextmanager
def second_process(data_dir: Path) -> Iterator[Callable[[str, str], str]]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    command = [sys.executable, __file__, str(data_dir)]
    with subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:

        def ask(verb: str, name: str) -> str:
            process.stdin.write(f"{verb} {name}\n")
            return process.stdout.readline().rstrip("\n")

        yield ask
        process.stdin.close()
    assert process.returncode == 0


def serve(data_dir: str) -> None:
    cache = StoreCache()
    for line in sys.stdin:
        verb, name = line.split()
        answer = ours(verb, Store(data_dir, "net", cache=cache), name)
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


def spoil(chance: random.Random, directory: Path) -> None:
    """Do to one file what an operator or a crash may do, without the lock."""
    some = directory / f"10.1.0.{chance.randrange(2, 30)}"
    content = chance.choice(
        [owner(chance.choice(NAMES)).content, chance.choice(NAMES).encode(), b"old", b"old\n"]
    )
    kind = chance.choice(["rm", "rm", "write", "debris", "replace", "move", "directory"])
    if some.is_dir():
        some.rmdir()
    elif kind == "rm":
        some.unlink(missing_ok=True)
    elif kind in {"write", "debris"}:
        some.write_bytes(content if kind == "write" else b"")
    elif kind == "replace":
        beside = directory.parent / "beside"
        beside.write_bytes(content)
        beside.rename(some)
    elif kind == "move" and some.exists():
        some.rename(directory / chance.choice(["notes", "10.1.0.30", "fd00::1e", "FD00::2"]))
    elif kind == "directory" and not some.exists():
        some.mkdir()


@pytest.mark.parametrize("seed", range(6))
def test_it_equals_a_walk_after_whatever_happened_between_two_calls(tmp_path: Path, seed: int) -> None:
    chance, store = random.Random(seed), remembering(tmp_path)
    with second_process(tmp_path) as other:
        for _ in range(150):
            verb, name = chance.choice(["ADD", "DEL"]), chance.choice(NAMES)
            for who in chance.choices(["we", "go", "other", "operator"], k=chance.randrange(1, 4)):
                if who == "we":
                    ours(verb, store, name)
                elif who == "go":
                    go(verb, tmp_path, name)
                elif who == "other":
                    other(verb, name)
                else:
                    spoil(chance, Path(store.directory))
            assert_true(store)


def test_what_go_gave_and_took_in_between_is_known_at_the_next_call(tmp_path: Path) -> None:
    store = remembering(tmp_path)
    go("ADD", tmp_path, "pod1")
    assert ours("ADD", store, "pod1") == "DuplicateAllocation"
    assert ours("ADD", store, "pod2") == "10.1.0.5 fd00::5"
    assert ours("DEL", store, "pod1") == "10.1.0.4 fd00::4"
    go("DEL", tmp_path, "pod2")
    assert ours("DEL", store, "pod2") == ""


def test_a_file_that_was_rewritten_in_place_belongs_to_whom_it_names(tmp_path: Path) -> None:
    store = remembering(tmp_path)
    before = Path(store.directory).stat()
    for name in ("pod1", "pod2"):
        Path(store.directory, "10.1.0.2").write_bytes(owner(name).content)
        assert_true(store)
    assert Path(store.directory).stat().st_mtime_ns == before.st_mtime_ns
    assert ours("DEL", store, "first") == "fd00::2"
    assert ours("DEL", store, "pod2") == "10.1.0.2"


def test_a_directory_that_was_removed_and_made_again_is_another(tmp_path: Path) -> None:
    store = remembering(tmp_path)
    shutil.rmtree(store.directory)
    assert_true(store)
    assert ours("DEL", store, "first") == ""
    go("ADD", tmp_path, "pod1")
    assert_true(store)
    assert ours("ADD", store, "pod2") == "10.1.0.3 fd00::3"


def test_a_directory_that_took_the_place_of_another_is_what_counts(tmp_path: Path) -> None:
    store = remembering(tmp_path)
    there, aside = Path(store.directory), tmp_path / "aside"
    there.rename(aside)
    assert_true(store)
    go("ADD", tmp_path, "pod1")
    assert_true(store)
    (tmp_path / "net").rename(tmp_path / "later")
    aside.rename(there)
    (aside := there / "10.1.0.2").unlink()
    assert_true(store)
    assert ours("DEL", store, "first") == "fd00::2"


def test_what_the_kernel_could_not_queue_is_walked_again(tmp_path: Path) -> None:
    store = remembering(tmp_path)
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    directory = Path(store.directory)
    for _ in range(most // 2 + 1):
        (directory / "a").touch()
        (directory / "a").unlink()
    go("ADD", tmp_path, "pod1")
    assert_true(store)
    assert ours("DEL", store, "pod1") == "10.1.0.4 fd00::4"


def test_what_is_remembered_may_be_lost_at_any_moment(tmp_path: Path) -> None:
    store = remembering(tmp_path)
    for name in NAMES:
        ours("ADD", store, name)
        assert_true(store)
        store = Store(tmp_path, "net", cache=StoreCache())
        assert_true(store)


def test_a_full_pool_and_the_one_address_that_comes_free(tmp_path: Path) -> None:
    store = remembering(tmp_path)
    while (said := ours("ADD", store, f"many{time.monotonic_ns()}")) != "PoolExhausted":
        assert said
    with pytest.raises(PoolExhausted):
        allocate(store, POOLS, owner("pod1"))
    for free, make in (("10.1.0.2", Path.unlink), ("10.1.0.9", lambda path: path.write_bytes(b""))):
        make(Path(store.directory, free))
        made = allocate(store, POOLS[:1], owner("pod1"))
        assert [str(each.address) for each in made] == [free]
        assert ours("ADD", store, "pod2") == "PoolExhausted"
        release(store, owner("pod1"))
        Path(store.directory, free).write_bytes(b"somebody")


def test_where_nothing_can_be_watched_it_walks(tmp_path: Path) -> None:
    """A machine's inotify instances may be used up; in a user namespace that is said of it alone."""
    deny = "echo 0 > /proc/sys/user/max_inotify_instances && exec "
    script = f'{deny} "$@"'
    lines = "".join(f"{verb} {name}\n" for verb in ("ADD", "DEL") for name in NAMES)
    done = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "sh",
            "-c",
            script,
            "sh",
            sys.executable,
            __file__,
            tmp_path,
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=lines,
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = [f"10.1.0.{n} fd00::{n:x}" for n in range(2, 14)]
    assert done.stdout.splitlines() == [*wanted, *wanted]


def test_of_many_directories_those_used_last_are_watched(tmp_path: Path) -> None:
    cache, before = StoreCache(), len(watches())
    for _ in range(2):
        for number in range(40):
            store = Store(tmp_path, f"net{number}", cache=cache)
            for name in ("first", "second"):
                allocate(store, POOLS, owner(name))
                release(store, owner(name))
    assert len(watches()) - before == 16


def test_more_addresses_than_are_to_be_remembered_push_out_the_oldest(tmp_path: Path) -> None:
    cache = StoreCache(addresses=len(NAMES))
    stores = [Store(tmp_path, f"net{number}", cache=cache) for number in range(3)]
    for store in stores:
        for name in NAMES:
            allocate(Store(*os.path.split(store.directory), cache=cache), POOLS, owner(name))
    assert [cache.of(each.directory).count() > len(NAMES) for each in reversed(stores)] == [
        True,
        False,
        False,
    ]


def watches() -> list[str]:
    told = [path.read_text() for path in list(Path("/proc/self/fdinfo").iterdir()) if path.exists()]
    return [each for each in told if "inotify" in each]


def test_threads_of_one_process_give_every_address_once(tmp_path: Path) -> None:
    pools = make_range_sets([[make_range(subnet="10.1.0.0/22")]])
    cache = StoreCache()
    names = [f"many{number}" for number in range(400)]

    def add(name: str) -> str:
        store = Store(tmp_path, "net", cache=cache)
        (made,) = allocate(store, pools, owner(name))
        return str(made.address)

    with ThreadPoolExecutor(16) as pool:
        given = list(pool.map(add, names))
        assert len(set(given)) == len(names)
        released = list(
            pool.map(lambda name: release(Store(tmp_path, "net", cache=cache), owner(name)), names)
        )
    assert [str(each) for (each,) in released] == given
    assert Store(tmp_path, "net").owners() == {}


def test_a_thread_waits_for_its_turn_no_longer_than_told(tmp_path: Path) -> None:
    cache = StoreCache()
    with Store(tmp_path, "net", cache=cache).locked(), ThreadPoolExecutor(1) as pool:
        waiting = Store(tmp_path, "net", lock_timeout=0.1, cache=cache)
        began = time.monotonic()
        with pytest.raises(LockTimeout, match=r"net/lock: wanted within 0\.1 s"):
            pool.submit(allocate, waiting, POOLS, owner("pod1")).result()
        assert 0.1 <= time.monotonic() - began < 2


def test_a_search_that_is_remembered_reads_no_other_files(tmp_path: Path) -> None:
    """A walk of 5,000 files takes 20 ms, what is remembered a tenth of one."""
    store = remembering(tmp_path)
    for number in range(5000):
        Path(store.directory, f"10.2.{number // 250}.{number % 250}").write_bytes(b"%d\r\neth0" % number)
    store.find(owner("first"))
    walking = Store(tmp_path, "net")
    fastest = {each: min(timed(each) for _ in range(5)) for each in (store, walking)}
    assert fastest[store] < fastest[walking] / 10


def timed(store: Store) -> float:
    began = time.perf_counter()
    assert len(store.find(owner("first")).addresses) == 2
    return time.perf_counter() - began


if __name__ == "__main__":
    serve(sys.argv[1])
