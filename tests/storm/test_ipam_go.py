"""One directory, two implementations at the same time: ours and the Go `host-local`.

Run as a script the file is the worker: it forks one process for each allocation or release of
ours, so that every call is a process of its own as it is on a node, without the start of Python;
or it has a thread for each and a cache, as the agent does.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ipam.allocator import allocate, release
from ipam.cache import StoreCache
from ipam.errors import LockTimeout
from ipam.ranges import make_range, make_range_sets
from ipam.store import Owner, Store

if TYPE_CHECKING:
    from ipam.ranges import RangeSet

ROOT = Path(__file__).parents[2]
GO = "/usr/lib/cni/host-local"
SUBNETS = ("10.1.0.0/16", "fd00::/64")
EACH = 100
AT_ONCE = 8


def range_sets() -> tuple[RangeSet, ...]:
    return make_range_sets([[make_range(subnet=each)] for each in SUBNETS])


def owner(name: str) -> Owner:
    return Owner(container_id=name, ifname="eth0")


def go(command: str, data_dir: Path | str, name: str) -> subprocess.Popen[bytes]:
    """Start the reference plugin on the same directory."""
    ranges = [[{"subnet": each}] for each in SUBNETS]
    ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(data_dir)}
    config = {"cniVersion": "0.4.0", "name": "net", "ipam": ipam}
    process = subprocess.Popen(
        [GO],
        env={
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": "/var/run/netns/none",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/usr/lib/cni",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    process.stdin.write(json.dumps(config).encode())
    process.stdin.close()
    return process


def go_to_end(command: str, data_dir: Path | str, name: str) -> list[str]:
    with go(command, data_dir, name) as process:
        answer = process.stdout.read()
    assert process.returncode == 0, answer
    return [each["address"].split("/")[0] for each in json.loads(answer or b"{}").get("ips", ())]


def all_go(command: str, data_dir: Path | str, names: list[str]) -> list[list[str]]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda name: go_to_end(command, data_dir, name), names))


def start_ours(
    command: str, data_dir: Path | str, names: list[str], each: str = "processes"
) -> subprocess.Popen[bytes]:
    worker = [sys.executable, __file__, each, command, str(data_dir), *names]
    return subprocess.Popen(worker, env={**os.environ, "PYTHONPATH": str(ROOT)})


def names(prefix: str) -> list[str]:
    return [f"{prefix}{number:063x}" for number in range(EACH)]


def addresses(data_dir: Path | str) -> dict[str, Path]:
    files = (data_dir / "net").iterdir()
    return {each.name: each for each in files if each.name[0] in "1f"}


@pytest.mark.parametrize("each", ["processes", "threads"])
def test_two_hundred_calls_half_of_them_go_share_a_directory(tmp_path: Path, each: str) -> None:
    ours, theirs = names("a"), names("b")
    go_to_end("ADD", tmp_path, "first")
    go_to_end("DEL", tmp_path, "first")
    lock = (tmp_path / "net" / "lock").stat()

    with start_ours("add", tmp_path, ours, each) as worker:
        reported = all_go("ADD", tmp_path, theirs)
    assert worker.returncode == 0
    held = addresses(tmp_path)
    assert len(held) == 2 * 2 * EACH
    contents = sorted(each.read_bytes() for each in held.values())
    assert contents == sorted(f"{name}\r\neth0".encode() for name in [*ours, *theirs] * 2)
    for name, pair in zip(theirs, reported, strict=True):
        assert {held[address].read_bytes() for address in pair} == {f"{name}\r\neth0".encode()}

    with start_ours("del", tmp_path, theirs, each) as worker:
        all_go("DEL", tmp_path, ours)
    assert worker.returncode == 0
    assert addresses(tmp_path) == {}
    now = (tmp_path / "net" / "lock").stat()
    assert (now.st_ino, now.st_nlink, now.st_size) == (lock.st_ino, 1, 0)
    assert list((tmp_path / ".podwire").iterdir()) == []


def test_both_continue_where_the_other_stopped(tmp_path: Path) -> None:
    store = Store(tmp_path, "net")
    mine = [str(each.address) for each in allocate(store, range_sets(), owner("a"))]
    assert mine == ["10.1.0.2", "fd00::2"]
    assert go_to_end("ADD", tmp_path, "b") == ["10.1.0.3", "fd00::3"]
    mine = [str(each.address) for each in allocate(store, range_sets(), owner("c"))]
    assert mine == ["10.1.0.4", "fd00::4"]
    assert go_to_end("CHECK", tmp_path, "c") == []


def test_go_waits_for_our_lock(tmp_path: Path) -> None:
    store = Store(tmp_path, "net")
    with store.locked():
        process = go("ADD", tmp_path, "b")
        time.sleep(0.3)
        assert process.poll() is None
        assert addresses(tmp_path) == {}
    with process:
        process.stdout.read()
    assert process.returncode == 0
    assert len(addresses(tmp_path)) == 2


def test_we_wait_for_the_lock_of_go(tmp_path: Path) -> None:
    """Go reads every name under its lock, so a FIFO keeps it there for as long as we like."""
    store = Store(tmp_path, "net", lock_timeout=0.2)
    allocate(store, range_sets(), owner("a"))
    fifo = tmp_path / "net" / "10.1.9.9"
    os.mkfifo(fifo)
    process = go("DEL", tmp_path, "b")
    writer = os.open(fifo, os.O_WRONLY)  # returns when Go reads
    try:
        release(store, owner("a"))
    except LockTimeout:
        waited = True
    else:
        waited = False
    fifo.unlink()
    os.close(writer)
    with process:
        process.stdout.read()
    assert waited
    assert process.returncode == 0
    assert len(release(store, owner("a"))) == 2


def test_an_observer_never_sees_an_empty_address_file(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    looks, empty, done = [], [], threading.Event()

    def observe() -> None:
        while not done.is_set():
            looks.append(len(found := addresses(tmp_path)))
            for each in found.values():
                try:
                    status = each.stat()
                except FileNotFoundError:
                    continue
                if not status.st_size or stat.S_IMODE(status.st_mode) != 0o600:
                    empty.append(each)

    observer = threading.Thread(target=observe)
    observer.start()
    try:
        for command in ("add", "del"):
            with start_ours(command, tmp_path, names("a")) as worker:
                pass
            assert worker.returncode == 0
    finally:
        done.set()
        observer.join()
    assert empty == []
    assert max(looks) > 1
    assert addresses(tmp_path) == {}


def work(command: str, data_dir: Path | str, name: str, cache: StoreCache | None = None) -> None:
    store = Store(data_dir, "net", lock_timeout=60, cache=cache)
    if command == "add":
        assert len(allocate(store, range_sets(), owner(name))) == len(SUBNETS)
    else:
        assert len(release(store, owner(name))) == len(SUBNETS)


def in_processes(command: str, data_dir: Path | str, *todo: str) -> int:
    running, failed = 0, 0
    for name in (*todo, *[None] * AT_ONCE):
        if name is None or running == AT_ONCE:
            failed |= os.wait()[1] if running else 0
            running -= 1 if running else 0
        if name is not None:
            running += 1
            if os.fork() == 0:
                work(command, data_dir, name)
                os._exit(0)
    return 1 if failed else 0


def in_threads(command: str, data_dir: Path | str, *todo: str) -> int:
    cache = StoreCache()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: work(command, data_dir, name, cache), todo))
    return 0


if __name__ == "__main__":
    sys.exit({"processes": in_processes, "threads": in_threads}[sys.argv[1]](*sys.argv[2:]))
