"""Network namespaces of the benchmark: nodes and pods, all in /run/netns of a mount namespace of its own.

A plugin starts in the namespace that this process is in, so entering a node is setns(2) before posix_spawn:
`ip netns exec` would put its own start into what is measured.
"""

from __future__ import annotations

import ctypes  # noqa: TID251 - os.setns came with Python 3.12
import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

DIRECTORY = "/run/netns"
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def make_spaces(names: Iterable[str]) -> None:
    """Make namespaces, all by one process."""
    _batch(f"netns add {name}" for name in names)


def remove_spaces(names: Iterable[str]) -> None:
    """Remove namespaces; what is in them the kernel removes in its own time."""
    _batch(f"netns del {name}" for name in names)


def _batch(lines: Iterable[str]) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True)


def open_space(name: str) -> int:
    """Return a descriptor of a namespace."""
    return os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC)


def path_of(name: str) -> str:
    """Return the path of a namespace, as a runtime hands it on."""
    return f"{DIRECTORY}/{name}"


def enter(space: int) -> None:
    """Work in this namespace from now on, and start others in it."""
    if _libc.setns(space, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
