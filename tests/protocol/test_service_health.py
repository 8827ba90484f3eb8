"""The ports where load balancers ask whether a node, or a Service on it, takes connections."""

from __future__ import annotations

import http.client
import json
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cni_plugin.dataplane.services import health
from cni_plugin.dataplane.services.health import NOWHERE, Health, HealthCheck, HealthServer
from tests.conftest import in_process
from tests.harness.networks import inside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import Node

pytestmark = in_process

CHECK = HealthCheck(namespace="shop", name="web", local_endpoints=2)
GOOD = Health(port=10256, healthy=True, updated=1.0, checks={30500: CHECK})


@pytest.fixture
def server(node: Node) -> Iterator[HealthServer]:
    node.run("ip", "link", "set", "lo", "up")
    made = HealthServer()
    yield made
    made.close()


def update(node: Node, server: HealthServer, wanted: Health) -> tuple[str, ...]:
    with inside(node):
        return server.update(wanted)


def ask(node: Node, port: int, host: str = "127.0.0.1") -> tuple[int, dict[str, object], str | None]:
    with inside(node):
        connection = http.client.HTTPConnection(host, port, timeout=5)
        connection.request("GET", "/whatever")
        response = connection.getresponse()
        found = json.loads(response.read())
        connection.close()
        return response.status, found, response.getheader("X-Load-Balancing-Endpoint-Weight")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_service_s_port_counts_its_endpoints_here(node: Node, server: HealthServer, host: str) -> None:
    assert update(node, server, GOOD) == ()
    said = {"service": {"namespace": "shop", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": True}
    assert ask(node, 30500, host) == (200, said, "2")
    update(node, server, replace(GOOD, checks={30500: replace(CHECK, local_endpoints=0)}))
    assert ask(node, 30500, host) == (503, said | {"localEndpoints": 0}, "0")
    update(node, server, replace(GOOD, healthy=False))
    assert ask(node, 30500, host) == (503, said | {"serviceProxyHealthy": False}, "2")


def test_the_node_s_port_says_whether_its_services_are_in_force(node: Node, server: HealthServer) -> None:
    update(node, server, GOOD)
    status, found, weight = ask(node, 10256)
    assert (status, found["lastUpdated"], weight) == (200, "1970-01-01T00:00:01Z", None)
    update(node, server, replace(GOOD, healthy=False))
    assert ask(node, 10256)[0] == 503


def test_a_port_of_a_service_that_went_is_closed(node: Node, server: HealthServer) -> None:
    update(node, server, GOOD)
    update(node, server, replace(GOOD, checks={}))
    assert ask(node, 10256)[0] == 200
    with pytest.raises(ConnectionRefusedError):
        ask(node, 30500)
    update(node, server, NOWHERE)
    with pytest.raises(ConnectionRefusedError):
        ask(node, 10256)


def test_a_port_that_is_taken_is_named_and_had_when_it_is_free(
    node: Node, server: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_AGAIN", 0.0)
    with inside(node):
        rival = socket.create_server(("", 10256))
    with rival:
        assert update(node, server, GOOD) == ("port 10256: Address already in use",)
        assert ask(node, 30500)[0] == 200
    assert update(node, server, GOOD) == ()
    assert ask(node, 10256)[0] == 200


def test_who_says_nothing_keeps_nobody_waiting_and_is_dropped(
    node: Node, server: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_PATIENCE", 0.3)
    update(node, server, GOOD)
    with inside(node):
        silent = [socket.create_connection(("127.0.0.1", 10256)) for _ in range(5)]
    assert ask(node, 10256)[0] == 200
    for each in silent:
        each.settimeout(5)
        assert each.recv(1) == b""
        each.close()


def test_more_clients_than_are_served_at_once_are_turned_away(node: Node, server: HealthServer) -> None:
    update(node, server, GOOD)
    with inside(node):
        many = [socket.create_connection(("127.0.0.1", 10256)) for _ in range(140)]
    time.sleep(0.2)
    for each in many:
        each.close()
    deadline = time.monotonic() + 5
    while server._clients and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ask(node, 10256)[0] == 200
