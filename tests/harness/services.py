"""A small service in a namespace, and clients that ask it as whom it sees them.

Sockets stay in the namespace that they are made in, so that both ends are threads of the test.
"""

from __future__ import annotations

import errno
import selectors
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

from tests.harness.networks import inside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import Space

REFUSED, SILENCE, UNREACHABLE = "refused", "silence", "unreachable"


@contextmanager
def offering(space: Space, port: int, *, address: str = "::", name: str = "") -> Iterator[None]:
    """Answer over TCP and UDP with `name` and the address of who asks; "::" is both families."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside(space):
        listener = socket.create_server((address, port), family=family, dualstack_ipv6=address == "::")
        datagrams = socket.socket(family, socket.SOCK_DGRAM)
    if address == "::":
        datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    datagrams.bind((address, port))
    stopped, stop = socket.socketpair()
    thread = threading.Thread(target=_serve, args=(listener, datagrams, stopped, name))
    thread.start()
    try:
        yield
    finally:
        stop.send(b"x")
        thread.join()
        for each in (listener, datagrams, stopped, stop):
            each.close()


@contextmanager
def echoing(space: Space, port: int) -> Iterator[None]:
    """Take one TCP connection of either family, and send back what it says until it ends."""
    with inside(space):
        listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    listener.settimeout(10)
    thread = threading.Thread(target=_echo, args=(listener,))
    thread.start()
    try:
        yield
    finally:
        thread.join()
        listener.close()


def _echo(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    connection.settimeout(10)
    with connection, suppress(TimeoutError):
        while said := connection.recv(100):
            connection.sendall(said)


def _serve(listener: socket.socket, datagrams: socket.socket, stopped: socket.socket, name: str) -> None:
    ready = selectors.DefaultSelector()
    for each in (listener, datagrams, stopped):
        ready.register(each, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            if key.fileobj is stopped:
                ready.close()
                return
            if key.fileobj is listener:
                connection, client = listener.accept()
                with connection:
                    connection.sendall(_seen(name, client))
            else:
                _, client = datagrams.recvfrom(100)
                datagrams.sendto(_seen(name, client), client)


def _seen(name: str, client: tuple[str, int]) -> bytes:
    return f"{name}{client[0].removeprefix('::ffff:')}".encode()


def ask(space: Space, address: str, port: int, protocol: str = "tcp", *, within: float = 2.0) -> str:
    """Return what the service answers; REFUSED, SILENCE or UNREACHABLE when nobody does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with inside(space):
        client = socket.socket(family, kind)
    with client:
        client.settimeout(within)
        try:
            client.connect((address, port))
            if protocol == "udp":
                client.send(b"?")
            return client.recv(100).decode()
        except ConnectionRefusedError:
            return REFUSED
        except TimeoutError:
            return SILENCE
        except OSError as error:
            if error.errno in {errno.ENETUNREACH, errno.EHOSTUNREACH}:
                return UNREACHABLE
            raise


class Flow:
    """A UDP client that keeps its port, so that all it sends is one flow."""

    def __init__(self, space: Space, address: str, port: int) -> None:
        with inside(space):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.settimeout(2)
        self._socket.connect((address, port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self) -> str:
        """Return what the service answers; REFUSED or SILENCE when nobody does."""
        try:
            self._socket.send(b"?")
            return self._socket.recv(100).decode()
        except ConnectionRefusedError:
            return REFUSED
        except TimeoutError:
            return SILENCE


def ask_all(space: Space, address: str, port: int, *, within: float = 2.0) -> set[str]:
    """Return what the service answers over TCP and UDP, which should be the same."""
    return {ask(space, address, port, protocol, within=within) for protocol in ("tcp", "udp")}
