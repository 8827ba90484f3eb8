"""When to look at the node: after a burst of news, after a failure, and from time to time."""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING, Protocol

from cni_plugin.kernel.netns import open_host

if TYPE_CHECKING:
    from cni_plugin.kernel.monitor import Monitor

_QUIET, _LONGEST_BURST = 0.2, 0.6  # seconds without news after which a burst is over, and with news
_GATHER = 0.05  # seconds; the news of many pods are taken together
_REST = 3  # times as long as a step took it is left alone by the kernel's news
_FIRST = 2.0  # seconds for which the first step waits for the first news
_RETRIES = (1.0, 30.0)  # seconds until a step that failed is tried again, from the first to the longest


class Stepper(Protocol):
    """Who is woken."""

    def step(self) -> bool:
        """Look at everything and make it right; tell whether it is."""


class Loop:
    """Waits for whoever wakes us, the kernel's news, the time, and the end."""

    def __init__(self, resync: float, monitor: Monitor, endings: tuple[int, ...]) -> None:
        """Wait for what wakes us, the kernel's news, and descriptors whose readability is the end."""
        self._resync = resync
        self._monitor = monitor
        self._endings = endings
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        for descriptor in (self._woken, monitor.fileno(), *endings):
            self._poll.register(descriptor, select.POLLIN)

    def close(self) -> None:
        """Be woken no more."""
        os.close(self._woken)

    def wake(self) -> None:
        """Have a step taken soon; from any thread."""
        os.eventfd_write(self._woken, 1)

    def run(self, stepper: Stepper) -> None:
        """Take steps until the end.

        What a predecessor said of the node is in force until the first one. With news it can say as much.
        """
        retry = _RETRIES[0]
        if not self._wait(time.monotonic() + _FIRST, 0):
            return
        while True:
            started = time.monotonic()
            if stepper.step():
                pause, retry = self._resync, _RETRIES[0]
            else:
                pause, retry = retry, min(retry * 2, _RETRIES[1])
            ended = time.monotonic()
            if not self._wait(ended + pause, ended + _REST * (ended - started)):
                return

    def _wait(self, resync: float, rested: float) -> bool:
        """Wait until `resync`, or for news and for the end of their burst; False at the end.

        The kernel's news have no answer before `rested`, and none when they turn out to be about pods alone
        that came or went.
        """
        asked, due, longest = False, resync, resync
        while True:
            left = min(due, longest) - time.monotonic()
            if left <= 0:
                if asked or due == resync or self._confirm():
                    return True
                due = longest = resync
                continue
            ready = {descriptor for descriptor, _ in self._poll.poll(left * 1000)}
            if ready & set(self._endings):
                return False
            woken, heard = self._is_woken(ready), self._has_heard(ready)
            asked |= woken
            if woken or heard:
                earliest = 0.0 if asked else rested
                longest = min(longest, max(time.monotonic() + _LONGEST_BURST, earliest))
                due = max(time.monotonic() + _QUIET, earliest)

    def _is_woken(self, ready: set[int]) -> bool:
        if self._woken not in ready:
            return False
        os.eventfd_read(self._woken)
        return True

    def _has_heard(self, ready: set[int]) -> bool:
        if self._monitor.fileno() not in ready:
            return False
        time.sleep(_GATHER)
        return self._monitor.drain()

    def _confirm(self) -> bool:
        with open_host() as host:
            return self._monitor.confirm(host.netlink)
