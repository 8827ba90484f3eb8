"""A watch on one directory: which names changed, as the kernel reports it by inotify(7).

An event is queued before the system call that caused it returns, so what is drained under the
store's lock is everything that happened before, whoever did it: no clock's granularity and no
unwritten file comes in between. Neither does a listing tell of a file that was rewritten in
place, which is why this is not a comparison of time stamps. Python has no binding; ctypes is
the price. A watch keeps no file system from being unmounted.
"""

from __future__ import annotations

import ctypes
import os
import struct
import weakref
from dataclasses import dataclass
from typing import Final

_MODIFY: Final = 0x0002
_LISTING: Final = 0x0040 | 0x0080 | 0x0100 | 0x0200  # moved from, moved to, created, deleted
_LOST: Final = 0x2000 | 0x4000 | 0x8000  # unmounted, queue overflow, the directory is gone
_ONLYDIR: Final = 0x01000000
_EVENT: Final = struct.Struct("iIII")  # struct inotify_event: wd, mask, cookie, length of the name
_ROOM: Final = 65536

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The names whose files may have changed, and whether any name came or went."""

    names: frozenset[str]
    listing: bool


class DirectoryWatch:
    """The changes of one directory from now on; the kernel forgets it with the object."""

    __slots__ = ("__weakref__", "_fd")

    def __init__(self, directory: str) -> None:
        """Begin to watch. Raises OSError: no such directory, too many watches on this machine."""
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        weakref.finalize(self, os.close, self._fd)
        _checked(_libc.inotify_add_watch(self._fd, os.fsencode(directory), _ONLYDIR | _MODIFY | _LISTING))

    def changes(self) -> Changes | None:
        """Return what has changed since the last call; None if that cannot be told any more."""
        names, seen = set(), 0
        while events := self._read():
            offset = 0
            while offset < len(events):
                _, mask, _, length = _EVENT.unpack_from(events, offset)
                offset += _EVENT.size + length
                names.add(os.fsdecode(events[offset - length : offset].rstrip(b"\0")))
                seen |= mask
        return None if seen & _LOST else Changes(names=frozenset(names), listing=bool(seen & _LISTING))

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, _ROOM)
        except BlockingIOError:
            return b""


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
