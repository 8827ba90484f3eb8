"""Lets one call compute at a time; a call that waits too long goes on beside the one that holds the lock.

One interpreter runs one thread at a time, and gives it to another at every system call. A call makes
some hundred of those, each so short that the way there and back costs more than was gained. So calls
run one after another, except past those that wait: for a foreign plugin, a probe for duplicates, a lock.
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
    """One holder at a time, for `patience` seconds at most; who has lost it goes on without."""

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
        """Let others have it while the block waits for something else; who has lost it just waits."""
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
