"""Pods that ask others by name and tell as whom they were seen: agnhost's netexec."""

from __future__ import annotations

import json
from contextlib import closing
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

from tests.harness.kubernetes import images, pods
from tests.harness.kubernetes.host import eventually
from tests.harness.networks import inside

if TYPE_CHECKING:
    from tests.harness.node import Space

# The way in for the test, and what a Service leads to.
NETEXEC: dict[str, Any] = {
    "image": images.AGNHOST,
    "args": ["netexec", f"--http-port={pods.PORT}", f"--udp-port={pods.PORT}"],
}


def dial(client: Space, name: str, protocol: str) -> dict[str, Any]:
    """Have the pod ask `name` as whom it is seen; return agnhost's account, nothing before it listens."""
    way = f"/dial?request=clientip&protocol={protocol}&host={name}&port={pods.PORT}&tries=1"
    with inside(client), closing(HTTPConnection("127.0.0.1", pods.PORT, timeout=20)) as connection:
        try:
            connection.request("GET", way)
        except ConnectionRefusedError:
            return {}
        return dict(json.loads(connection.getresponse().read()))


def ask_until_answered(client: Space, name: str, protocol: str) -> dict[str, Any]:
    """Return the first account with an answer: kube-proxy takes a moment to write its rules."""
    seen: dict[str, Any] = {}

    def answered() -> bool:
        seen.clear()
        seen.update(dial(client, name, protocol))
        return bool(seen.get("responses"))

    eventually(answered, lambda: f"{name}: {seen}", within=30)
    return seen
