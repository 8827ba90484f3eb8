"""A stand-in for the Kubernetes API that knows list, watch and status patch of Nodes, and nothing else.

What it is asked beside that it answers with an error and remembers, and a test that caused it fails.
Objects have a version, lists have pages, watches begin at a version and are told that it is gone when
it is older than what the server remembers.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from tests.harness.networks import inside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import Space

NODES = "/api/v1/nodes"
# Of a list, of a page after the first, of a watch.
KNOWN = {"limit", "continue", "watch", "resourceVersion", "allowWatchBookmarks", "timeoutSeconds"}


def render_node(
    name: str, addresses: list[str], cidrs: list[str], *, created: int = 0, unavailable: bool | None = None
) -> dict[str, Any]:
    """Return a Node as the API shows it, with some of what we have no use for."""
    conditions = [{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]
    if unavailable is not None:
        conditions.append({"type": "NetworkUnavailable", "status": str(unavailable)})
    internal = [{"type": "InternalIP", "address": address} for address in addresses]
    return {
        "metadata": {
            "name": name,
            "creationTimestamp": f"2026-01-01T00:{created // 60:02}:{created % 60:02}Z",
        },
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs} if cidrs else {},
        "status": {
            "addresses": [*internal, {"type": "Hostname", "address": name}],
            "conditions": conditions,
            "images": [{"names": [f"registry.example/image-{n}@sha256:{n:064}"]} for n in range(50)],
        },
    }


@dataclass
class NodesAPI:
    """The server's memory; every method may be called while it serves."""

    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: int = 1000
    oldest: int = 0
    events: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=lambda: {"first"})
    requests: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    patches: list[dict[str, Any]] = field(default_factory=list)
    address: tuple[str, int] = ("", 0)
    epoch: int = 0
    """Watches of an older one end."""
    changed: threading.Condition = field(default_factory=threading.Condition)
    _server: ThreadingHTTPServer | None = None
    _space: Space | None = None

    @property
    def url(self) -> str:
        host, port = self.address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def put(self, *nodes: dict[str, Any]) -> None:
        """Add the nodes, or replace those of the same name."""
        with self.changed:
            for node in nodes:
                name = node["metadata"]["name"]
                self._record("MODIFIED" if name in self.nodes else "ADDED", node)
                self.nodes[name] = node
            self.changed.notify_all()

    def remove(self, name: str) -> None:
        with self.changed:
            self._record("DELETED", self.nodes.pop(name))
            self.changed.notify_all()

    def _record(self, kind: str, node: dict[str, Any]) -> None:
        self.version += 1
        node["metadata"]["resourceVersion"] = str(self.version)
        self.events.append((self.version, kind, json.loads(json.dumps(node))))

    def bookmark(self) -> None:
        """Tell all watches how far they are; others' objects have moved the version on."""
        with self.changed:
            self.version += 50
            found = {"kind": "Node", "metadata": {"resourceVersion": str(self.version)}}
            self.events.append((self.version, "BOOKMARK", found))
            self.changed.notify_all()

    def compact(self) -> None:
        """Forget the past: watches and pages of older versions are gone."""
        with self.changed:
            self.version += 1
            self.oldest = self.version

    def end_watches(self) -> None:
        """Cut the streams off without a word."""
        with self.changed:
            self.epoch += 1
            self.changed.notify_all()

    def start(self, space: Space | None, host: str, port: int = 0) -> None:
        """Listen in a namespace; again on the same port after `stop`."""
        self._space = space or self._space
        api = self

        class Handler(_Handler):
            memory = api

        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        kind = type("Server", (ThreadingHTTPServer,), {"address_family": family, "daemon_threads": True})
        if self._space is None:
            self._server = kind((host, port or self.address[1]), Handler)
        else:
            with inside(self._space):
                self._server = kind((host, port or self.address[1]), Handler)
        self.address = (host, self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Be away: nobody listens, and what was connected is cut off."""
        self.end_watches()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            # Who came back before nobody listened any more is cut off as well.
            self.end_watches()

    @property
    def is_away(self) -> bool:
        """Tell whether nobody listens."""
        return self._server is None


class _Handler(BaseHTTPRequestHandler):
    memory: NodesAPI
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        self.memory.requests.append(f"GET {self.path}")
        if not self._is_allowed():
            return
        if url.path != NODES or set(query) - KNOWN:
            self._refuse()
        elif query.get("watch") == "1":
            with suppress(OSError):  # the client may leave at any point
                self._watch(int(query["resourceVersion"]), float(query["timeoutSeconds"]))
        else:
            self._list(int(query["limit"]), query.get("continue", ""))

    def do_PATCH(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.memory.requests.append(f"PATCH {self.path}")
        name = self.path.removeprefix(f"{NODES}/").removesuffix("/status")
        if not self._is_allowed():
            return
        strategic = self.headers["Content-Type"] == "application/strategic-merge-patch+json"
        if self.path != f"{NODES}/{name}/status" or name not in self.memory.nodes or not strategic:
            self._refuse()
            return
        self.memory.patches.append(body)
        node = json.loads(json.dumps(self.memory.nodes[name]))
        # Conditions merge by their type, as the API's type says of them.
        merged = {c["type"]: c for c in (*node["status"]["conditions"], *body["status"]["conditions"])}
        node["status"]["conditions"] = list(merged.values())
        self.memory.put(node)
        self._answer(200, node)

    def _unmodelled(self) -> None:
        self.memory.requests.append(f"{self.command} {self.path}")
        self._refuse()

    do_POST = do_PUT = do_DELETE = _unmodelled  # noqa: N815  http.server's names

    def _is_allowed(self) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token in self.memory.tokens:
            return True
        self._status(401, "Unauthorized")
        return False

    def _refuse(self) -> None:
        self.memory.unknown.append(f"{self.command} {self.path}")
        self._status(501, "this server knows nothing of it")

    def _status(self, code: int, message: str) -> None:
        self._answer(code, {"kind": "Status", "code": code, "message": message})

    def _answer(self, code: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _list(self, limit: int, token: str) -> None:
        with self.memory.changed:
            version, start = (int(word) for word in token.split("-")) if token else (self.memory.version, 0)
            if token and version < self.memory.oldest:
                self._status(410, "The provided continue parameter is too old")
                return
            names = sorted(self.memory.nodes)
            items = [self.memory.nodes[name] for name in names[start : start + limit]]
            metadata = {"resourceVersion": str(version)}
            if start + limit < len(names):
                metadata["continue"] = f"{version}-{start + limit}"
            self._answer(200, {"kind": "NodeList", "metadata": metadata, "items": items})

    def _watch(self, version: int, seconds: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        memory, deadline = self.memory, time.monotonic() + seconds
        epoch, seen = memory.epoch, next((i for i, e in enumerate(memory.events) if e[0] > version), None)
        position = len(memory.events) if seen is None else seen
        if version < memory.oldest:
            gone = {"kind": "Status", "code": 410, "message": f"too old resource version: {version}"}
            self._chunk(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            deadline = 0
        while time.monotonic() < deadline:
            with memory.changed:
                if len(memory.events) == position and memory.epoch == epoch:
                    memory.changed.wait(min(seconds, 1))
                found, position = memory.events[position:], len(memory.events)
            if memory.epoch > epoch or memory.is_away:
                # In the middle of a line, as a connection that breaks would.
                self._chunk(b'{"type": "MODIF')
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            for _, kind, node in found:
                self._chunk(json.dumps({"type": kind, "object": node}).encode() + b"\n")
        self._chunk(b"")

    def _chunk(self, piece: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.flush()


@contextmanager
def serving_nodes(space: Space | None = None, host: str = "127.0.0.1") -> Iterator[NodesAPI]:
    """Serve nodes in a namespace; at the end nothing may have been asked that is not modelled."""
    api = NodesAPI()
    api.start(space, host)
    try:
        yield api
    finally:
        api.stop()
    assert api.unknown == []
