"""Small files of hints (`.released`, `.sticky`): appended by the line, bounded by two generations.

    <data_dir>/.podwire/<network>.<kind>      the later lines
    <data_dir>/.podwire/<network>.<kind>.old  those before them

A file that has grown replaces the old one; this is how old lines are dropped. Only the holder of the
store's lock writes. A crash or a full disk costs these lines and nothing else: they are hints, and an
address is given only when link(2) succeeds.
"""
# Plain os calls, as in files.py.
# ruff: noqa: PTH116, PTH120

from __future__ import annotations

import os
from contextlib import suppress
from time import time
from typing import Final

from ipam.seam import step
from ipam.seam.files import make_directories

_APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ROOM: Final = 64 * 1024  # bytes, at least 1,000 lines; a process of its own reads it at each call
_MOST: Final = 1024 * 1024

# When the old file became that, and which later one was read up to where. An inode alone may be used again.
Position = tuple[int, int, int]
UNREAD: Final[Position] = (-1, 0, 0)


class Notes:
    """The lines of one kind; making it touches no file."""

    __slots__ = ("_old", "_path")

    def __init__(self, path: str) -> None:
        """Name the file."""
        self._path, self._old = path, f"{path}.old"

    def append(self, lines: str, *, keep: float = 0) -> None:
        """Add lines; those younger than `keep` seconds are forgotten only above a size of 1 MB."""
        with suppress(OSError):
            make_directories(os.path.dirname(self._path))
            self._make_room(keep)
            fd = step("create", os.open, self._path, _APPEND, 0o600)
            try:
                _write_whole(fd, os.fsencode(lines))
            finally:
                os.close(fd)

    def _make_room(self, keep: float) -> None:
        size = _stat(self._path).st_size
        if size >= _MOST or (size >= _ROOM and abs(time() - _stat(self._old).st_mtime) >= keep):
            step("rename", os.rename, self._path, self._old)

    def read_all(self) -> tuple[bytes, Position]:
        """Return all whole lines, oldest first, and a mark to read on from."""
        became = _changed(self._old)
        # The later one first, for it may become the old one at any moment.
        later, inode = _read(self._path, 0)
        older, _ = _read(self._old, 0)
        return older + later, (became, inode, len(later))

    def read_from(self, mark: Position) -> tuple[bytes, Position] | None:
        """Return the lines since the mark and the next mark; None if the files are no longer these."""
        became, inode, offset = mark
        earlier, changed = b"", _changed(self._old)
        if changed != became:
            if not inode or _stat(self._old).st_ino != inode:
                return None
            # What was the later file is the old one now.
            earlier, _ = _read(self._old, offset)
            inode, offset = 0, 0
        lines, now = _read(self._path, offset)
        same = now == inode or offset == 0
        if not same or _changed(self._old) != changed or _stat(self._path).st_size < offset:
            return None
        return earlier + lines, (changed, now, offset + len(lines))


def _stat(path: str) -> os.stat_result:
    """Return the file's status; one that cannot be had is empty and as old as the epoch."""
    with suppress(OSError):
        return os.stat(path)
    return os.stat_result((0,) * 10)


def _changed(path: str) -> int:
    """Return when the file was last written, renamed or the like, in nanoseconds; 0 for one without."""
    with suppress(OSError):
        return os.stat(path).st_ctime_ns
    return 0


def _write_whole(fd: int, content: bytes) -> None:
    """Write all of it or nothing, for half a line would spoil the next one."""
    size = os.fstat(fd).st_size
    if step("write", os.write, fd, content) != len(content):
        step("truncate", os.ftruncate, fd, size)


def _read(path: str, offset: int) -> tuple[bytes, int]:
    """Return the whole lines behind the offset and the file's inode; nothing if it cannot be read."""
    with suppress(OSError), open(path, "rb", opener=_open_at_once) as file:
        file.seek(offset)
        content = file.read()
        return content[: content.rfind(b"\n") + 1], os.fstat(file.fileno()).st_ino
    return b"", 0


def _open_at_once(path: str, flags: int) -> int:
    """Open it without a wait, for somebody may have left a FIFO there."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
