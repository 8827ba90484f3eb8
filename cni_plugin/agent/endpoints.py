"""The agent's HTTP server: /metrics, /healthz and /readyz, for at most eight clients at once.

A client has five seconds in all to ask and five to take a piece of the answer; one too many is
turned away at once. The node itself, whose kubelet would restart an agent that does not answer, has
places of its own, which pods and other nodes cannot take. Nobody here is authenticated and nothing
can be changed: bind it to an address that only the cluster reaches.
"""

from __future__ import annotations

import io
import os
import select
import socket
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import BaseServer, TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Final

from cni_plugin.agent.journal import own, render_pairs
from cni_plugin.contract.errors import CNIError, Code, invalid_config
from ipam.seam.waits import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_plugin.agent.exposition import Exposition

_CLIENTS: Final = 8
_BACKLOG: Final = 64
_OWN_CLIENTS: Final = 4
_TIMEOUT: Final = 5.0  # seconds
_TEXT: Final = "text/plain; charset=utf-8"
_BUSY: Final = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"

Page = tuple[HTTPStatus, str, bytes]


def listen_at(address: str) -> socket.socket:
    """Listen at `HOST:PORT`, or at `:PORT` on every address of both families; or raise CNIError."""
    host, port = parse_address(address)
    is_everywhere = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if ":" in host or is_everywhere else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if is_everywhere:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise CNIError(
            Code.IO_FAILURE, f"--http {address}: wanted to listen there, found {error.strerror or error}"
        ) from error
    return listening


class Endpoints(ThreadingMixIn, TCPServer):
    """Serves at a socket that listens already, from its start to its stop; the socket stays open."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, listening: socket.socket, exposition: Exposition) -> None:
        """Serve nothing yet."""
        # Not TCPServer's own: it would make a socket.
        BaseServer.__init__(self, listening.getsockname(), Handler)
        self.socket = listening
        # Another process may have let in whom we were told of.
        listening.setblocking(False)
        self.timeout = 0
        self._exposition = exposition
        self._find_reasons: Callable[[], list[str]] = list
        self._places = threading.BoundedSemaphore(_CLIENTS)
        self._own_places = threading.BoundedSemaphore(_OWN_CLIENTS)
        self._stopped = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self, find_reasons: Callable[[], list[str]]) -> None:
        """Answer from now on, in threads that end with the process.

        `find_reasons` returns why this node cannot take pods.
        """
        self._find_reasons = find_reasons
        self._thread.start()

    def stop(self) -> None:
        """Let nobody in any more; who waits to be let in is the next one's."""
        os.eventfd_write(self._stopped, 1)
        self._thread.join()
        os.close(self._stopped)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._stopped, select.POLLIN)
        poll.register(self.socket, select.POLLIN)
        while self._stopped not in dict(poll.poll()):
            self.handle_request()

    @property
    def place(self) -> str:
        """Return where this listens."""
        host, port = self.server_address[:2]
        return f"[{host!s}]:{port}" if self.socket.family == socket.AF_INET6 else f"{host!s}:{port}"

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        """Give the client a thread, or turn it away."""
        places = self._places_for(request, client_address)
        if places.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except RuntimeError:  # the kernel has no more threads to give
                places.release()
                raise
            return
        request.setblocking(False)
        try:
            request.send(_BUSY)
        finally:
            self.shutdown_request(request)

    def process_request_thread(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        """Serve one client and free its place."""
        places = self._places_for(request, client_address)
        try:
            super().process_request_thread(request, client_address)
        finally:
            places.release()

    def _places_for(self, request: socket.socket, client_address: object) -> threading.BoundedSemaphore:
        """Return where the client has its place: who asks from the address that it asks is on this node."""
        is_own = isinstance(client_address, tuple) and client_address[0] == request.getsockname()[0]
        return self._own_places if is_own else self._places

    def handle_error(self, _: object, client_address: object) -> None:
        """Log a client that left in the middle, or a defect, in one line."""
        own.info(render_pairs(http=str(client_address), error=repr(sys.exc_info()[1])))

    def page(self, path: str, accept: str) -> Page:
        """Return what is at `path`."""
        if path == "/metrics":
            text, content_type = self._exposition.render(accept)
            return HTTPStatus.OK, content_type, text
        if path == "/healthz":
            return HTTPStatus.OK, _TEXT, b"ok\n"
        if path == "/readyz":
            reasons = self._find_reasons()
            said = "".join(f"{reason}\n" for reason in reasons) or "ok\n"
            return (HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK), _TEXT, said.encode()
        return HTTPStatus.NOT_FOUND, _TEXT, b"wanted /metrics, /healthz or /readyz\n"


class Handler(BaseHTTPRequestHandler):
    """One request, one answer, and the connection is closed."""

    server: Endpoints
    server_version = "podwire"
    sys_version = ""
    timeout = _TIMEOUT

    def setup(self) -> None:
        """Let the whole request have one deadline: each byte of a trickle would start a time-out anew."""
        super().setup()
        self.rfile = io.BufferedReader(_Until(self.connection, Deadline(_TIMEOUT)))  # type: ignore[type-var]

    def do_GET(self) -> None:
        """Answer with the page and its body."""
        status, content_type, body = self.server.page(
            self.path.partition("?")[0], self.headers.get("Accept", "")
        )
        self.connection.settimeout(_TIMEOUT)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the library's way of naming methods

    def log_message(self, *_: object) -> None:
        """Say nothing: probes come every few seconds."""


class _Until(io.RawIOBase):
    """The bytes of a connection until a deadline."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._connection = connection
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        self._connection.settimeout(max(self._deadline.left(), 0.001))
        return self._connection.recv_into(buffer)


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT`, `[HOST]:PORT` or `:PORT`; CNIError 7 for anything else.

    Brackets are taken around an IPv4 address, too: a manifest that has them serves either family.
    """
    host, colon, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if is_bracketed else host
    is_wrong = not bare if is_bracketed else ":" in bare
    if not colon or not port.isdecimal() or int(port) > 65535 or is_wrong or set(bare) & set("[]"):
        raise invalid_config(f"--http: wanted ADDRESS:PORT, [ADDRESS]:PORT or :PORT, found {text!r}")
    return bare, int(port)
