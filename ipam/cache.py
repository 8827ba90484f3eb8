"""What a process that stays remembers of its stores; all of it may be forgotten at any moment.

Of each directory that it has looked at more than once: an index, and a turn for its threads, so
that they wait for each other and not at the lock. The index follows the kernel's own account of
what changed, by whomever, and is believed only while the path still leads to the same directory
and its times are explained by that account; else the directory is walked again.
A process that makes one call looks once and pays for none of this.
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
    from ipam.cooldown import Rest, Resting
    from ipam.index import Index
    from ipam.ranges import Span
    from ipam.watch import Watch

# An index of 60,000 addresses is 4 MB. A directory costs one of the 128 inotify instances that
# a user has by default.
_ADDRESSES: Final = 150_000
_DIRECTORIES: Final = 16

Stamp = tuple[int, int, int, int]


class Remembered:
    """One directory as this process knows it; `turn` is held by the thread that is at its lock."""

    def __init__(self, directory: str, resting: Resting | None = None) -> None:
        """Know nothing yet; with resting addresses, these are not free either."""
        self.turn = Lock()
        self._directory = directory
        self._resting = resting
        self._guard = Lock()
        self._looked = False
        self._lock: FileLock | None = None
        self._index: Index | None = None
        self._watch: Watch | None = None
        self._stamp: Stamp = (0, 0, 0, 0)

    def lock(self, make: Callable[[str], FileLock]) -> FileLock:
        """Return the lock of the directory, made once; it is taken by the holder of the turn alone."""
        if self._lock is None:
            self._lock = make(f"{self._directory}/lock")
        return self._lock

    def count(self) -> int:
        """Return how many addresses are remembered."""
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

    def oldest(self, version: Version, spans: Sequence[Span]) -> Rest | None:
        """Return the address of these spans that seems to have rested longest."""
        with self._guard:
            return self._resting.oldest(version, spans) if self._resting is not None else None

    def forget_rest(self, name: str) -> None:
        """Read the file of an address again that does not rest."""
        with self._guard:
            if self._resting is not None and self._index is not None:
                self._resting.forget(name)
                self._put(self._index, name)

    def _put(self, index: Index, name: str) -> None:
        content = files.content(f"{self._directory}/{name}")
        index.put(name, content if self._resting is None else self._resting.seen(name, content))

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
            if self._resting is not None and not self._follow_rests(index, self._resting):
                return False
            stamp = _stamp_of(self._directory)
            if stamp[:2] == self._stamp[:2] and (stamp == self._stamp or changes.listing):
                self._watch, self._stamp = watch, stamp
                return True
        return False

    def _follow_rests(self, index: Index, resting: Resting) -> bool:
        followed = resting.follow(index)
        for name in resting.overflow():
            self._put(index, name)
        return followed

    def _learn(self) -> bool:
        """Walk the directory under a watch; False if it cannot be watched."""
        from ipam.index import Index
        from ipam.watch import Watch

        before = _stamp_of(self._directory)
        try:
            watch = Watch(self._directory)
        except OSError:
            return False  # a walk says what is wrong, if anything is
        stamp = _stamp_of(self._directory)
        if stamp[:2] != before[:2]:
            return False  # which of the two is watched cannot be told
        found = files.walk(self._directory)
        self._index = Index(found if self._resting is None else self._resting.learn(found))
        self._watch, self._stamp = watch, stamp
        return True


class Memory:
    """The directories of a process: those used last, and no more than `addresses` in all."""

    def __init__(self, addresses: int = _ADDRESSES) -> None:
        """Remember nothing yet."""
        self._addresses = addresses
        self._guard = Lock()
        self._remembered: dict[tuple[str, str], Remembered] = {}

    def of(self, directory: str, released: str = "") -> Remembered:
        """Return what is remembered of the directory, and forget what was used longest ago.

        With a file of what was released these addresses are remembered as not free.
        """
        key = (directory, released)
        with self._guard:
            found = self._remembered.pop(key, None) or _remember(directory, released)
            self._remembered[key] = found
            while len(self._remembered) > 1 and self._is_full():
                del self._remembered[next(iter(self._remembered))]
            return found

    def known(self, directory: str) -> Remembered | None:
        """Return what is remembered of the directory already; that somebody asks keeps it no longer."""
        with self._guard:
            return self._remembered.get((directory, ""))

    def _is_full(self) -> bool:
        total = sum(each.count() for each in self._remembered.values())
        return len(self._remembered) > _DIRECTORIES or total > self._addresses


def _remember(directory: str, released: str) -> Remembered:
    if not released:
        return Remembered(directory)
    from ipam.cooldown import Resting  # few networks ask for it

    return Remembered(directory, Resting(released))


def _stamp_of(directory: str) -> Stamp:
    """Return which directory this is and when it changed; absent is one that never did."""
    try:
        status = os.stat(directory)
    except FileNotFoundError:
        return (0, 0, 0, 0)
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
