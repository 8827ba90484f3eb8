"""The hand-over: the next agent gets the lock and the listening sockets of the one before it.

Who holds the lock beside a socket is the agent there. The next one loads everything and connects to
`SOCKET.next`. The agent ends what it does beside calls, passes its descriptors on (SCM_RIGHTS), answers
whom it has let in, and stands by: it is the agent again when the other one ends first. No socket is closed
on the way, so whoever connects meanwhile waits in its backlog, and is answered.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cni_plugin.agent.systemd import take_listener
from cni_plugin.contract.errors import CNIError, Code
from ipam.seam import step
from ipam.seam.files import make_directories, remove_file
from ipam.seam.waits import Deadline

if TYPE_CHECKING:
    from collections.abc import Iterator

# Clients that connect are not refused by the kernel but by us, in words.
_BACKLOG: Final = 1024
_LOCK: Final = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
_LONGEST: Final = 40.0  # seconds until an agent has handed over: it ends its children first
_PATIENCE: Final = 10.0  # seconds for which an agent is asked that does not answer
_PAUSE: Final = 0.05  # seconds from one look at the lock to the next
_MESSAGE: Final = 1024  # bytes; what goes with the descriptors is where HTTP is served


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """What makes a process the agent of the socket `path`: its lock, and the sockets that listen.

    `lent` when a service manager keeps the socket for the agent after us. `http` listens at `http_at`.
    """

    path: str
    lock: int
    listener: socket.socket
    http: socket.socket | None = None
    http_at: str = ""
    lent: bool = False

    def close(self) -> None:
        """Be the agent no more; the lock goes last, when nothing of ours is in the next one's way."""
        self.listener.close()
        if self.http is not None:
            self.http.close()
        os.close(self.lock)


def open_post(path: str, http_at: str) -> Post | None:
    """Become the agent, at what the service manager opened if it did; None when another is."""
    lent = take_listener()
    if lent is not None:
        path = os.fsdecode(lent.getsockname())
    lock = _take_lock(path)
    return None if lock is None else _listen_with(path, lock, http_at, lent)


def take_over(path: str, http_at: str, terminated: int) -> Post | None:
    """Become the agent in place of the one that runs; None when `terminated` became readable first.

    CNIError 11 when that one does not hand over.
    """
    deadline = Deadline(_PATIENCE)
    while deadline.left():
        post = _ask(path, http_at, terminated) or open_post(path, http_at)
        if post is not None:
            return post
        if _is_readable(terminated, within=_PAUSE):
            return None
    raise another_runs(path)


def stand_by(path: str, http_at: str, terminated: int) -> Post | None:
    """Become the agent when there is none any more; None when `terminated` became readable first."""
    while (post := open_post(path, http_at)) is None:
        if _is_readable(terminated, within=_PAUSE):
            return None
    return post


@contextmanager
def line_of(post: Post) -> Iterator[socket.socket | None]:
    """Let the next agent ask for the post during the block; None where a service manager lends the socket."""
    if post.lent:
        yield None
        return
    with _listen(f"{post.path}.next") as line:
        yield line


def hand_over(post: Post, successor: socket.socket) -> bool:
    """Pass the post on and keep nothing of it; False when who asked for it is gone: it stays ours."""
    sockets = (post.listener, *([post.http] if post.http else []))
    with successor:
        try:
            socket.send_fds(
                successor,
                [f"http {post.http_at}".encode()],
                [post.lock, *(each.fileno() for each in sockets)],
            )
        except OSError:
            return False
        post.close()
    return True


def leave(post: Post) -> None:
    """Take the names away: who connects from now on finds no agent. A lent socket keeps its own."""
    if not post.lent:
        remove_file(post.path)
        remove_file(f"{post.path}.next")


@contextmanager
def only_agent(path: str) -> Iterator[None]:
    """Hold the lock beside the socket, which ends with the process, however that ends; else CNIError 11."""
    lock = _take_lock(path)
    if lock is None:
        raise another_runs(path)
    try:
        yield
    finally:
        os.close(lock)


def another_runs(path: str) -> CNIError:
    """Return the error of who is not the only agent."""
    return CNIError(Code.TRY_AGAIN_LATER, f"{path}: wanted to be the only agent, found another running")


def _take_lock(path: str) -> int | None:
    """Return the lock, None when another has it."""
    make_directories(os.path.dirname(path))
    # Whoever may open it may hold it, and no agent would start.
    lock: int = step("create", os.open, f"{path}.lock", _LOCK, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _ask(path: str, http_at: str, terminated: int) -> Post | None:
    """Return the post of the agent that runs; None when it does not hand over, or we are told to end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as other:
        try:
            other.connect(f"{path}.next")
        except OSError:
            return None
        if _is_readable(other.fileno(), terminated, within=_LONGEST) != {other.fileno()}:
            return None
        said, descriptors, _, _ = socket.recv_fds(other, _MESSAGE, 3, socket.MSG_CMSG_CLOEXEC)
        if len(descriptors) < 2:
            return None
        # It closes this when it has closed those: until then what we listen at is taken.
        with suppress(OSError):
            other.recv(1)
    lock, listener, *https = descriptors
    heir = socket.socket(fileno=listener)
    # Who connects is told by the kernel whom it has found (SO_PEERCRED): who listened last.
    heir.listen(_BACKLOG)
    heir.setblocking(False)
    mine = said.decode() == f"http {http_at}"
    for each in https if not mine else []:
        os.close(each)
    http = socket.socket(fileno=https[0]) if mine and https else _listen_for_http(http_at)
    return Post(path=path, lock=lock, listener=heir, http=http, http_at=http_at)


def _listen_with(path: str, lock: int, http_at: str, lent: socket.socket | None) -> Post:
    try:
        http = _listen_for_http(http_at)
        listener = lent or _listen(path)
    except BaseException:
        os.close(lock)
        raise
    listener.setblocking(False)
    return Post(path=path, lock=lock, listener=listener, http=http, http_at=http_at, lent=lent is not None)


def _listen_for_http(http_at: str) -> socket.socket | None:
    if not http_at:
        return None
    from cni_plugin.agent.endpoints import listen_at

    return listen_at(http_at)


def _listen(path: str) -> socket.socket:
    """Return a socket that listens at `path`, for root alone from the first moment."""
    staged = f"{path}.new"
    remove_file(staged)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listening.setblocking(False)
    step("create", listening.bind, staged)
    step("chmod", os.chmod, staged, 0o600)
    listening.listen(_BACKLOG)
    step("rename", os.rename, staged, path)
    return listening


def _is_readable(*descriptors: int, within: float) -> set[int]:
    """Return which of them are readable, as soon as one is or after `within` seconds."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(within * 1000)}
