"""The run lock: one call computes at a time, and one that waits too long goes on beside the holder.

One interpreter runs one thread at a time, and gives it to another at every system call. A call makes
some hundred of those, each so short that the switch costs more than it gains. So calls run one after
another, except while one waits: for a foreign plugin, a probe for duplicates, a file lock.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 0.01  # seconds, thrice what an ADD takes


class RunLock:
    """One holder at a time, for `patience` seconds at most; after that it computes beside the next holder."""

    def __init__(self, patience: float = PATIENCE) -> None:
        """Start with nobody holding it."""
        self._patience = patience
        self._freed = threading.Condition()
        self._holder = 0
        self._until = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Run the block when nobody else holds the lock, or has had it for too long."""
        self._take()
        try:
            yield
        finally:
            self._give()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let others have it while the block waits for something else."""
        if self._holder != threading.get_ident():
            yield
            return
        self._give()
        try:
            yield
        finally:
            self._take()

    def _take(self) -> None:
        with self._freed:
            while self._holder and (left := self._until - time.monotonic()) > 0:
                self._freed.wait(left)
            self._holder, self._until = threading.get_ident(), time.monotonic() + self._patience

    def _give(self) -> None:
        with self._freed:
            if self._holder == threading.get_ident():
                self._holder = 0
                self._freed.notify()
