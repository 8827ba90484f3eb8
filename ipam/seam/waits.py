"""Waits of a call; in an agent other calls compute meanwhile.

An agent says how (agent/run_lock.py in cni_plugin); in a process of one call there is nobody to let.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ipam.seam import Process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


class Deadline:
    """The end of the time that a wait may last, on the clock that nobody sets."""

    __slots__ = ("_end",)

    def __init__(self, timeout: float) -> None:
        """Begin now; `timeout` is in seconds."""
        self._end = time.monotonic() + timeout

    def left(self) -> float:
        """Return the seconds that are left; 0 when the time is up."""
        return max(0.0, self._end - time.monotonic())


def waiting() -> AbstractContextManager[None]:
    """Return what surrounds a wait for the kernel, for another call or for a program."""
    return Process.current.let_others()


def sleep(seconds: float) -> None:
    """Do nothing for so long."""
    with waiting():
        time.sleep(seconds)


def looks(timeout: float, pause: float = 0.0, longest: float = 0.0) -> Iterator[None]:
    """Yield at once, and again after each pause if there is one, until the time (seconds) is up.

    Who looks returns when it has seen what it waits for. With `longest` each pause is twice the one before.
    """
    deadline = Deadline(timeout)
    while True:
        yield
        if not deadline.left():
            return
        if pause:
            sleep(pause)
        pause = min(pause * 2, longest) if longest else pause
