r"""The cooldown of released addresses: free, but the last to be given, and only after some time.

    <data_dir>/.podwire/<network>.released     `<time> <address> <name>\n`, time in seconds since 1970

The name is that of a sticky owner, if any. A line is written before the address file is removed, so
that a crash in between cannot make the address look fresh. While the file is there, the line has no
meaning. An address without a line counts as never used: nobody ever had it, its line was dropped, or
the Go host-local released it.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Final

from netaddr import IPAddress

from ipam.address import Version, parse_value, render_address
from ipam.notes import UNREAD, Notes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ipam.index import Index
    from ipam.ranges import Span

_MOST_KEPT: Final = 32_768  # of each family, by a process that stays; 8 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class CoolingAddress:
    """A released address that cools down: its name in the store, and since when (seconds since 1970)."""

    name: str
    address: IPAddress
    since: float

    def remaining(self, cool_down: int) -> float:
        """Return for how many seconds it must not be given."""
        return remaining(self.since, cool_down)


class Cooldown:
    """The addresses of one network that cool down, as a file lists them; none before `learn`."""

    __slots__ = ("_mark", "_notes", "_since")

    def __init__(self, path: str) -> None:
        """Name the file."""
        self._notes = Notes(path)
        self._mark = UNREAD
        self._since: dict[Version, OrderedDict[str, float]] = {4: OrderedDict(), 6: OrderedDict()}

    def learn(self, found: Iterable[tuple[str, bytes | None]]) -> Iterable[tuple[str, bytes | None]]:
        """Begin anew; return the files of a walk with the cooling addresses among them, as unreadable."""
        known = dict(found)
        self._since = {4: OrderedDict(), 6: OrderedDict()}
        lines, self._mark = self._notes.read_all()
        for name in self._note(lines):
            known[name] = known.get(name) or None
        return known.items()

    def follow(self, index: Index) -> bool:
        """Add to the index what was released; False if it cannot be told any more."""
        later = self._notes.read_from(self._mark)
        if later is None:
            return False
        lines, self._mark = later
        for name in self._note(lines):
            if name not in index:
                index.put(name, None)
        return True

    def overflow(self) -> list[str]:
        """Forget what was released first where more cool down than are to be kept; return the names."""
        return [
            by_name.popitem(last=False)[0]
            for by_name in self._since.values()
            for _ in range(len(by_name) - _MOST_KEPT)
        ]

    def _note(self, lines: bytes) -> list[str]:
        names = []
        for line in os.fsdecode(lines).splitlines():
            with suppress(ValueError):
                since, name = line.split(" ")[:2]
                by_name = self._since[_version_of(name)]
                by_name[name] = float(since)
                by_name.move_to_end(name)
                names.append(name)
        return names

    def seen(self, name: str, content: bytes | None) -> bytes | None:
        """Return what an index should hold of a file's content: an address that is free may cool down."""
        if content == b"":
            return None if name in self._since[_version_of(name)] else content
        self.forget(name)
        return content

    def forget(self, name: str) -> None:
        """Forget that an address cools down."""
        self._since[_version_of(name)].pop(name, None)

    def oldest(self, version: Version, spans: Sequence[Span]) -> CoolingAddress | None:
        """Return the address of these spans that was released first."""
        for name, since in self._since[version].items():
            value = parse_value(name)
            if value and value[1] == version and any(a <= value[0] <= b for a, b in spans):
                return CoolingAddress(name=name, address=IPAddress(*value), since=since)
        return None

    def cooling(self, cool_down: int) -> list[tuple[int, int]]:
        """Return what must not be given now as (version, number); reads the file."""
        self.learn(())
        everything = [pair for by_name in self._since.values() for pair in by_name.items()]
        values = [parse_value(name) for name, since in everything if remaining(since, cool_down)]
        return [(version, number) for number, version in filter(None, values)]

    def add(self, addresses: Iterable[IPAddress], name: str, cool_down: int, age: float = 0) -> None:
        """Write that addresses are about to be released, or were `age` seconds ago; only under the lock."""
        since = time() - age
        lines = [f"{since:.3f} {render_address(address)} {name}\n" for address in addresses]
        self._notes.append("".join(lines), keep=cool_down)

    def cools_for(self, address: IPAddress, name: str, cool_down: int) -> bool:
        """Say whether the address must not be given to this name now: not if it was the last to have it."""
        lines = b"\n" + self._notes.read_all()[0]
        found = lines.rfind(os.fsencode(f" {render_address(address)} "))
        line = lines[lines.rfind(b"\n", 0, max(found, 0)) + 1 : lines.find(b"\n", found)]
        with suppress(ValueError):
            since, _, last = os.fsdecode(line).split(" ")
            return found > 0 and last != name and remaining(float(since), cool_down) > 0
        return False


def remaining(since: float, cool_down: int) -> float:
    """Return for how many seconds an address must not be given; a time too far ahead is no time."""
    age = time() - since
    return cool_down - age if abs(age) < cool_down else 0.0


def _version_of(name: str) -> Version:
    return 6 if ":" in name else 4
