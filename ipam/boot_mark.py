r"""The boot mark: in which boot of this machine a reservation was made.

    getfattr -n user.podwire.boot <data_dir>/<network>/<address>

An extended attribute of the address file, beside the content that is Go's. No network namespace outlives
the kernel that made it, so what was reserved under another boot id is free, whoever reserved it and
whatever a power cut has left in the file. Nothing else proves that: a clock jumps, and a file without a
mark (Go's, or of a file system without attributes) may belong to a living pod. So a file without one is
marked when it is seen, and is proven dead one boot later.
"""
# Plain os calls, as in files.py.
# ruff: noqa: PTH116, PTH120, PTH123

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from time import CLOCK_BOOTTIME, clock_gettime
from typing import TYPE_CHECKING, Final

from ipam import files
from ipam.address import parse_address, render_address
from ipam.errors import StoreUnavailable
from ipam.seam import step

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from netaddr import IPAddress

    from ipam.store import Store

BOOT_MARK: Final = "user.podwire.boot"
NETNS_MARK: Final = "user.podwire.netns"
_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
# Of these one kernel alone has a directory mounted; on others a boot that is not ours may be a neighbour's.
_LOCAL: Final = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "reiserfs", "tmpfs", "xfs", "zfs"}
)


@cache
def current() -> bytes:
    """Return the kernel's boot id; nothing where a container manager has put one of its own over it."""
    with suppress(OSError):
        found, is_kernels = _read_boot_id()
        return found if is_kernels else b""
    return b""


def boot_id() -> str:
    """Return the boot id as it stands in /proc, whoever put it there."""
    return _read_boot_id()[0].decode()


@cache
def _read_boot_id() -> tuple[bytes, bool]:
    # Unbuffered: a text file would import its codec, which costs a process of one call more than the read.
    with open(_BOOT_ID, "rb", buffering=0) as file:
        is_kernels = os.fstat(file.fileno()).st_dev == os.stat("/proc/self").st_dev
        return file.read().strip(), is_kernels


def mark(file: int | str, netns_mark: str = "") -> None:
    """Mark a file with this boot, and with a network namespace (see `namespace_mark`); 2 microseconds each.

    Without the marks nothing can prove it dead.
    """
    with suppress(OSError):
        step("mark", os.setxattr, file, BOOT_MARK, current())
        if netns_mark:
            step("mark", os.setxattr, file, NETNS_MARK, os.fsencode(netns_mark))


def is_dead(path: str) -> bool:
    """Tell whether the file is of a boot that is over; what cannot be told is no."""
    marked = _mark_of(path)
    return bool(marked and current() and marked != current()) and _is_local(os.path.dirname(path))


def _mark_of(path: str) -> bytes:
    with suppress(OSError):
        return os.getxattr(path, BOOT_MARK, follow_symlinks=False)
    return b""


def find_dead(store: Store) -> list[IPAddress]:
    """Return the reserved addresses of boots that are over; needs neither the lock nor write access."""
    if not current() or not _is_local(store.directory):
        return []
    return sorted(address for address, marked in _marks(store) if marked not in {b"", current()})


def remove(store: Store, addresses: Iterable[IPAddress]) -> None:
    """Release addresses that `find_dead` has found; only under one and the same hold of the store's lock."""
    for address in addresses:
        path = _path(store, address)
        try:
            files.remove(path)
        except OSError as error:
            raise StoreUnavailable("release", path, error) from error


def mark_unmarked(store: Store) -> None:
    """Say of what nobody has marked that it is of this boot at the earliest; needs no lock."""
    for address, marked in _marks(store):
        if not marked:
            mark(_path(store, address))


def _marks(store: Store) -> Iterator[tuple[IPAddress, bytes]]:
    try:
        names = files.names(store.directory, skip_empty=False)
    except OSError as error:
        raise StoreUnavailable("read", store.directory, error) from error
    for name in filter(files.may_be_address, names):
        address = parse_address(name)
        if address is not None and render_address(address) == name:
            yield address, _mark_of(_path(store, address))


def _path(store: Store, address: IPAddress) -> str:
    return f"{store.directory}/{render_address(address)}"


def uptime() -> float:
    """Return for how many seconds this boot has lasted, suspended ones included."""
    return clock_gettime(CLOCK_BOOTTIME)


def _is_local(directory: str) -> bool:
    with suppress(OSError):
        fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
        try:
            mount = _field(f"/proc/self/fdinfo/{fd}", "mnt_id:")
        finally:
            os.close(fd)
        kind = _field("/proc/self/mountinfo", mount).partition(" - ")[2]
        return kind.partition(" ")[0] in _LOCAL
    return False


def _field(path: str, first: str) -> str:
    """Return what follows a line's first word; nothing if no line begins with it."""
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = (line.split(maxsplit=1) for line in file)
        return next((words[1].strip() for words in lines if words[0] == first), "")
