"""Network namespaces: a pod's, held open by a descriptor, and the host's own.

A `Namespace` owns netlink sockets inside it, made when they are first used. Entering is per thread
(setns(2)) and is needed only for what has no descriptor: sysctls, and making sockets. By hand:
`ip netns exec`.
"""

from __future__ import annotations

import _thread
import ctypes
import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.kernel.netlink import Netlink
from cni_plugin.kernel.nfnetlink import Nftables
from ipam.seam import part

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from socket import socket

_CLONE_NEWNET = 0x40000000
# linux/nsfs.h, linux/sockios.h
_NS_GET_NSTYPE = 0xB703
_SIOCGSKNS = 0x894C
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace that stays in existence while this object is open."""

    def __init__(self, fd: int, path: str = "", netlink: Netlink | None = None) -> None:
        """Take over `fd`, a descriptor of a network namespace, and a socket in it; `path` leads to it."""
        self.fd = fd
        self._path = path
        self._netlink = netlink
        self._nftables: Nftables | None = None

    @property
    def netlink(self) -> Netlink:
        """The namespace's route netlink: a DEL rarely needs the pod's."""
        if self._netlink is None:
            with self.entered():
                self._netlink = Netlink()
        return self._netlink

    def __enter__(self) -> Self:
        """Return the namespace, to be closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the sockets and the descriptor."""
        if self._netlink is not None:
            self._netlink.close()
        if self._nftables is not None:
            _give_back(self.fd, self._nftables)
        os.close(self.fd)

    @property
    def nftables(self) -> Nftables:
        """The namespace's nftables."""
        if self._nftables is None:
            with self.entered():
                self._nftables = _borrow(self.fd)
        return self._nftables

    def entered(self) -> AbstractContextManager[None]:
        """Run a block with the calling thread inside this namespace."""
        return inside(self.fd)

    def mark(self) -> str:
        """Return a name that no other namespace of this or another kernel has at the same time.

        A later one may get the inode's number again, when nothing is left that was in this one.
        """
        from ipam.boot_mark import boot_id  # of an address that is taken, for which it is loaded already

        return f"{boot_id()} {os.fstat(self.fd).st_ino}"

    def cookie(self) -> str:
        """Return a name that no other namespace ever has; empty where the kernel has none (before 5.14)."""
        from ipam.boot_mark import boot_id  # of what tuning keeps, which few pods have

        with suppress(OSError):
            return f"{boot_id()} {self.netlink.read_cookie()}"
        return ""

    def has_vanished(self) -> bool:
        """Tell whether the path that led to this namespace no longer does."""
        return bool(self._path) and not _leads_to(self._path, self.fd)


class IdleSockets:
    """Sockets of the namespace that this process is in, for the next call: closing one costs 16 ms.

    By the namespace's inode, which no other namespace gets as long as a socket of it is open.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.nftables: dict[int, list[Nftables]] = {}


def _borrow(namespace: int) -> Nftables:
    """Return a socket of the namespace, a descriptor of it, that the calling thread is in."""
    idle = part(IdleSockets).nftables.get(os.fstat(namespace).st_ino, [])
    with suppress(IndexError):  # there is none, or another thread was faster
        return idle.pop()
    return Nftables()


def _give_back(namespace: int, nftables: Nftables) -> None:
    """Keep the socket for the next call, or have it closed behind the caller's back."""
    if _is_own(namespace):
        idle = part(IdleSockets).nftables.setdefault(os.fstat(namespace).st_ino, [])
        idle.append(nftables)
    else:
        try:
            _thread.start_new_thread(nftables.close, ())
        except RuntimeError:  # the kernel has no more threads to give
            nftables.close()


def _is_own(namespace: int) -> bool:
    return os.path.samestat(os.fstat(namespace), os.stat("/proc/self/ns/net"))


@contextmanager
def inside(fd: int) -> Iterator[None]:
    """Run a block with the calling thread inside the namespace that `fd` describes."""
    outside = current_namespace()
    try:
        _setns(fd)
        try:
            yield
        finally:
            _setns(outside)
    finally:
        os.close(outside)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def current_namespace() -> int:
    """Return a new descriptor of the calling thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def open_host() -> Namespace:
    """Return the namespace that the calling thread is in: the node's."""
    netlink = Netlink()
    return Namespace(current_namespace(), netlink=netlink)


def open_caller(connection: socket) -> int:
    """Return a descriptor of the namespace that the peer of a Unix socket connected from.

    A socket made by connect(2) belongs to the connecting side's namespace (unix_stream_connect
    in net/unix/af_unix.c), so no process id has to be trusted.
    """
    return fcntl.ioctl(connection.fileno(), _SIOCGSKNS)


def open_pod(path: str, *, opened: int | None = None, allow_host: bool = False) -> Namespace:
    """Return the namespace at `path`; CNIError 4 when it is none, 8 when it is the host's own.

    `opened` is the same as somebody else opened it, see `Request.netns_fd`. The check against
    the host comes before anything is touched. `allow_host` is the reference library's
    CNI_NETNS_OVERRIDE.
    """
    try:
        fd = _open(path) if opened is None else _duplicate(opened)
    except OSError as error:
        raise CNIError(Code.INVALID_ENVIRONMENT, f"CNI_NETNS {path}: {error.strerror}") from error
    if not _is_network_namespace(fd):
        os.close(fd)
        raise CNIError(Code.INVALID_ENVIRONMENT, f"CNI_NETNS {path}: wanted a network namespace, found none")
    if _is_current(fd) and not allow_host:
        os.close(fd)
        raise CNIError(
            Code.INVALID_NETNS, f"CNI_NETNS {path}: wanted the container's namespace, found the host's own"
        )
    # The agent may not see the path that its caller opened, and then cannot see it vanish either.
    visible = opened is None or _leads_to(path, fd)
    return Namespace(fd, path if visible else "")


def _leads_to(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return False


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _duplicate(opened: int) -> int:
    if opened < 0:
        raise OSError(-opened, os.strerror(-opened))
    return os.dup(opened)


def find_pod(path: str, *, opened: int | None = None, allow_host: bool = False) -> Namespace | None:
    """Return the namespace at `path`, None when there is no namespace left there."""
    if not path:
        return None
    try:
        return open_pod(path, opened=opened, allow_host=allow_host)
    except CNIError as error:
        if error.code == Code.INVALID_ENVIRONMENT:
            return None
        raise


def _is_network_namespace(fd: int) -> bool:
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        return False


def _is_current(fd: int) -> bool:
    return os.path.samestat(os.fstat(fd), os.stat("/proc/thread-self/ns/net"))
