"""SIGTERM and SIGINT as a file descriptor to wait for beside sockets: the self-pipe trick, signal(7)."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def termination() -> Iterator[int]:
    """Yield a descriptor that becomes readable when we are asked to end."""
    ours, pythons = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(pythons)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        yield ours
    finally:
        signal.set_wakeup_fd(-1)
        os.close(ours)
        os.close(pythons)
