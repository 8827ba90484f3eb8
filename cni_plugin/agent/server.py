"""The agent's Unix socket: one agent per path, a thread per call, a limit on how many wait.

The socket appears by rename(2), listening and with its mode in place, so a shim either finds an
agent or none. SIGTERM takes the name away, serves who had connected by then, and ends. What a
killed agent leaves is the name, which answers nobody and is replaced by the next.
"""

from __future__ import annotations

import _thread
import fcntl
import gc
import os
import select
import socket
import struct
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.agent import metrics, presence
from cni_plugin.agent.calls import Calls, send
from cni_plugin.agent.children import kept
from cni_plugin.agent.journal import Journal, own, render_pairs
from cni_plugin.agent.readiness import Readiness
from cni_plugin.agent.signals import termination
from cni_plugin.agent.systemd import Notifier, take_listener
from cni_plugin.config.paths import CONF_DIR, STATE_FILE
from cni_plugin.contract.dispatch import failure
from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.plugins import PLUGINS
from ipam.seam import step
from ipam.seam.files import make_directories, remove_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.agent.children import Child
    from cni_plugin.agent.endpoints import Endpoints

DEFAULT_QUEUE = 256
# Clients that connect are not refused by the kernel but by us, in words.
_BACKLOG = 1024
_ACCEPT_PAUSE = 0.05  # seconds
_LOCK = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """How the agent is to run: `workers` calls at once, `queue` more that wait.

    `http` is where metrics and probes are served, empty for nowhere. Where the node is one of a
    cluster (`in_cluster`) it is ready when `state_file` says so.
    """

    socket: str
    workers: int
    queue: int
    http: str = ""
    conf_dir: str = CONF_DIR
    state_file: str = STATE_FILE
    in_cluster: bool = False
    children: tuple[Child, ...] = ()


def run(settings: AgentSettings) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status. CNIError when it cannot begin."""
    journal = Journal()
    journal.install()
    notifier = Notifier()
    served = _serve_http(settings) if settings.http else None
    readiness = Readiness(settings.state_file if settings.in_cluster else "")
    with _listening(settings.socket) as listener, termination() as terminated, kept(settings.children):
        door = Admission(settings, Calls(settings.workers, journal))
        for load in PLUGINS.values():
            load()
        # What is loaded now stays; the collector need not look at it again and again.
        gc.freeze()
        _say(socket=listener.path, state="ready", **({"http": served.place} if served else {}))
        if served:
            served.start(lambda: readiness.find_reasons(listener.path))
        notifier.tell("READY=1")
        _accept_until(terminated, listener, door)
        notifier.tell("STOPPING=1")
        listener.leave(door)
    door.wait()
    if served:
        served.server_close()
    _say(state="stopped")
    return 0


def _serve_http(settings: AgentSettings) -> Endpoints:
    """Return the listening endpoints; CNIError when the extra package is not installed."""
    try:
        from cni_plugin.agent.exposition import Exposition
    except ImportError as error:
        raise CNIError(
            Code.NOT_AVAILABLE,
            f"--http: wanted the package prometheus_client, found {error}; "
            "install it: scripts/install --with metrics",
        ) from error
    from cni_plugin.agent.endpoints import Endpoints

    return Endpoints(settings.http, Exposition(settings.conf_dir, settings.state_file))


def _say(**pairs: object) -> None:
    own.info(render_pairs(node=os.uname().nodename, **pairs))


def _accept_until(terminated: int, listener: Listener, door: Admission) -> None:
    poll = select.poll()
    poll.register(terminated, select.POLLIN)
    poll.register(listener.socket, select.POLLIN)
    due = 0.0
    ready: dict[int, int] = {}
    while terminated not in ready:
        if time.monotonic() >= due:
            presence.note(listener.path)
            due = time.monotonic() + presence.PERIOD
        ready = dict(poll.poll(max(due - time.monotonic(), 0) * 1000))
        _accept_one(listener.socket, door)
    presence.note(listener.path)


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
        uid = _peer_uid(connection)
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


def _peer_uid(connection: socket.socket) -> int:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return int(uid)


def _refuse(connection: socket.socket, why: str) -> None:
    metrics.count_refused_client()
    own.warning(render_pairs(refused=why))
    with connection:
        send(connection, failure(CNIError(Code.TRY_AGAIN_LATER, f"podwire agent: {why}")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """The listening socket; `lent` when a service manager keeps it for the agent after us."""

    socket: socket.socket
    path: str
    lent: bool

    def leave(self, door: Admission) -> None:
        """Take the name away and let in who had connected by then; a lent socket keeps both."""
        if self.lent:
            return
        remove_file(self.path)
        while _accept_one(self.socket, door):
            pass


@contextmanager
def _listening(path: str) -> Iterator[Listener]:
    """Listen at `path`, or on what the service manager opened; CNIError when another agent does."""
    lent = take_listener()
    if lent is not None:
        path = os.fsdecode(lent.getsockname())
    with only_agent(path), lent or _listen(path) as listening:
        listening.setblocking(False)
        yield Listener(socket=listening, path=path, lent=lent is not None)


@contextmanager
def only_agent(path: str) -> Iterator[None]:
    """Hold the lock beside the socket, which ends with the process, however that ends; else CNIError 11."""
    make_directories(os.path.dirname(path))
    # Whoever may open it may hold it, and no agent would start.
    with open(step("create", os.open, f"{path}.lock", _LOCK, 0o600), "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CNIError(
                Code.TRY_AGAIN_LATER, f"{path}: wanted to be the only agent, found another running"
            ) from error
        yield


def _listen(path: str) -> socket.socket:
    """Return a socket that listens at `path`, for root alone from the first moment."""
    staged = f"{path}.new"
    remove_file(staged)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    step("create", listening.bind, staged)
    step("chmod", os.chmod, staged, 0o600)
    listening.listen(_BACKLOG)
    step("rename", os.rename, staged, path)
    return listening
