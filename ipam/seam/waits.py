"""Waits of a call; in an agent other calls compute meanwhile.

An agent says how (cni_plugin/agent/run_lock.py); in a process of one call there is nobody to let.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

let_others: Callable[[], AbstractContextManager[None]] = nullcontext


def waiting() -> AbstractContextManager[None]:
    """Return what surrounds a wait for the kernel, for another call or for a program."""
    return let_others()


def sleep(seconds: float) -> None:
    """Do nothing for so long."""
    with waiting():
        time.sleep(seconds)


def looks(timeout: float, pause: float, longest: float = 0.0) -> Iterator[None]:
    """Yield at once, and again after each pause, until the time (seconds) is up.

    Who looks returns when it has seen what it waits for. With `longest` each pause is twice the one before.
    """
    deadline = time.monotonic() + timeout
    while True:
        yield
        if time.monotonic() > deadline:
            return
        sleep(pause)
        pause = min(pause * 2, longest) if longest else pause
