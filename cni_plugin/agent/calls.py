"""Runs one call in the agent, as the executable would, in the caller's network namespace.

Calls about one attachment take turns in the order of their arrival: a runtime that gives up on
an ADD sends its DEL while that ADD still runs here. How many calls run at once is bounded; a
call whose caller has left before it began is not begun.
"""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cni_plugin import __version__
from cni_plugin.addresses.delegate import SOURCES
from cni_plugin.agent import metrics, wire
from cni_plugin.agent.journal import own, render_pairs
from cni_plugin.agent.run_lock import RunLock
from cni_plugin.contract.dispatch import answer, failure, render_about
from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.contract.request import environ_of
from cni_plugin.kernel.netns import inside, open_caller
from cni_plugin.plugins import PLUGINS, type_of
from ipam.seam import Process

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from cni_plugin.agent.journal import Journal
    from cni_plugin.agent.wire import Call, Reply
    from cni_plugin.contract.dispatch import Answer

_REQUEST_TIMEOUT = 10.0  # seconds until a request must be whole
_REPLY_TIMEOUT = 10.0  # seconds until a reply must be taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a call ended, in words for the log and as it is counted."""

    said: str
    result: str
    code: int = 0


_DONE = Outcome(said="done", result=metrics.SUCCESS)
_NOT_BEGUN = Outcome(said="not begun: its caller left", result=metrics.ABANDONED)
_UNDONE = Outcome(said="undone: its caller left", result=metrics.ABANDONED)
# What no answer could be made for: the caller's namespace cannot be had.
_FAILED = Outcome(said="failed", result=metrics.ERROR, code=Code.INTERNAL)


@dataclass(slots=True)
class _Turn:
    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: int = 0


class Turns:
    """One holder per key at a time; keys are forgotten when nobody waits for them."""

    def __init__(self) -> None:
        """Start with no keys."""
        self._guard = threading.Lock()
        self._turns: dict[object, _Turn] = {}

    @contextmanager
    def taken(self, key: object) -> Iterator[None]:
        """Run the block when no other block with this key runs."""
        with self._guard:
            turn = self._turns.setdefault(key, _Turn())
            turn.waiting += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._guard:
                turn.waiting -= 1
                if not turn.waiting:
                    del self._turns[key]


class Calls:
    """Runs calls, at most `workers` of them at once.

    As many deletions more, which wait for no additions, and as many calls of address managers, which a
    foreign delegate may make while its own caller has a place.
    """

    def __init__(self, workers: int, journal: Journal) -> None:
        """Start with nothing running."""
        self._journal = journal
        self._turns = Turns()
        self._run_lock = RunLock()
        Process(let_others=self._run_lock.aside).begin()
        self._workers = threading.BoundedSemaphore(workers)
        self._deletions = threading.BoundedSemaphore(workers)
        self._managers = threading.BoundedSemaphore(workers)

    def serve(self, connection: socket.socket) -> None:
        """Read one request and answer it; the peer may be gone at any point."""
        try:
            call = wire.receive_call(connection, _REQUEST_TIMEOUT)
        except wire.VersionError as error:
            send(connection, failure(CNIError(Code.TRY_AGAIN_LATER, f"podwire agent: {error}")))
        except (wire.WireError, OSError) as error:
            own.warning(render_pairs(refused=str(error) or type(error).__name__))
            send(connection, failure(CNIError(Code.DECODING_FAILURE, f"podwire agent: {error}")))
        else:
            if call is not None:
                self._serve_call(connection, call)

    def _serve_call(self, connection: socket.socket, call: Call) -> None:
        started = time.monotonic()
        metrics.begin_call()
        outcome = _FAILED
        try:
            with self._turn(call), self._slot(call), self._run_lock.held():
                reply, outcome = self._run_for_somebody(connection, call)
        finally:
            if call.netns_fd >= 0:
                os.close(call.netns_fd)
            _count(call, outcome, started)
        _log(call, outcome, started)
        if reply is not None:
            wire.send_reply(connection, reply, _REPLY_TIMEOUT)

    def _run_for_somebody(self, connection: socket.socket, call: Call) -> tuple[Reply | None, Outcome]:
        """Run the call and return its reply and how it ended; without a caller nothing shall remain."""
        if wire.has_left(connection):
            return None, _NOT_BEGUN
        wire.begin(connection)
        reply, outcome = self._run(connection, call)
        added = call.environ.get("CNI_COMMAND") == "ADD" and reply.status == 0
        if added and wire.has_left(connection):
            # What the executable does when it is told to end: a runtime may never send the DEL.
            self._run(connection, replace(call, environ=environ_of(call.environ, "DEL")))
            return None, _UNDONE
        return reply, outcome

    def _turn(self, call: Call) -> AbstractContextManager[None]:
        container_id = call.environ.get("CNI_CONTAINERID")
        if not container_id:
            return nullcontext()
        # The type, so that a foreign delegate that calls us in its turn does not wait for its caller.
        return self._turns.taken((type_of(call.program), container_id, call.environ.get("CNI_IFNAME")))

    def _slot(self, call: Call) -> threading.Semaphore:
        if type_of(call.program) in SOURCES:  # others wait for these while they hold a place
            return self._managers
        return self._deletions if call.environ.get("CNI_COMMAND") == "DEL" else self._workers

    def _run(self, connection: socket.socket, call: Call) -> tuple[Reply, Outcome]:
        plugin_type = type_of(call.program)
        if not call.environ.get("CNI_COMMAND"):
            # Only a shim that can say nothing by itself asks.
            about = render_about(plugin_type, __version__).encode()
            return wire.Reply(status=0, stdout=b"", stderr=about), _DONE
        load = PLUGINS[plugin_type]
        with self._journal.of_call(call.environ) as lines, _caller_namespace(connection):
            made = answer(call.environ, call.stdin, load, call.netns_fd)
        reply = wire.Reply(status=made.status, stdout=made.stdout, stderr="".join(lines).encode())
        return reply, _outcome(made)


@contextmanager
def _caller_namespace(connection: socket.socket) -> Iterator[None]:
    """Work where the caller is: for the executable, the node is the namespace that it runs in."""
    fd = open_caller(connection)
    try:
        with inside(fd):
            yield
    finally:
        os.close(fd)


def send(connection: socket.socket, made: Answer) -> None:
    """Send an answer that no verb has run for; a peer that is gone does not need it."""
    reply = wire.Reply(status=made.status, stdout=made.stdout, stderr=b"")
    try:
        wire.send_reply(connection, reply, _REPLY_TIMEOUT)
    except OSError as error:
        own.info(render_pairs(unsent=str(error)))


def _count(call: Call, outcome: Outcome, started: float) -> None:
    verb = call.environ.get("CNI_COMMAND", "")
    operation = metrics.operation(verb, type_of(call.program), outcome.result, outcome.code)
    metrics.end_call(operation, time.monotonic() - started)


def _log(call: Call, outcome: Outcome, started: float) -> None:
    environ = call.environ
    if environ.get("CNI_COMMAND") == "STATUS" and outcome is _DONE:
        return  # a runtime asks every few seconds
    pairs = render_pairs(
        container_id=environ.get("CNI_CONTAINERID", ""),
        ifname=environ.get("CNI_IFNAME", ""),
        network=_network(call.stdin),
        verb=environ.get("CNI_COMMAND", ""),
        type=type_of(call.program),
        duration=f"{time.monotonic() - started:.4f}",
        outcome=outcome.said,
    )
    own.info(pairs)


def _network(stdin: bytes) -> object:
    try:
        return json.loads(stdin).get("name", "")
    except (ValueError, AttributeError, RecursionError):
        return ""


def _outcome(made: Answer) -> Outcome:
    error = made.error
    if error is None:
        return _DONE
    metrics.count_error(error)
    return Outcome(said=f"error {error.code}: {error.msg}", result=metrics.ERROR, code=error.code)
