"""Answers load balancers that ask whether a node takes connections, of all Services or of one.

The node's own port (10256, as kube-proxy's; clouds ask it for Services of policy Cluster) answers 200
while the node's Services are in force. A Service of policy Local has a port of its own: 200 while it
has a ready endpoint here. One thread serves them all; a port that is taken is tried again.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from cni_plugin.agent.journal import own

_BACKLOG = 64
_LARGEST_REQUEST = 4096  # bytes
_PATIENCE = 5.0  # seconds a client has for its request
_MOST_CLIENTS = 128
_AGAIN = 10.0  # seconds until a port that was taken is tried again


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """What a Service's port answers: its ready endpoints on this node."""

    namespace: str
    name: str
    local_endpoints: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What is answered: of the node at `port` (0 for nowhere), of Services at their own."""

    port: int
    healthy: bool
    updated: float
    """When the node's Services were last in force, in seconds since 1970."""
    checks: dict[int, HealthCheck]

    @property
    def ports(self) -> set[int]:
        """Return where somebody may ask."""
        return self.checks.keys() | ({self.port} if self.port else set())

    def answer(self, port: int) -> bytes:
        """Return the response to whoever asks at a port."""
        check = self.checks.get(port)
        if check is None:
            return _render(self.healthy, self._describe_node(), "")
        body = {
            "service": {"namespace": check.namespace, "name": check.name},
            "localEndpoints": check.local_endpoints,
            "serviceProxyHealthy": self.healthy,
        }
        weight = f"X-Load-Balancing-Endpoint-Weight: {check.local_endpoints}\r\n"
        return _render(self.healthy and check.local_endpoints > 0, body, weight)

    def _describe_node(self) -> dict[str, object]:
        times = {"lastUpdated": _when(self.updated), "currentTime": _when(time.time())}
        return {**times, "nodeEligible": self.healthy}


NOWHERE = Health(port=0, healthy=False, updated=0.0, checks={})


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _render(good: bool, body: dict[str, object], header: str) -> bytes:
    text = json.dumps(body).encode()
    status = "200 OK" if good else "503 Service Unavailable"
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n{header}"
    return f"{head}Connection: close\r\n\r\n".encode() + text


@dataclass(slots=True)
class _Client:
    port: int
    deadline: float
    request: bytes = b""


@dataclass
class HealthServer:
    """Listens in the network namespace of the thread that updates it first."""

    _health: Health = NOWHERE
    _listeners: dict[int, socket.socket] = field(default_factory=dict)
    _taken: dict[int, str] = field(default_factory=dict)
    _clients: dict[socket.socket, _Client] = field(default_factory=dict)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _ended: threading.Event = field(default_factory=threading.Event)
    _tried: float = 0.0
    _thread: threading.Thread | None = None

    def update(self, health: Health) -> tuple[str, ...]:
        """Answer so from now on; return which ports cannot be had, and why."""
        with self._guard:
            missing = health.ports - self._listeners.keys()
            is_news = health.ports != self._health.ports
            self._health = health
            for port in self._listeners.keys() - health.ports:
                self._close(self._listeners.pop(port))
            if missing and (is_news or time.monotonic() - self._tried > _AGAIN):
                self._open(missing)
            self._taken = {port: why for port, why in self._taken.items() if port in missing}
            problems = tuple(f"port {port}: {why}" for port, why in sorted(self._taken.items()))
        if self._listeners and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="health", daemon=True)
            self._thread.start()
        return problems

    def close(self) -> None:
        """Listen no more."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        for each in (*self._listeners.values(), *self._clients):
            each.close()
        self._selector.close()

    def _open(self, ports: set[int]) -> None:
        self._tried = time.monotonic()
        for port in ports:
            try:
                listener = _listen(port)
            except OSError as error:
                self._taken[port] = os.strerror(error.errno or 0)
                continue
            self._taken.pop(port, None)
            self._listeners[port] = listener
            self._selector.register(listener, selectors.EVENT_READ, port)

    def _close(self, each: socket.socket) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(each)
        each.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(0.5):
                with self._guard:
                    self._serve(key)
            self._drop_late()

    def _serve(self, key: selectors.SelectorKey) -> None:
        ready = key.fileobj
        if not isinstance(ready, socket.socket) or ready.fileno() < 0:
            return
        try:
            if isinstance(key.data, int):
                self._accept(ready, key.data)
            else:
                self._read(ready)
        except OSError as error:
            own.debug("health: %s", error)
            if ready in self._clients:
                self._forget(ready)

    def _accept(self, listener: socket.socket, port: int) -> None:
        client, _ = listener.accept()
        if len(self._clients) >= _MOST_CLIENTS:
            client.close()
            return
        client.setblocking(False)
        self._clients[client] = _Client(port, time.monotonic() + _PATIENCE)
        self._selector.register(client, selectors.EVENT_READ)

    def _read(self, client: socket.socket) -> None:
        state = self._clients[client]
        piece = client.recv(_LARGEST_REQUEST)
        state.request += piece
        if piece and b"\r\n\r\n" not in state.request and len(state.request) < _LARGEST_REQUEST:
            return
        if piece:
            client.send(self._health.answer(state.port))
        self._forget(client)

    def _forget(self, client: socket.socket) -> None:
        del self._clients[client]
        self._close(client)

    def _drop_late(self) -> None:
        now = time.monotonic()
        for client in [each for each, state in self._clients.items() if state.deadline < now]:
            self._forget(client)


def _listen(port: int) -> socket.socket:
    """Return a socket that listens at a port of all addresses, of both families where there are two."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    listener = socket.create_server(("", port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    listener.setblocking(False)
    return listener
