"""A thread that brings one part of the dataplane in line when it is woken, a burst of news at a time.

A part has a thread of its own, so that what is slow for one (a list of ten thousand Services) keeps no
other waiting.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_GATHER = 0.05  # seconds after the first news of a burst
_RETRIES = (1.0, 30.0)  # seconds until a step that failed is tried again, from the first to the longest


@dataclass
class Worker:
    """Takes `step`, which tells whether all is right, after news and at the latest `resync` seconds later."""

    name: str
    step: Callable[[], bool]
    resync: float
    """Seconds until a step is taken without news."""
    _news: threading.Event = field(default_factory=threading.Event)
    _ended: bool = False
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, with a step at once."""
        self._news.set()
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Have a step taken soon; from any thread."""
        self._news.set()

    def stop(self) -> None:
        """End after the step that is being taken."""
        self._ended = True
        self._news.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        pause, retry = self.resync, _RETRIES[0]
        while True:
            self._news.wait(pause)
            time.sleep(_GATHER)
            # Before the look at the end, which is news, too: it must not be taken for old ones.
            self._news.clear()
            if self._ended:
                return
            if self.step():
                pause, retry = self.resync, _RETRIES[0]
            else:
                pause, retry = retry, min(retry * 2, _RETRIES[1])
