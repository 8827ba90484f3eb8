"""The agent's Unix socket: one agent per path, a thread per call, a limit on how many wait.

The socket appears by rename(2), listening and with its mode in place, so a shim either finds an
agent or none. SIGTERM takes the name away, serves who had connected by then, and ends; the next agent
may take the socket over before (`handover`). What a killed agent leaves is the name, which answers
nobody and is replaced by the next.
"""

from __future__ import annotations

import _thread
import gc
import os
import select
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.agent import metrics, presence, wire
from cni_plugin.agent.calls import Calls, send
from cni_plugin.agent.children import kept
from cni_plugin.agent.handover import another_runs, hand_over, leave, line_of, open_post, stand_by, take_over
from cni_plugin.agent.journal import Journal, own, render_pairs
from cni_plugin.agent.readiness import Readiness
from cni_plugin.agent.signals import termination
from cni_plugin.agent.systemd import Notifier
from cni_plugin.agent.upkeep import keeping
from cni_plugin.config.paths import CONF_DIR, STATE_FILE
from cni_plugin.contract.dispatch import failure
from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.plugins import PLUGINS

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cni_plugin.agent.children import Child
    from cni_plugin.agent.endpoints import Endpoints
    from cni_plugin.agent.exposition import Exposition
    from cni_plugin.agent.handover import Post
    from cni_plugin.agent.upkeep import Keeper

DEFAULT_QUEUE = 256
_ACCEPT_PAUSE = 0.05  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """How the agent is to run: `workers` calls at once, `queue` more that wait.

    `http` is where metrics and probes are served, empty for nowhere. Where the node is one of a
    cluster (`in_cluster`) it is ready when `state_file` says so. An agent that runs already is asked to
    hand over with `take_over`, unless `before_taking_over` raises; without, there is no second one.
    """

    socket: str
    workers: int
    queue: int
    http: str = ""
    conf_dir: str = CONF_DIR
    state_file: str = STATE_FILE
    in_cluster: bool = False
    children: tuple[Child, ...] = ()
    keeper: Keeper | None = None
    resync: float = 60.0
    """Seconds after which the keeper looks at everything again."""
    take_over: bool = False
    before_taking_over: Callable[[], object] = lambda: None


def run(settings: AgentSettings) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status. CNIError when it cannot begin."""
    journal = Journal()
    journal.install()
    notifier = Notifier()
    exposition = _load_exposition(settings) if settings.http else None
    with termination() as terminated:
        # Clients wait at the socket while everything is loaded; those of another agent wait for nothing.
        post = open_post(settings.socket, settings.http)
        if post is None and not settings.take_over:
            raise another_runs(settings.socket)
        if post is None:
            settings.before_taking_over()
        door = Admission(settings, Calls(settings.workers, journal))
        for load in PLUGINS.values():
            load()
        # What is loaded now stays; the collector need not look at it again and again.
        gc.freeze()
        post = post or take_over(settings.socket, settings.http, terminated)
        while post is not None:
            term = _Term(settings=settings, post=post, door=door, exposition=exposition, notifier=notifier)
            successor = term.serve(terminated)
            if successor is None:
                break
            if hand_over(post, successor):
                _say(socket=post.path, state="handed over")
                post = stand_by(settings.socket, settings.http, terminated)
    door.wait()
    _say(state="stopped")
    return 0


def _load_exposition(settings: AgentSettings) -> Exposition:
    """Return what renders the metrics; CNIError when the extra package is not installed."""
    try:
        from cni_plugin.agent.exposition import Exposition
    except ImportError as error:
        raise CNIError(
            Code.NOT_AVAILABLE,
            f"--http: wanted the package prometheus_client, found {error}; "
            "install it: scripts/install --with metrics",
        ) from error
    return Exposition(settings.conf_dir, settings.state_file)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Term:
    """The time for which this process is the agent: until it is told to end, or asked to hand over."""

    settings: AgentSettings
    post: Post
    door: Admission
    exposition: Exposition | None
    notifier: Notifier

    def serve(self, terminated: int) -> socket.socket | None:
        """Let clients in; return who wants the post, None when it is given up."""
        settings, post = self.settings, self.post
        # What a predecessor's children said until now does not count.
        readiness = Readiness(settings.state_file if settings.in_cluster else "")
        served = self._endpoints()
        with (
            line_of(post) as line,
            kept(settings.children),
            keeping(settings.keeper, settings.resync),
        ):
            _say(socket=post.path, state="ready", **({"http": served.place} if served else {}))
            if served:
                served.start(lambda: readiness.find_reasons(post.path))
            self.notifier.tell("READY=1")
            successor = self._accept(terminated, line)
            if served:
                served.stop()
            if successor is None:
                self._leave()
        if successor is None:
            post.close()
        return successor

    def _endpoints(self) -> Endpoints | None:
        if self.post.http is None or self.exposition is None:
            return None
        from cni_plugin.agent.endpoints import Endpoints

        return Endpoints(self.post.http, self.exposition)

    def _accept(self, terminated: int, line: socket.socket | None) -> socket.socket | None:
        poll = select.poll()
        for each in (terminated, self.post.listener.fileno(), *([line.fileno()] if line else [])):
            poll.register(each, select.POLLIN)
        due = 0.0
        while True:
            if time.monotonic() >= due:
                presence.note(self.post.path)
                due = time.monotonic() + presence.PERIOD
            ready = dict(poll.poll(max(due - time.monotonic(), 0) * 1000))
            if terminated in ready:
                return None
            if line is not None and line.fileno() in ready and (successor := _accept_successor(line)):
                return successor
            if self.post.listener.fileno() in ready:
                _accept_one(self.post.listener, self.door)

    def _leave(self) -> None:
        """Take the name away and let in who had connected by then; a lent socket keeps both."""
        self.notifier.tell("STOPPING=1")
        presence.note(self.post.path)
        leave(self.post)
        while not self.post.lent and _accept_one(self.post.listener, self.door):
            pass


def _accept_successor(line: socket.socket) -> socket.socket | None:
    """Return who asks for the post; None for nobody, and for another user, who must not have it."""
    try:
        asking, _ = line.accept()
    except OSError:
        return None
    if (uid := wire.peer_of(asking).uid) != os.geteuid():
        own.warning(render_pairs(refused=f"a successor of uid {uid}"))
        asking.close()
        return None
    return asking


def _say(**pairs: object) -> None:
    own.info(render_pairs(node=os.uname().nodename, **pairs))


def _accept_one(listener: socket.socket, door: Admission) -> bool:
    """Let one client in; False when none waits."""
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        return False
    except OSError as error:
        # Out of descriptors or memory: those inside will give some back.
        own.warning(render_pairs(accept=str(error)))
        time.sleep(_ACCEPT_PAUSE)
    else:
        door.admit(connection)
    return True


class Admission:
    """Lets clients in as long as there are places, and says at once when there is none."""

    def __init__(self, settings: AgentSettings, calls: Calls) -> None:
        """Open with every place free."""
        self._calls = calls
        self._count = settings.workers + settings.queue
        self._places = threading.BoundedSemaphore(self._count)

    def admit(self, connection: socket.socket) -> None:
        """Give the client a thread, or refuse it."""
        uid = wire.peer_of(connection).uid
        if uid != os.geteuid():
            metrics.count_refused_client()
            own.warning(render_pairs(refused=f"a client of uid {uid}"))
            connection.close()
        elif self._places.acquire(blocking=False):
            self._seat(connection)
        else:
            _refuse(connection, f"wanted a free place, found all {self._count} taken")

    def _seat(self, connection: socket.socket) -> None:
        try:
            # Thread.start() would wait until the thread runs: two switches for every call.
            _thread.start_new_thread(self._serve, (connection,))
        except RuntimeError as error:
            self._places.release()
            _refuse(connection, f"wanted a thread, found that the kernel has none to give: {error}")

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._calls.serve(connection)
        except OSError as error:
            own.warning(render_pairs(unanswered=str(error)))
        finally:
            self._places.release()

    def wait(self) -> None:
        """Return when everybody has left; nobody is admitted any more."""
        for _ in range(self._count):
            self._places.acquire()


def _refuse(connection: socket.socket, why: str) -> None:
    metrics.count_refused_client()
    own.warning(render_pairs(refused=why))
    with connection:
        send(connection, failure(CNIError(Code.TRY_AGAIN_LATER, f"podwire agent: {why}")))
