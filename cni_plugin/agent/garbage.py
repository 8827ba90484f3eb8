"""Periodic garbage collection of the agent: `podwire gc` as a child process.

The child holds one end of a pipe and reclaims nothing when the other end is closed, which the end of
the agent does, however that comes. One collection runs at a time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.agent import metrics
from cni_plugin.agent.journal import own, render_pairs
from ipam.seam import step

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEAVE = 10.0  # seconds that a child has to end by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """How often to collect, in seconds, and the words behind `podwire gc`."""

    interval: float
    words: tuple[str, ...]


@contextmanager
def collecting(collection: Collection | None) -> Iterator[None]:
    """Collect during the block, the first time an interval after its beginning; None for never."""
    if collection is None:
        yield
        return
    collector = _Collector(collection)
    collector.start()
    try:
        yield
    finally:
        collector.leave()


def _read_to_end(child: subprocess.Popen[bytes]) -> bytes:
    """Return what a child says until it ends; `communicate` would close the pipe that keeps it going."""
    with child:
        return child.stdout.read() if child.stdout else b""


def _log(said: bytes, status: int) -> None:
    """Log what was reclaimed, and what could not be; why is on our stderr already."""
    try:
        report = json.loads(said)
        found, reclaimed, kept = (int(report[key]) for key in ("found", "reclaimed", "kept"))
    except (ValueError, KeyError, TypeError):
        own.warning(render_pairs(gc="failed", status=status))
        return
    metrics.count_garbage(found, reclaimed)
    if found:
        failed = found - reclaimed
        own.info(render_pairs(gc="done", found=found, reclaimed=reclaimed, failed=failed, kept=kept))


class _Collector(threading.Thread):
    def __init__(self, collection: Collection) -> None:
        super().__init__(name="gc", daemon=True)
        self._collection = collection
        self._ended = threading.Event()
        self._guard = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        while not self._ended.wait(self._collection.interval):
            try:
                child = self._start()
            except OSError as error:
                own.warning(render_pairs(gc=str(error)))
                continue
            if child is not None:
                _log(_read_to_end(child), child.returncode)

    def _start(self) -> subprocess.Popen[bytes] | None:
        """Start a collection, whose stderr is ours; None when no more are wanted."""
        # -I: what the environment or the working directory say of modules is not for a root process.
        command = [sys.executable, "-I", "-m", "cni_plugin", "gc", "--json", "--until-eof"]
        with self._guard:
            if self._ended.is_set():
                return None
            start = partial[subprocess.Popen[bytes]](
                subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            self._child = step("program", start, [*command, *self._collection.words])
            return self._child

    def leave(self) -> None:
        """End the child, and return when it has ended."""
        with self._guard:
            self._ended.set()
            child = self._child
        if child is not None and child.stdin is not None:
            child.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                child.wait(_LEAVE)
            child.kill()
        self.join()
