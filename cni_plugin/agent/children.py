"""Child processes of the agent, for work that is heavy or periodic: the one way to start and end them.

A child is our own program with other arguments. Its stdin is a pipe to which nobody writes. The pipe
closes when the agent ends, in whatever way; a child with the option `--until-eof` then ends, too. One
that is to run all the time is started again when it ends, after a pause that grows when it does not last.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.agent.journal import own, render_pairs
from ipam.seam import step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PAUSES = (1.0, 30.0)  # seconds before a child is started again, from the first to the longest
_LASTED = 60.0  # seconds after which a child counts as one that works
_LEAVE = 10.0  # seconds that a child has to end by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """What to run, and when."""

    words: tuple[str, ...]
    """Those behind `podwire`."""
    interval: float = 0.0
    """Seconds before it runs, each time; 0 for all the time."""
    report: Callable[[bytes, int], None] | None = None
    """What is told what it said on stdout, and its exit status, when it has ended."""

    @property
    def name(self) -> str:
        """Return the command, as log lines name it."""
        return self.words[0]

    def start(self) -> subprocess.Popen[bytes]:
        """Start it with this interpreter, a pipe as its stdin, and our stderr."""
        # -I: what the environment or the working directory say of modules is not for a root process.
        isolated = ["-I"] if sys.flags.isolated else []
        command = [sys.executable, *isolated, "-m", "cni_plugin", *self.words]
        stdout = subprocess.PIPE if self.report else subprocess.DEVNULL
        start = partial[subprocess.Popen[bytes]](subprocess.Popen, stdin=subprocess.PIPE, stdout=stdout)
        return step("program", start, command)


class _Keeper:
    """One child and the thread that waits for it."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=child.name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pause = self._child.interval
        while not self._ended.wait(pause):
            started = time.monotonic()
            try:
                self._see_through()
            except OSError as error:  # no descriptor or process to be had: there may be one later
                own.warning(render_pairs(child=self._child.name, state="not started", error=str(error)))
            lasted = time.monotonic() - started > _LASTED
            pause = self._child.interval or (
                _PAUSES[0] if lasted else min(max(pause * 2, _PAUSES[0]), _PAUSES[1])
            )

    def _see_through(self) -> None:
        """Start the child, unless it is not wanted any more, and return when it has ended."""
        with self._guard:
            if self._ended.is_set():
                return
            process = self._process = self._child.start()
        if not self._child.report:
            own.info(render_pairs(child=self._child.name, pid=process.pid, state="started"))
        with process:  # `communicate` would close the pipe that keeps it going
            said = process.stdout.read() if process.stdout else b""
            status = process.wait()
        if self._child.report:
            self._child.report(said, status)
        else:
            own.warning(render_pairs(child=self._child.name, pid=process.pid, state="ended", status=status))

    def leave(self) -> None:
        """Close the pipe: the child shall end."""
        with self._guard:
            self._ended.set()
            process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()

    def wait(self) -> None:
        """Return when the child has ended, by its own will or not."""
        process = self._process
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LEAVE)
            process.kill()
        self._thread.join()


@contextmanager
def kept(children: tuple[Child, ...]) -> Iterator[None]:
    """Keep the children alive during the block, and end them with it."""
    keepers = [_Keeper(child) for child in children]
    try:
        yield
    finally:
        for keeper in keepers:
            keeper.leave()
        for keeper in keepers:
            keeper.wait()
