r"""The locked store: a directory per network with one file per reserved address.

    <data_dir>/<network>/lock                  flock target, never unlinked
    <data_dir>/<network>/<address>             `<container id>\r\n<ifname>`
    <data_dir>/<network>/last_reserved_ip.<N>  where range set N goes on
    <data_dir>/.podwire/<network>.new          the one temporary, outside since Go reads every file

This is the reference `host-local`'s own format on its own lock, so both can share a directory at
the same time. What changes a file is done under the lock; an address file of ours appears with
its content (link(2)), so under the lock an empty one is debris of a crash. Readers need neither
lock nor write access. An operator reads it with `ls` and `cat` and repairs it with `rm`.
Every search is a walk, but for a process that stays: see `cache`.
"""
# Plain os calls, as in files.py.
# ruff: noqa: PTH120

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from ipam import files
from ipam.address import parse_address, parse_value, render_address, render_value
from ipam.errors import InvalidNetwork, LockTimeout, StoreUnavailable
from ipam.seam import step
from ipam.seam.files import make_directories, remove_file
from ipam.seam.waits import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from filelock import FileLock
    from netaddr import IPAddress

    from ipam.address import Version
    from ipam.cache import CachedDirectory, StoreCache
    from ipam.cooldown import Cooldown, CoolingAddress
    from ipam.ranges import Span

    FirstFree = Callable[[Version, int, int], int | None]
    Oldest = Callable[[Version, Sequence[Span]], CoolingAddress | None]

# filelock polls; how often (seconds) is a trade of CPU against idle time, measured with 16
# processes: 1 ms costs twice the CPU of 3 ms and saves nothing, 50 ms idles half of the time.
_POLL: Final = 0.003
_PRIVATE: Final = ".podwire"
_PROBE: Final = ".podwire-probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who holds an address. A legacy file names no ifname, an empty file nobody: both are ""."""

    container_id: str
    ifname: str

    @property
    def content(self) -> bytes:
        """What an address file of this owner holds; with a lone LF Go could not release it."""
        return os.fsencode(f"{self.container_id}\r\n{self.ifname}")

    @property
    def keys(self) -> tuple[bytes, bytes]:
        """What a trimmed content is compared with: the owner's, and a legacy file's."""
        return self.content.strip(), os.fsencode(self.container_id).strip()

    @classmethod
    def parse(cls, content: bytes) -> Owner:
        """Return the owner that an address file's content names."""
        container_id, _, ifname = os.fsdecode(content.strip()).partition("\r\n")
        return cls(container_id=container_id, ifname=ifname)

    def __str__(self) -> str:
        """Return the owner for an error message."""
        return f"{self.container_id} ({self.ifname})" if self.ifname else self.container_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What a search found: the owner's addresses, and what else is in use.

    `legacy` are files that name only the container id. `first_free` takes a version and two
    numbers and returns the lowest between them that no file takes, or None. It merely spares
    vain attempts: what decides is `Store.reserve`. `oldest` returns which address of some spans has
    been released first; addresses that cool down are not free.
    """

    exact: tuple[IPAddress, ...]
    legacy: tuple[IPAddress, ...]
    first_free: FirstFree
    oldest: Oldest = lambda _, __: None

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """What a release removes: as in Go, legacy files only where there is no exact one."""
        return self.exact or self.legacy


class Store:
    """The address files of one network. Making a Store touches no file."""

    __slots__ = ("_cache", "_cached", "directory", "lock_timeout", "temporary")

    def __init__(
        self, data_dir: str | Path, network: str, lock_timeout: float = 10.0, cache: StoreCache | None = None
    ) -> None:
        """Name a network's directory; `lock_timeout` is in seconds. Raises InvalidNetwork.

        `cache` is one and the same for all stores of a process, or none.
        """
        if not network or network.startswith(".") or "/" in network or "\0" in network:
            raise InvalidNetwork(network)
        root = os.fspath(data_dir)
        self.directory = f"{root}/{network}"
        self.temporary = f"{root}/{_PRIVATE}/{network}.new"
        self.lock_timeout = lock_timeout
        self._cache = cache
        self._cached = cache.of(self.directory) if cache else None

    def hints(self, kind: str) -> str:
        """Return where `notes` of a kind are kept: outside of what Go reads."""
        return f"{self.temporary.removesuffix('.new')}.{kind}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the network's lock, which is Go's; creates the directory. Not reentrant.

        Raises LockTimeout and StoreUnavailable.
        """
        path = f"{self.directory}/lock"
        with self._turn(path), self._file_locked(path, Deadline(self.lock_timeout)):
            yield

    @contextmanager
    def _turn(self, path: str) -> Iterator[None]:
        """Let the threads of this process wait for each other here, where they are woken at once."""
        if self._cached is None:
            yield
            return
        if not self._cached.turn.acquire(timeout=self.lock_timeout):
            raise LockTimeout(path, self.lock_timeout)
        try:
            yield
        finally:
            self._cached.turn.release()

    @contextmanager
    def _file_locked(self, path: str, deadline: Deadline) -> Iterator[None]:
        from filelock import Timeout  # readers need not pay for it

        lock = self._cached.lock(_make_lock) if self._cached else _make_lock(path)
        with _failing_as("lock", path):
            make_directories(self.directory)
            try:
                step("lock", lock.acquire, deadline.left())
            except Timeout as error:
                raise LockTimeout(path, self.lock_timeout) from error
        try:
            yield
        finally:
            lock.release()

    # Writers: only under the lock.

    def reserve(self, address: IPAddress, owner: Owner, netns_mark: str = "") -> bool:
        """Reserve the address; False if it is taken. Debris is reclaimed: what is empty or of a dead boot.

        `netns_mark` is written to the file, see ipam/namespace_mark.py.
        """
        path, mark = self._path(address), partial(_mark, netns_mark)
        with _failing_as("reserve", path), files.written(self.temporary, owner.content, mark) as new:
            return files.link(new, path) or (_remove_debris(path) and files.link(new, path))

    def remove(self, address: IPAddress, owner: Owner) -> bool:
        """Remove the address's file if it still names the owner; absent is fine."""
        path = self._path(address)
        with _failing_as("release", path), suppress(FileNotFoundError):
            if files.read(path).strip() in owner.keys:
                step("unlink", os.unlink, path)
                return True
        return False

    def remove_all(self, found: Iterable[tuple[IPAddress, Owner]]) -> list[IPAddress]:
        """Remove what still names its owner; one failure does not keep the others, it comes last."""
        removed, failures = [], []
        for address, owner in found:
            try:
                if self.remove(address, owner):
                    removed.append(address)
            except StoreUnavailable as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return removed

    def remove_debris(self) -> None:
        """Remove the temporaries that a crash left."""
        for path in filter(os.path.lexists, self._debris):
            with _failing_as("remove", path):
                remove_file(path)

    def release(self, owner: Owner, among: Iterable[IPAddress] | None = None) -> list[IPAddress]:
        """Remove the owner's files and return their addresses.

        `among` are addresses that `find` has found before, which spares a walk under the lock.
        """
        found = self.find(owner).addresses if among is None else among
        return self.remove_all((address, owner) for address in found)

    def set_last_reserved(self, set_index: int, address: IPAddress) -> None:
        """Remember where range set `set_index` goes on; without newline, as Go requires."""
        path = self._pointer(set_index)
        with _failing_as("write", path):
            files.overwrite(path, render_address(address).encode())

    # Readers: with or without the lock.

    def last_reserved(self, set_index: int) -> IPAddress | None:
        """Return the address that range set `set_index` gave last; None for none or garbage."""
        with suppress(OSError):
            return parse_address(os.fsdecode(files.read(self._pointer(set_index))))
        return None

    def find(self, owner: Owner, *, cooldown: bool = False) -> Holdings:
        """Return the owner's addresses and what else is in use, from the cache or in one walk.

        With `cooldown` an address that was released is not free, but may be the oldest that cools down.
        """
        with _failing_as("read", self.directory):
            cached = self._cached_with(cooldown)
            if cached is not None and cached.look():
                return self._find_cached(owner, cached)
        return self._find_cooling(owner) if cooldown else self._find_in_walk(owner, self._walk())

    def look(self) -> None:
        """Bring the cache up to now, for a process that asks time and again how full the store is."""
        with _failing_as("read", self.directory):
            if self._cached is not None:
                self._cached.look()

    def _cached_with(self, cooldown: bool) -> CachedDirectory | None:
        if self._cache is None or not cooldown:
            return self._cached
        return self._cache.of(self.directory, self.hints("released"))

    def _find_cached(self, owner: Owner, cached: CachedDirectory) -> Holdings:
        """Read again what the cache names: a digest may be another's, and a file changes without the lock."""
        exact, legacy = (
            tuple(each for each in cached.named(key) if files.content(self._path(each)) == key)
            for key in owner.keys
        )
        oldest = self._oldest_of(cached.oldest, cached.forget_cooling)
        return Holdings(exact=exact, legacy=legacy, first_free=cached.first_free, oldest=oldest)

    def _find_cooling(self, owner: Owner) -> Holdings:
        cooldown = self.cooldown()
        found = self._find_in_walk(owner, cooldown.learn(self._walk()))
        return replace(found, oldest=self._oldest_of(cooldown.oldest, cooldown.forget))

    def _oldest_of(self, oldest: Oldest, forget: Callable[[str], None]) -> Oldest:
        """Return `oldest` without what has been given again since."""

        def verified(version: Version, spans: Sequence[Span]) -> CoolingAddress | None:
            while (cooling := oldest(version, spans)) and files.content(self._path(cooling.address)) != b"":
                forget(cooling.name)
            return cooling

        return verified

    def cooldown(self) -> Cooldown:
        """Return the addresses of this network that cool down; nothing is read yet."""
        from ipam.cooldown import Cooldown  # few networks ask for it

        return Cooldown(self.hints("released"))

    def _find_in_walk(self, owner: Owner, found: Iterable[tuple[str, bytes | None]]) -> Holdings:
        key, legacy_key = owner.keys
        exact, legacy, taken = [], [], set()
        for name, content in found:
            if content != b"":
                taken.add(name)
            if content == key:
                exact.append(name)
            elif content == legacy_key:
                legacy.append(name)

        def first_free(version: Version, first: int, last: int) -> int | None:
            numbers = range(first, last + 1)
            return next((each for each in numbers if render_value(each, version) not in taken), None)

        return Holdings(exact=_addresses(exact), legacy=_addresses(legacy), first_free=first_free)

    def owner_of(self, address: IPAddress) -> Owner | None:
        """Return who holds the address; None if nobody does or the file cannot be read."""
        with suppress(OSError):
            return Owner.parse(files.read(self._path(address)))
        return None

    def owners(self) -> dict[IPAddress, Owner]:
        """Return every reserved address with its owner.

        An empty file has an owner without id: debris, or a reservation that Go is making.
        """
        contents = ((name, content) for name, content in self._walk() if content is not None)
        return {address: Owner.parse(content) for name, content in contents for address in _addresses([name])}

    def reserved(self, *, skip_empty: bool = False) -> list[tuple[int, int]]:
        """Return the reserved addresses as sorted (version, number); reads no file."""
        with _failing_as("read", self.directory):
            names = files.names(self.directory, skip_empty=skip_empty)
        parsed = ((name, parse_value(name)) for name in names)
        return sorted((v[1], v[0]) for name, v in parsed if v and render_value(*v) == name)

    def has_debris(self) -> bool:
        """Tell whether there is a temporary: another call's, or what a crash left."""
        return any(map(os.path.lexists, self._debris))

    @property
    def _debris(self) -> tuple[str, ...]:
        probes = (f"{directory}/{_PROBE}" for directory in (os.path.dirname(self.temporary), self.directory))
        return self.temporary, *probes

    def check_writable(self) -> None:
        """Raise StoreUnavailable if a reservation could not be written; leaves nothing behind."""
        place = files.nearest_existing(os.path.dirname(self.temporary))
        with _failing_as("write to", place), files.written(f"{place}/{_PROBE}", b"probe") as probe:
            self._check_linkable(probe, f"{self.directory}/{_PROBE}")

    def _check_linkable(self, probe: str, path: str) -> None:
        with _failing_as("write to", self.directory):
            if not os.path.lexists(self.directory):
                return
            remove_file(path)
            try:
                # Another look at the same time took one of the names away, or gave it: so could we.
                with suppress(FileNotFoundError, FileExistsError):
                    step("link", os.link, probe, path)
            finally:
                remove_file(path)

    def _walk(self) -> Iterator[tuple[str, bytes | None]]:
        with _failing_as("read", self.directory):
            yield from files.walk(self.directory)

    def _path(self, address: IPAddress) -> str:
        return f"{self.directory}/{render_address(address)}"

    def _pointer(self, set_index: int) -> str:
        return f"{self.directory}/last_reserved_ip.{set_index}"


def _mark(netns_mark: str, fd: int) -> None:
    from ipam import boot_mark  # neither a release nor a look needs it

    boot_mark.mark(fd, netns_mark)


def _remove_debris(path: str) -> bool:
    """Remove a file that nobody can hold; True if the name is free now."""
    from ipam import boot_mark

    return files.remove_empty(path) or (boot_mark.is_dead(path) and files.remove(path))


def _make_lock(path: str) -> FileLock:
    from filelock import FileLock

    files.keep_from_others(path)
    return FileLock(path, -1, 0o600, thread_local=False, poll_interval=_POLL, preserve_lock_file=True)


def list_networks(data_dir: str | Path) -> list[str]:
    """Return the networks that have a directory in the store, sorted; none is fine."""
    root = os.fspath(data_dir)
    with _failing_as("read", root), suppress(FileNotFoundError), os.scandir(root) as entries:
        return sorted(each.name for each in entries if each.name[0] != "." and each.is_dir())
    return []


def _addresses(names: Iterable[str]) -> tuple[IPAddress, ...]:
    """Parse names; one that is not an address's canonical text is a foreign file."""
    parsed = ((name, parse_address(name)) for name in names)
    return tuple(a for name, a in parsed if a is not None and render_address(a) == name)


@contextmanager
def _failing_as(operation: str, path: str) -> Iterator[None]:
    """Turn the system's refusal into the store's."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(operation, path, error) from error
