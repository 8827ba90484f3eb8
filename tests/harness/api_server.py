"""A stand-in for the Kubernetes API that knows list, watch, get and one patch of some kinds of objects.

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
NAMESPACES = "/api/v1/namespaces"
PODS = "/api/v1/pods"
SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
POLICIES = "/apis/networking.k8s.io/v1/networkpolicies"
PATHS = (NODES, NAMESPACES, PODS, SERVICES, SLICES, POLICIES)
# Of a list, of a page after the first, of a watch, of some of the objects.
KNOWN = {
    *("limit", "continue", "watch", "resourceVersion", "allowWatchBookmarks", "timeoutSeconds"),
    *("labelSelector", "fieldSelector"),
}


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


def key_of(found: dict[str, Any]) -> str:
    """Return what an object is known by: its name, with its namespace if it has one."""
    metadata = found["metadata"]
    return f"{metadata['namespace']}/{metadata['name']}" if "namespace" in metadata else metadata["name"]


def is_selected(found: dict[str, Any], query: dict[str, str]) -> bool:
    """Tell whether a query asks for an object: by labels that are not there, by a pod's node."""
    labels = found["metadata"].get("labels", {})
    unwanted = query.get("labelSelector", "")
    assert all(each.startswith("!") for each in filter(None, unwanted.split(","))), unwanted
    field, _, value = query.get("fieldSelector", "").partition("=")
    assert field in {"", "spec.nodeName"}, field
    absent = all(each[1:] not in labels for each in filter(None, unwanted.split(",")))
    return absent and (not field or found["spec"].get("nodeName") == value)


@dataclass(frozen=True)
class Event:
    """What a watch tells."""

    version: int
    path: str
    kind: str
    found: dict[str, Any]


@dataclass
class APIServer:
    """The server's memory; every method may be called while it serves."""

    objects: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: {p: {} for p in PATHS})
    version: int = 1000
    oldest: int = 0
    events: list[Event] = field(default_factory=list)
    tokens: set[str] = field(default_factory=lambda: {"first"})
    requests: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    patches: list[dict[str, Any]] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)
    """Paths of kinds that this API does not know."""
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

    @property
    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return the nodes by their names."""
        return self.objects[NODES]

    def put(self, *found: dict[str, Any], path: str = NODES) -> None:
        """Add objects of a kind, or replace those of the same name."""
        with self.changed:
            known = self.objects[path]
            for each in found:
                key = key_of(each)
                self._record(path, "MODIFIED" if key in known else "ADDED", each)
                known[key] = each
            self.changed.notify_all()

    def remove(self, *keys: str, path: str = NODES) -> None:
        with self.changed:
            for key in keys:
                self._record(path, "DELETED", self.objects[path].pop(key))
            self.changed.notify_all()

    def _record(self, path: str, kind: str, found: dict[str, Any]) -> None:
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)
        event = Event(self.version, path, kind, json.loads(json.dumps(found)))
        self.events.append(event)

    def bookmark(self) -> None:
        """Tell all watches how far they are; others' objects have moved the version on."""
        with self.changed:
            self.version += 50
            found = {"metadata": {"resourceVersion": str(self.version)}}
            self.events += [Event(self.version, path, "BOOKMARK", found) for path in PATHS]
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
    memory: APIServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        self.memory.requests.append(f"GET {self.path}")
        if not self._is_allowed():
            return
        if url.path in self.memory.missing:
            self._status(404, "the server could not find the requested resource")
        elif url.path not in PATHS:
            self._get(url.path)
        elif set(query) - KNOWN:
            self._refuse()
        elif query.get("watch") == "1":
            with suppress(OSError):  # the client may leave at any point
                self._watch(url.path, query)
        else:
            self._list(url.path, query)

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

    def _get(self, path: str) -> None:
        """Answer with one object: of a kind without namespaces, or with one."""
        place, _, name = path.rpartition("/")
        head, _, namespace_and_kind = place.partition("/namespaces/")
        namespace, _, kind = namespace_and_kind.partition("/")
        known = self.memory.objects.get(f"{head}/{kind}" if kind else place)
        if known is None:
            self._refuse()
            return
        found = known.get(f"{namespace}/{name}" if kind else name)
        if found is None:
            self._status(404, f'"{name}" not found')
        else:
            self._answer(200, found)

    def _list(self, path: str, query: dict[str, str]) -> None:
        limit, token = int(query["limit"]), query.get("continue", "")
        with self.memory.changed:
            version, start = (int(word) for word in token.split("-")) if token else (self.memory.version, 0)
            if token and version < self.memory.oldest:
                self._status(410, "The provided continue parameter is too old")
                return
            known = self.memory.objects[path]
            names = sorted(name for name, found in known.items() if is_selected(found, query))
            items = [known[name] for name in names[start : start + limit]]
            metadata = {"resourceVersion": str(version)}
            if start + limit < len(names):
                metadata["continue"] = f"{version}-{start + limit}"
            self._answer(200, {"kind": "List", "metadata": metadata, "items": items})

    def _watch(self, path: str, query: dict[str, str]) -> None:
        version, seconds = int(query["resourceVersion"]), float(query["timeoutSeconds"])
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        memory, deadline = self.memory, time.monotonic() + seconds
        epoch, seen = (
            memory.epoch,
            next((i for i, e in enumerate(memory.events) if e.version > version), None),
        )
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
            for event in found:
                bookmark = event.kind == "BOOKMARK"
                if event.path == path and (bookmark or is_selected(event.found, query)):
                    line = {"type": event.kind, "object": event.found}
                    self._chunk(json.dumps(line).encode() + b"\n")
        self._chunk(b"")

    def _chunk(self, piece: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.flush()


@contextmanager
def serving_api(space: Space | None = None, host: str = "127.0.0.1") -> Iterator[APIServer]:
    """Serve an API in a namespace; at the end nothing may have been asked that is not modelled."""
    api = APIServer()
    api.start(space, host)
    try:
        yield api
    finally:
        api.stop()
    assert api.unknown == []
