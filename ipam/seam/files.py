"""Replaces files as a whole and makes directories, in the same way for every room.

Everything here raises plain OSError. By hand: `mkdir -p`, `mv -f NEW FILE`.
"""
# Plain os calls: pathlib costs more than the system calls.
# ruff: noqa: PTH112, PTH118, PTH120

from __future__ import annotations

import os
from contextlib import suppress
from errno import ENOSPC, ENOTDIR
from typing import Final

from ipam.seam import step

_ANEW: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def make_directories(path: str, mode: int = 0o755) -> None:
    """Create the directory and its parents, all of them with `mode` less the umask."""
    if path and not os.path.isdir(path):
        make_directories(os.path.dirname(path), mode)
        try:
            step("mkdir", os.mkdir, path, mode)
        except FileExistsError:
            if not os.path.isdir(path):  # else another process was quicker
                raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR), path) from None


def write_whole(fd: int, content: bytes) -> None:
    """Write all of it; OSError when there was no room for some."""
    if step("write", os.write, fd, content) != len(content):
        raise OSError(ENOSPC, os.strerror(ENOSPC))


def replace_file(
    path: str, content: bytes, mode: int = 0o600, *, new: str = "", published: bool = False
) -> None:
    """Make the content the file's, whole or not at all; nothing else is left when that fails.

    `published` is for what other programs read, and look for by its name: it survives a power cut, has
    `mode` whatever the umask, and until it is whole it begins with a dot. `new` is what it is called until
    then, and what a crash leaves. The OSError names the file, which a write's own does not.
    """
    directory, name = os.path.split(path)
    new = new or os.path.join(directory, f".{name}.new" if published else f"{name}.new")
    try:
        fd = step("create", os.open, new, _ANEW, mode)
        try:
            write_whole(fd, content)
            if published:
                step("chmod", os.fchmod, fd, mode)
                os.fsync(fd)
        finally:
            os.close(fd)
        step("rename", os.rename, new, path)
    except OSError as error:
        with suppress(OSError):
            remove_file(new)
        raise OSError(error.errno, error.strerror, path) from error


def remove_file(path: str) -> None:
    """Remove the file; none is fine."""
    with suppress(FileNotFoundError):
        step("unlink", os.unlink, path)
