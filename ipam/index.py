"""An index in memory: which addresses of a store are taken, and by whom. It touches no file.

Sorted rows, since 60,000 addresses in dictionaries are 16 MB and here 4: the addresses, each as
one number with IPv6 behind IPv4, beside them their owners, and the same pairs sorted by owner.
An owner is kept as a digest of its file's content, so an answer says where to look, and the one
file that matters is read before anything is done to it. That an address is taken merely spares
a vain attempt: link(2) decides.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final

from netaddr import IPAddress

from ipam.address import Version, parse_value, render_value

if TYPE_CHECKING:
    from collections.abc import Iterable

_V6: Final = 1 << 32  # the place of ::
_NOBODY: Final = 0


class Index:
    """The address files of one directory, as they were told to it."""

    __slots__ = ("_digests", "_held", "_holders", "_places")

    def __init__(self, files: Iterable[tuple[str, bytes | None]]) -> None:
        """Begin with these files, each a name and its trimmed content."""
        places, digests = [], array("q")
        for name, content in files:
            place = _place_of(name)
            if place is not None and content != b"":
                places.append(place)
                digests.append(_digest(content))
        by_place = sorted(range(len(places)), key=places.__getitem__)
        by_digest = sorted(by_place, key=digests.__getitem__)
        self._places = [places[each] for each in by_place]
        self._digests = array("q", (digests[each] for each in by_place))
        self._holders = array("q", (digests[each] for each in by_digest))
        self._held = [places[each] for each in by_digest]

    def __len__(self) -> int:
        """Return how many addresses are taken."""
        return len(self._places)

    def __contains__(self, name: str) -> bool:
        """Say whether this address is taken."""
        place = _place_of(name)
        row = bisect_left(self._places, place) if place is not None else len(self)
        return row < len(self) and self._places[row] == place

    def put(self, name: str, content: bytes | None) -> None:
        """Take note of a file's trimmed content: None if it has none to read, empty if it is free."""
        place = _place_of(name)
        if place is None:
            return
        row = bisect_left(self._places, place)
        if row < len(self._places) and self._places[row] == place:
            self._drop(row)
        if content != b"":
            self._insert(row, place, _digest(content))

    def _drop(self, row: int) -> None:
        place, digest = self._places.pop(row), self._digests.pop(row)
        holding = self._held.index(place, bisect_left(self._holders, digest))
        del self._holders[holding], self._held[holding]

    def _insert(self, row: int, place: int, digest: int) -> None:
        self._places.insert(row, place)
        self._digests.insert(row, digest)
        holding = bisect_left(self._holders, digest)
        self._holders.insert(holding, digest)
        self._held.insert(holding, place)

    def named(self, content: bytes) -> list[IPAddress]:
        """Return the addresses whose files should have this trimmed content."""
        digest = _digest(content)
        places = self._held[bisect_left(self._holders, digest) : bisect_right(self._holders, digest)]
        return [IPAddress(place - _V6, 6) if place >= _V6 else IPAddress(place, 4) for place in places]

    def first_free(self, version: Version, first: int, last: int) -> int | None:
        """Return the lowest number from `first` to `last` that is not taken; None if all are.

        In a run of taken places each is its row's number plus the same difference, so the end of
        the run is found by bisection.
        """
        shift = _V6 if version == 6 else 0
        places, start = self._places, first + shift
        row = bisect_left(places, start)
        if row < len(places) and places[row] == start:
            later = range(row, len(places))
            start += bisect_left(later, start - row + 1, key=lambda each: places[each] - each)
        return start - shift if start - shift <= last else None

    def count(self, version: Version, first: int, last: int) -> int:
        """Return how many of the numbers from `first` to `last` are taken."""
        shift = _V6 if version == 6 else 0
        return bisect_right(self._places, last + shift) - bisect_left(self._places, first + shift)


def _place_of(name: str) -> int | None:
    """Return an address's place; None for a foreign file, such as one of another spelling."""
    parsed = parse_value(name)
    if parsed is None or render_value(*parsed) != name:
        return None
    value, version = parsed
    return value + _V6 if version == 6 else value


def _digest(content: bytes | None) -> int:
    return _NOBODY if content is None else hash(content)
