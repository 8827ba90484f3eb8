"""The client of the Kubernetes API: list, watch, get, and one patch.

Answers are read as JSON, never as the client's models: these know the newest API only, and are most
of the client's memory. Connections are not retried here; whoever calls says when.
"""

from __future__ import annotations

import json
import os
from contextlib import closing, contextmanager
from dataclasses import dataclass
from random import SystemRandom
from typing import TYPE_CHECKING, Any

import urllib3
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.client.exceptions import OpenApiException
from kubernetes.config import ConfigException
from kubernetes.utils.keepalive import tcp_keepalive_socket_options

from cni_plugin.cluster.resources import NODES
from cni_plugin.config.paths import SERVICE_ACCOUNT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cni_plugin.cluster.resources import Resource

_TIMEOUT = (5.0, 30.0)  # seconds, to connect and to read
_WATCH = (240, 480)  # seconds until the server ends a watch, so that not all agents begin again at once
# Seconds until a silent connection is asked whether it lives, between questions, and how many: a server that
# lost power, or an address of our own that went away, says nothing.
_KEEPALIVE = (10, 5, 3)
_NOT_FOUND, _GONE, _UNAUTHORIZED = 404, 410, 401
_STRATEGIC_MERGE = "application/strategic-merge-patch+json"


class APIError(Exception):
    """The API refused, or could not be asked."""


class GoneError(APIError):
    """The version that was asked for is too old: list again."""


class NotFoundError(APIError):
    """There is no such object, or the API does not know its kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How the API is reached: a kubeconfig, else the service account in a directory."""

    kubeconfig: str = ""
    server: str = ""
    """The API's URL in place of the one that these name."""
    account: str = SERVICE_ACCOUNT


class API:
    """A connection to the API; one that was refused as unauthorized reads its credentials again."""

    def __init__(self, access: Access) -> None:
        """Connect to nothing yet."""
        self._access = access
        self._client: ApiClient | None = None
        self._server = ""

    def list_pages(self, resource: Resource[Any]) -> Iterator[tuple[list[dict[str, Any]], str]]:
        """Yield the objects of a kind a page at a time, each with the version of the whole list."""
        token = ""
        while True:
            place = [("limit", str(resource.page)), *([("continue", token)] if token else [])]
            page = self._read("GET", resource.path, [*place, *resource.selection])
            metadata = page.get("metadata") or {}
            yield page.get("items") or [], metadata.get("resourceVersion", "")
            token = metadata.get("continue") or ""
            if not token:
                return

    def watch(self, resource: Resource[Any], version: str) -> Iterator[dict[str, Any]]:
        """Yield the events after a version until the server ends the watch; GoneError when it is too old.

        The first one is ours and says that the server answers.
        """
        seconds = SystemRandom().randint(*_WATCH)
        query = [
            ("watch", "1"),
            ("resourceVersion", version),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(seconds)),
            *resource.selection,
        ]
        with self._open("GET", resource.path, query, timeout=(_TIMEOUT[0], seconds + 30)) as response:
            yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version}}}
            for line in _lines(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    url, found = self._url(resource.path), event["object"]
                    raise _refusal("WATCH", url, found.get("code", 0), found)
                yield event

    def get(self, path: str) -> dict[str, Any]:
        """Return one object; NotFoundError when there is none."""
        return self._read("GET", path, [])

    def patch_node_status(self, name: str, body: dict[str, Any]) -> None:
        """Patch the status of a node."""
        self._read("PATCH", f"{NODES.path}/{name}/status", [], body)

    def _read(
        self, method: str, path: str, query: list[tuple[str, str]], body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        with self._open(method, path, query, body, timeout=_TIMEOUT) as response:
            found: dict[str, Any] = json.loads(response.data)
            return found

    @contextmanager
    def _open(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]],
        body: dict[str, Any] | None = None,
        *,
        timeout: tuple[float, float],
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Send a request and give the response to the block; whatever goes wrong in it is an APIError."""
        try:
            client = self._connected()
            headers = {"Accept": "application/json", **({"Content-Type": _STRATEGIC_MERGE} if body else {})}
            request = client.param_serialize(
                method,
                path,
                query_params=query,
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            with closing(client.call_api(*request, _request_timeout=timeout).response) as response:
                if response.status == _UNAUTHORIZED:
                    self._client = None
                if not 200 <= response.status <= 299:
                    raise _refusal(method, self._url(path), response.status, response.data)
                yield response
        except (
            urllib3.exceptions.HTTPError,
            OpenApiException,
            ConfigException,
            OSError,
            ValueError,
        ) as error:
            raise APIError(f"{method} {self._url(path)}: {error}") from error

    def _connected(self) -> ApiClient:
        if self._client is None:
            configuration = _configure(self._access)
            self._client, self._server = ApiClient(configuration), configuration.host
        return self._client

    def _url(self, path: str) -> str:
        """Return what an error names: that the server is another one than meant is a usual reason."""
        return f"{self._server}{path}"


def _configure(access: Access) -> Configuration:
    configuration = Configuration(retries=False)
    if access.kubeconfig:
        from kubernetes.config.kube_config import load_kube_config

        load_kube_config(config_file=access.kubeconfig, client_configuration=configuration)
    else:
        _use_account(configuration, access.account)
    if access.server or not access.kubeconfig:
        configuration.host = access.server or _server_of(os.environ)
    configuration.socket_options = tcp_keepalive_socket_options(*_KEEPALIVE)
    return configuration


def _use_account(configuration: Configuration, account: str) -> None:
    """Let each request carry the token as the file has it then: the kubelet replaces it."""

    def refresh(current: Configuration) -> None:
        with open(os.path.join(account, "token"), encoding="ascii") as file:
            current.api_key["BearerToken"] = f"Bearer {file.read().strip()}"

    configuration.ssl_ca_cert = os.path.join(account, "ca.crt")
    configuration.refresh_api_key_hook = refresh
    refresh(configuration)


def _server_of(environ: Mapping[str, str]) -> str:
    """Return the URL that a pod is told."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ConfigException("wanted --api-server, --kubeconfig or KUBERNETES_SERVICE_HOST, found none")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Yield the lines of a response as they come; the last one may be cut off and is not one."""
    rest = b""
    for piece in response.stream(None):
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line for line in whole if line.strip())


def _refusal(method: str, url: str, status: int, found: object) -> APIError:
    """Return the error for a Status object, or for a body that may be one."""
    if isinstance(found, bytes):
        try:
            found = json.loads(found)
        except ValueError:
            found = {}
    said = found.get("message", "") if isinstance(found, dict) else ""
    kind = {_GONE: GoneError, _NOT_FOUND: NotFoundError}.get(status, APIError)
    return kind(f"{method} {url}: {status} {said}".rstrip())
