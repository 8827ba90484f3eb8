"""The cluster's name server, and pods that ask it: CoreDNS and agnhost in pods of podwire."""

from __future__ import annotations

import json
from contextlib import closing
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.kubernetes import dns, images, pods, podwire
from tests.harness.kubernetes.host import eventually
from tests.harness.kubernetes.reach import address_of, spaces
from tests.harness.networks import inside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.kubernetes.kubernetes import Kubernetes
    from tests.harness.node import Space

# The way in for the test, and what the Service leads to.
_NETEXEC = {
    "image": images.AGNHOST,
    "args": ["netexec", f"--http-port={pods.PORT}", f"--udp-port={pods.PORT}"],
}


@pytest.fixture(scope="module")
def named(cluster: Kubernetes) -> Iterator[Kubernetes]:
    """Let the cluster have a name server."""
    written = (
        images.write_agnhost(cluster.directory / "agnhost.tar"),
        images.write_coredns(cluster.directory / "coredns.tar"),
    )
    for worker in cluster.workers.values():
        for archive in written:
            worker.import_image(archive)
    cluster.apply(*dns.objects())
    words = ("rollout", "status", "-n", dns.NAMESPACE, "deployment/coredns", "--timeout=20s")
    eventually(lambda: cluster.kubectl(*words, check=False).returncode == 0, lambda: podwire.explain(cluster))
    yield cluster
    cluster.delete("-n", dns.NAMESPACE, "deployment/coredns", "service/kube-dns")


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


@pytest.mark.parametrize("protocol", ["http", "udp"])
def test_a_pod_reaches_a_service_by_its_name_and_is_seen_with_its_own_address(
    named: Kubernetes, protocol: str
) -> None:
    named.apply(
        pods.pod("web", "node-1", **_NETEXEC),
        pods.service("web"),
        pods.pod("near", "node-1", **_NETEXEC),
        pods.pod("far", "node-2", **_NETEXEC),
    )
    found = [named.await_pods(name, 1)[0] for name in ("web", "near", "far")]
    places = spaces(named, found)
    for client in found[1:]:
        own = {address_of(client, version) for version in (4, 6)}
        for name in ("web", f"web.default.svc.{dns.DOMAIN}"):
            seen = ask_until_answered(places[client.name], name, protocol)
            [answer] = seen["responses"]
            assert answer.rpartition(":")[0].strip("[]") in own, (client, name, seen)


@pytest.fixture
def named_of_before(named: Kubernetes) -> Kubernetes:
    """Let the name server and a service's pod be on bridges, in a cluster whose pods are routed now."""
    podwire.configure(named, attach="bridge")
    restart = ("rollout", "restart", "-n", dns.NAMESPACE, "deployment/coredns")
    named.kubectl(*restart)
    status = ("rollout", "status", "-n", dns.NAMESPACE, "deployment/coredns", "--timeout=60s")
    named.kubectl(*status)
    named.apply(pods.pod("old", "node-1", **_NETEXEC), pods.service("old"))
    named.await_pods("old", 1)
    podwire.configure(named, attach="routed")
    return named


def test_pods_on_a_bridge_from_before_serve_routed_ones_and_are_served(named_of_before: Kubernetes) -> None:
    cluster = named_of_before
    cluster.apply(
        *(pods.pod(name, f"node-{i}", **_NETEXEC) for name, i in (("near", 1), ("far", 2))),
        pods.service("near"),
    )
    found = {name: cluster.await_pods(name, 1)[0] for name in ("old", "near", "far")}
    places = spaces(cluster, found.values())
    ways = {name: places[pod.name].run("ip", "route").stdout for name, pod in found.items()}
    routed = {name: "via 169.254.1.1" in way for name, way in ways.items()}
    assert routed == {"old": False, "near": True, "far": True}
    for client, service in (("near", "old"), ("far", "old"), ("old", "near"), ("far", "near")):
        seen = ask_until_answered(places[found[client].name], service, "http")
        [answer] = seen["responses"]
        own = {address_of(found[client], version) for version in (4, 6)}
        assert answer.rpartition(":")[0].strip("[]") in own, (client, service, seen)
