"""The file operations of the store: walk, read, write, link and remove, without a word of owners.

Everything here raises plain OSError; the store says which object was meant. A walk is one
scandir and three system calls for each file, relative to the directory's descriptor.
"""
# Plain os calls: pathlib costs more than the system calls, and a walk reads 60,000 files.
# ruff: noqa: PTH120, PTH121

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from errno import EMFILE, ENFILE, ENOMEM
from stat import S_ISREG
from typing import TYPE_CHECKING, Final

from ipam.seam import step
from ipam.seam.files import make_directories, remove_file, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CHUNK: Final = 512
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_OVER: Final = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# O_NONBLOCK: a FIFO that somebody left behind must not stop an ADD.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OUR_OWN_LIMITS: Final = frozenset({EMFILE, ENFILE, ENOMEM})
_ADDRESS_BEGINS: Final = frozenset("0123456789abcdef:")


def walk(directory: str) -> Iterator[tuple[str, bytes | None]]:
    """Yield (name, trimmed content) of what may be an address; None where there is none to read."""
    try:
        fd = os.open(directory, _DIRECTORY)
    except FileNotFoundError:
        return
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                if may_be_address(entry.name):
                    yield entry.name, _content(entry, fd)
    finally:
        os.close(fd)


def _content(entry: os.DirEntry[str], directory: int) -> bytes | None:
    return _trimmed(entry.name, directory) if entry.is_file(follow_symlinks=False) else None


def content(path: str) -> bytes | None:
    """Return a file's content as `walk` does, and of an absent file that of an empty one."""
    try:
        regular = S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return b""
    return _trimmed(path) if regular else None


def _trimmed(path: str, directory: int | None = None) -> bytes | None:
    try:
        return read(path, directory).strip()
    except OSError as error:
        if error.errno in _OUR_OWN_LIMITS:
            raise  # it is not the file's fault, and no answer would be the wrong answer
        return None


def may_be_address(name: str) -> bool:
    """Say cheaply whether a name is worth reading the file."""
    return name[:1] in _ADDRESS_BEGINS


def names(directory: str, *, skip_empty: bool) -> list[str]:
    """Return the names in the directory; looking for empty files costs a call for each."""
    with suppress(FileNotFoundError), os.scandir(directory) as entries:
        return [each.name for each in entries if not (skip_empty and _is_empty(each))]
    return []


def _is_empty(entry: os.DirEntry[str]) -> bool:
    with suppress(FileNotFoundError):
        return entry.is_file(follow_symlinks=False) and not entry.stat().st_size
    return True


def read(path: str, directory: int | None = None) -> bytes:
    """Return a file's content; a symbolic link is refused."""
    fd = os.open(path, _READ, dir_fd=directory)
    try:
        content = os.read(fd, _CHUNK)
        if len(content) == _CHUNK:
            content += b"".join(iter(lambda: os.read(fd, _CHUNK), b""))
    finally:
        os.close(fd)
    return content


@contextmanager
def written(path: str, content: bytes, mark: Callable[[int], None] = lambda _: None) -> Iterator[str]:
    """Write a new file for the body to link or rename; afterwards the name is gone.

    `mark` is called with its descriptor. A name that cannot be removed is what a crash leaves: the next
    to come does that.
    """
    try:
        fd = _create(path)
        try:
            write_whole(fd, content)
            mark(fd)
        finally:
            os.close(fd)
        yield path
    finally:
        with suppress(OSError):
            remove_file(path)


def _create(path: str) -> int:
    """Create the file anew.

    What a crash left may be a second name of a live address file (it came between link and
    unlink), so it is unlinked and never truncated.
    """
    with suppress(FileExistsError, FileNotFoundError):
        return step("create", os.open, path, _NEW, 0o600)
    make_directories(os.path.dirname(path))
    remove_file(path)
    return step("create", os.open, path, _NEW, 0o600)


def overwrite(path: str, content: bytes) -> None:
    """Make the content the file's, in place; a crash may leave a mixture of both.

    For what is only a hint: ext4 starts writing to the disk when a file is replaced by rename or
    truncated to nothing (auto_da_alloc), which costs each time more than everything else here.
    """
    fd = step("create", os.open, path, _OVER, 0o600)
    try:
        write_whole(fd, content)
        step("truncate", os.ftruncate, fd, len(content))
    finally:
        os.close(fd)


def link(existing: str, path: str) -> bool:
    """Give a file a second name; False if that name is in use."""
    try:
        step("link", os.link, existing, path)
    except FileExistsError:
        return False
    except OSError:
        # The answer of a network file system may be lost; the file tells.
        with suppress(OSError):
            if os.path.samefile(existing, path):
                return True
        raise
    return True


def remove_empty(path: str) -> bool:
    """Remove the file if it is empty; True if the name is free now."""
    with suppress(FileNotFoundError):
        status = os.lstat(path)
        if not S_ISREG(status.st_mode) or status.st_size:
            return False
        step("unlink", os.unlink, path)
    return True


def remove(path: str) -> bool:
    """Remove the file; True, for the name is free now."""
    remove_file(path)
    return True


def keep_from_others(path: str) -> None:
    """Let nobody but the owner open the file; one that is not there or not ours to change stays so.

    Whoever may open a file may hold its lock, and Go makes its own readable by all.
    """
    with suppress(OSError):
        status = os.lstat(path)
        if S_ISREG(status.st_mode) and status.st_mode & 0o077:
            step("chmod", os.chmod, path, 0o600)


def nearest_existing(path: str) -> str:
    """Return the path or the closest of its parents that exists."""
    while not os.path.lexists(path):
        path = os.path.dirname(path) or "."
    return path
