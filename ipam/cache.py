"""The cache of a long-lived process: an index of each store directory; it may be lost at any moment.

An index is made when a directory is searched for the second time. It follows the changes that inotify(7)
reports, whoever made them. It is used only while the path still leads to the same directory and the
reported changes explain its times; else the directory is walked again. Threads take turns here, so
that they do not wait at the lock. A process that makes one call searches once and pays for none of this.
"""
# Plain os calls, as in files.py.
# ruff: noqa: PTH116

from __future__ import annotations

import os
from threading import Lock
from typing import TYPE_CHECKING, Final

from ipam import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from filelock import FileLock
    from netaddr import IPAddress

    from ipam.address import Version
    from ipam.cooldown import Cooldown, CoolingAddress
    from ipam.index import Index
    from ipam.ranges import Span
    from ipam.watch import DirectoryWatch

# An index of 60,000 addresses is 4 MB. A directory costs one of the 128 inotify instances that
# a user has by default.
_ADDRESSES: Final = 150_000
_DIRECTORIES: Final = 16

DirectoryTimes = tuple[int, int, int, int]


class CachedDirectory:
    """One directory as this process knows it; `turn` is held by the thread that is at its lock."""

    def __init__(self, directory: str, cooldown: Cooldown | None = None) -> None:
        """Know nothing yet; with a cooldown, addresses that cool down are not free either."""
        self.turn = Lock()
        self._directory = directory
        self._cooldown = cooldown
        self._guard = Lock()
        self._looked = False
        self._lock: FileLock | None = None
        self._index: Index | None = None
        self._watch: DirectoryWatch | None = None
        self._times: DirectoryTimes = (0, 0, 0, 0)

    def lock(self, make: Callable[[str], FileLock]) -> FileLock:
        """Return the lock of the directory, made once; it is taken by the holder of the turn alone."""
        if self._lock is None:
            self._lock = make(f"{self._directory}/lock")
        return self._lock

    def count(self) -> int:
        """Return how many addresses are cached."""
        return len(self._index) if self._index is not None else 0

    def look(self) -> bool:
        """Bring the index up to now; False where a walk must do: at first, or if nothing can be watched."""
        with self._guard:
            first, self._looked = not self._looked, True
            return not first and (self._follow() or self._learn())

    def counted(self, spans: Iterable[tuple[Version, int, int]]) -> int | None:
        """Return how many addresses of these spans are taken; None where only a walk could tell."""
        with self._guard:
            index = self._index if self._follow() else None
            return None if index is None else sum(index.count(*span) for span in spans)

    def named(self, content: bytes) -> list[IPAddress]:
        """Return the addresses whose files should have this trimmed content."""
        with self._guard:
            return self._index.named(content) if self._index is not None else []

    def first_free(self, version: Version, first: int, last: int) -> int | None:
        """Return the lowest number from `first` to `last` that seems free; None if all are taken."""
        with self._guard:
            return self._index.first_free(version, first, last) if self._index is not None else first

    def oldest(self, version: Version, spans: Sequence[Span]) -> CoolingAddress | None:
        """Return the address of these spans that seems to have been released first."""
        with self._guard:
            return self._cooldown.oldest(version, spans) if self._cooldown is not None else None

    def forget_cooling(self, name: str) -> None:
        """Read the file again of an address that does not cool down."""
        with self._guard:
            if self._cooldown is not None and self._index is not None:
                self._cooldown.forget(name)
                self._put(self._index, name)

    def _put(self, index: Index, name: str) -> None:
        content = files.content(f"{self._directory}/{name}")
        index.put(name, content if self._cooldown is None else self._cooldown.seen(name, content))

    def _follow(self) -> bool:
        """Apply what has changed; False if the index can no longer be believed."""
        # Out of sight until it is whole: a failure below leaves nothing that could be believed.
        watch, self._watch = self._watch, None
        index = self._index
        if watch is None or index is None:
            return False
        for _ in range(2):  # outside the lock a directory's time may precede the event by a moment
            changes = watch.changes()
            if changes is None:
                return False
            for name in filter(files.may_be_address, changes.names):
                self._put(index, name)
            if self._cooldown is not None and not self._follow_cooldown(index, self._cooldown):
                return False
            times = _times_of(self._directory)
            if times[:2] == self._times[:2] and (times == self._times or changes.listing):
                self._watch, self._times = watch, times
                return True
        return False

    def _follow_cooldown(self, index: Index, cooldown: Cooldown) -> bool:
        followed = cooldown.follow(index)
        for name in cooldown.overflow():
            self._put(index, name)
        return followed

    def _learn(self) -> bool:
        """Walk the directory under a watch; False if it cannot be watched."""
        from ipam.index import Index
        from ipam.watch import DirectoryWatch

        before = _times_of(self._directory)
        try:
            watch = DirectoryWatch(self._directory)
        except OSError:
            return False  # a walk says what is wrong, if anything is
        times = _times_of(self._directory)
        if times[:2] != before[:2]:
            return False  # which of the two is watched cannot be told
        found = files.walk(self._directory)
        self._index = Index(found if self._cooldown is None else self._cooldown.learn(found))
        self._watch, self._times = watch, times
        return True


class StoreCache:
    """The directories of a process: those used last, and no more than `addresses` in all."""

    def __init__(self, addresses: int = _ADDRESSES) -> None:
        """Start empty."""
        self._addresses = addresses
        self._guard = Lock()
        self._cached: dict[tuple[str, str], CachedDirectory] = {}

    def of(self, directory: str, released: str = "") -> CachedDirectory:
        """Return the directory's cache, and drop the one that was used longest ago.

        With a file of what was released these addresses count as not free.
        """
        key = (directory, released)
        with self._guard:
            found = self._cached.pop(key, None) or _cached_directory(directory, released)
            self._cached[key] = found
            while len(self._cached) > 1 and self._is_full():
                del self._cached[next(iter(self._cached))]
            return found

    def known(self, directory: str) -> CachedDirectory | None:
        """Return the directory's cache if there is one; this does not count as a use."""
        with self._guard:
            return self._cached.get((directory, ""))

    def _is_full(self) -> bool:
        total = sum(each.count() for each in self._cached.values())
        return len(self._cached) > _DIRECTORIES or total > self._addresses


def _cached_directory(directory: str, released: str) -> CachedDirectory:
    if not released:
        return CachedDirectory(directory)
    from ipam.cooldown import Cooldown  # few networks ask for it

    return CachedDirectory(directory, Cooldown(released))


def _times_of(directory: str) -> DirectoryTimes:
    """Return which directory this is and when it changed; absent is one that never did."""
    try:
        status = os.stat(directory)
    except FileNotFoundError:
        return (0, 0, 0, 0)
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
