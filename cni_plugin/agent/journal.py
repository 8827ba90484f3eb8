"""Logging of concurrent calls: each caller gets the lines of its own call, stderr the agent's own.

What a verb logs goes back to the caller's stderr, where the executable would have written it.
The agent's own lines are `key=value` pairs on its stderr, one per call. A call runs in one
thread, which is how its lines are told apart.
"""

from __future__ import annotations

import codecs
import logging
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cni_plugin.contract.dispatch import CallFormatter, log_level

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

own = logging.getLogger("podwire.agent")
# Now: its module could not be read when there are no descriptors left, which must be told.
_escape = codecs.getencoder("unicode_escape")


class Journal(logging.Handler):
    """The handler of everything that the verbs log."""

    def __init__(self) -> None:
        """Start with no call running."""
        super().__init__()
        self._thread = threading.local()
        self._talkative = 0
        self._guard = threading.Lock()

    def install(self) -> None:
        """Take over the process's logging."""
        root = logging.getLogger()
        root.setLevel(logging.WARNING)
        root.addHandler(self)
        own.setLevel(logging.INFO)
        own.propagate = False
        own.addHandler(logging.StreamHandler(sys.stderr))

    @contextmanager
    def of_call(self, environ: Mapping[str, str]) -> Iterator[list[str]]:
        """Collect the lines of the call that this thread runs in the block."""
        lines: list[str] = []
        level = log_level(environ)
        self._thread.call = (lines, level, CallFormatter(environ))
        self._count_talkative(level, 1)
        try:
            yield lines
        finally:
            self._count_talkative(level, -1)
            del self._thread.call

    def _count_talkative(self, level: int, change: int) -> None:
        """Let debug lines be made only while a caller wants them."""
        if level == logging.DEBUG:
            with self._guard:
                self._talkative += change
                logging.getLogger().setLevel(logging.DEBUG if self._talkative else logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Give the record to the call of the thread that made it."""
        call = getattr(self._thread, "call", None)
        if call is None:
            own.handle(record)
            return
        lines, level, formatter = call
        if record.levelno >= level:
            lines.append(formatter.format(record) + "\n")


def render_pairs(**pairs: object) -> str:
    """Return `key=value` words; a value with blanks or quotes is quoted."""
    return " ".join(f"{key}={_quote(str(value))}" for key, value in pairs.items())


def _quote(text: str) -> str:
    plain = text.isprintable() and not any(c in ' "=' for c in text)
    return text if text and plain else '"' + _escape(text)[0].decode().replace('"', '\\"') + '"'
