"""When to sync: after a burst of events, after a failure, and hourly; never two at once."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cni_plugin.dataplane.follow import Follower
    from cni_plugin.kernel.monitor import Monitor

_QUIET, _LONGEST_BURST = 0.2, 2.0  # seconds without news after which a burst is over, and with news
_FIRST = 2.0  # seconds for which the first step waits for the first news
_RETRIES = (1.0, 30.0)  # seconds until a step that failed is tried again, from the first to the longest


class Loop:
    """Waits for what changed in the cluster, the kernel's news, the time, and the end."""

    def __init__(self, resync: float, monitor: Monitor, endings: tuple[int, ...]) -> None:
        """Wait for what wakes us, the kernel's news, and descriptors whose readability is the end."""
        self._resync = resync
        self._monitor = monitor
        self._endings = endings
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        for descriptor in (self._woken, monitor.fileno(), *endings):
            self._poll.register(descriptor, select.POLLIN)

    def wake(self) -> None:
        """Have a step taken soon; from any thread."""
        os.eventfd_write(self._woken, 1)

    def run(self, follower: Follower) -> None:
        """Take steps until the end.

        What a predecessor said of the node is in force until the first one. With news it can say as much.
        """
        retry = _RETRIES[0]
        if not self._wait(time.monotonic() + _FIRST):
            return
        while True:
            if follower.step():
                pause, retry = self._resync, _RETRIES[0]
            else:
                pause, retry = retry, min(retry * 2, _RETRIES[1])
            if not self._wait(time.monotonic() + pause):
                return

    def _wait(self, due: float) -> bool:
        """Wait for news and for the end of their burst, or until `due`; False at the end."""
        longest = due
        while (left := min(due, longest) - time.monotonic()) > 0:
            ready = {descriptor for descriptor, _ in self._poll.poll(left * 1000)}
            if ready & set(self._endings):
                return False
            if self._is_news(ready):
                longest = min(longest, time.monotonic() + _LONGEST_BURST)
                due = time.monotonic() + _QUIET
        return True

    def _is_news(self, ready: set[int]) -> bool:
        woken = self._woken in ready
        if woken:
            os.eventfd_read(self._woken)
        return (self._monitor.fileno() in ready and self._monitor.drain()) or woken
