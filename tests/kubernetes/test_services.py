"""Services by podwire in place of kube-proxy: the way over and back, and what a cluster asks of them."""

from __future__ import annotations

import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.kubernetes import dns, pods, podwire
from tests.harness.kubernetes.dialling import NETEXEC, ask_until_answered
from tests.harness.kubernetes.host import eventually
from tests.harness.kubernetes.kubernetes import WORLD, Kubernetes
from tests.harness.kubernetes.reach import address_of, node_address, spaces
from tests.harness.networks import inside
from tests.harness.services import REFUSED, SILENCE, ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.kubernetes.worker import Worker
    from tests.harness.node import Space

# As docs/services.md has them.
REMOVE_KUBE_PROXY = """
iptables-save | grep -v KUBE- | iptables-restore
ip6tables-save | grep -v KUBE- | ip6tables-restore
"""
FAMILIES = (4, 6)


@pytest.fixture(scope="module")
def own(named: Kubernetes) -> Iterator[Kubernetes]:
    """Let podwire serve Services in place of kube-proxy for a while; connections live on, there and back."""
    with connected(named) as through_kube_proxy:
        podwire.configure(named, services=True)
        for worker in named.workers.values():
            await_services(worker)
            worker.host.daemons["proxy"].kill()
            worker.space.run("sh", "-c", REMOVE_KUBE_PROXY)
        through_kube_proxy.ask()
    yield named
    with connected(named) as through_podwire:
        for worker in named.workers.values():
            worker.host.daemons["proxy"].start()
        eventually(lambda: "KUBE-SVC" in rules(named.workers[2]), "kube-proxy's rules once more")
        podwire.configure(named, services=False)
        through_podwire.ask()
        assert "podwire_services" not in named.workers[2].space.run("nft", "list", "tables").stdout


@contextmanager
def connected(cluster: Kubernetes) -> Iterator[KeptConnection]:
    """Keep a connection of a pod to a Service during the block, whoever serves it meanwhile."""
    server, client = pods.pod("steady", "node-1", **NETEXEC), pods.pod("caller", "node-2", **NETEXEC)
    cluster.apply(server, pods.service("steady"), client)
    found = [cluster.await_pods(name, 1)[0] for name in ("steady", "caller")]
    place = spaces(cluster, found)["caller"]
    address = cluster.get("service", "steady")["spec"]["clusterIP"]
    eventually(lambda: answers(place, address), "somebody who serves Services")
    with kept_connection(place, address) as kept:
        yield kept
        eventually(lambda: answers(place, address), "whoever serves Services now")


def rules(worker: Worker) -> str:
    return worker.space.run("iptables-save").stdout


def await_services(worker: Worker) -> None:
    """Wait until podwire says that Services are in force on a node."""
    path = worker.host.machine.root / "run/podwire/services.json"
    eventually(lambda: path.exists() and '"ready": true' in path.read_text(), path.read_text)


def answers(space: Space, address: str) -> bool:
    try:
        return get(space, address) == 200
    except (OSError, HTTPException):
        return False


def get(space: Space, address: str, port: int = pods.PORT) -> int:
    with inside(space):
        connection = HTTPConnection(address, port, timeout=5)
        connection.connect()
    with closing(connection):
        connection.request("GET", "/hostname", headers={"Connection": "close"})
        response = connection.getresponse()
        response.read()
        return response.status


class KeptConnection:
    """One TCP connection that asks again and again."""

    def __init__(self, connection: HTTPConnection) -> None:
        self.connection = connection
        self.local = connection.sock.getsockname()

    def ask(self) -> None:
        self.connection.request("GET", "/hostname")
        response = self.connection.getresponse()
        response.read()
        assert response.status == 200
        assert self.connection.sock.getsockname() == self.local, "it is another connection by now"


@contextmanager
def kept_connection(space: Space, address: str) -> Iterator[KeptConnection]:
    with inside(space):
        connection = HTTPConnection(address, pods.PORT, timeout=10)
        connection.connect()
    with closing(connection):
        kept = KeptConnection(connection)
        kept.ask()
        yield kept


@pytest.mark.parametrize("protocol", ["http", "udp"])
def test_names_lead_to_services_and_the_client_is_seen_as_itself(own: Kubernetes, protocol: str) -> None:
    own.apply(
        pods.pod("web", "node-1", **NETEXEC),
        pods.service("web"),
        pods.pod("near", "node-1", **NETEXEC),
        pods.pod("far", "node-2", **NETEXEC),
    )
    found = [own.await_pods(name, 1)[0] for name in ("web", "near", "far")]
    places = spaces(own, found)
    for client in found[1:]:
        addresses = {address_of(client, version) for version in FAMILIES}
        seen = ask_until_answered(places[client.name], f"web.default.svc.{dns.DOMAIN}", protocol)
        [answer] = seen["responses"]
        assert answer.rpartition(":")[0].strip("[]") in addresses, (client, seen)
    # A pod that is led to itself sees its node.
    itself = ask_until_answered(places["web"], f"web.default.svc.{dns.DOMAIN}", protocol)
    [answer] = itself["responses"]
    nodes = {node_address(own, "node-1", version) for version in FAMILIES}
    assert answer.rpartition(":")[0].strip("[]") in nodes


def node_port(service: dict[str, Any], policy: str) -> dict[str, Any]:
    spec = {**service["spec"], "type": "NodePort", "externalTrafficPolicy": policy}
    return {**service, "spec": spec}


def await_answer(space: Space, address: str, port: int, protocol: str) -> None:
    eventually(lambda: ask(space, address, port, protocol) not in {REFUSED, SILENCE}, f"{address} {port}")


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_node_ports_are_open_to_the_world(own: Kubernetes, policy: str) -> None:
    own.apply(pods.deployment("open", 2, node="node-1"), node_port(pods.service("open"), policy))
    found = own.await_pods("open", 2)
    places = spaces(own, found)
    ports = {each["name"]: each["nodePort"] for each in own.get("service", "open")["spec"]["ports"]}
    world = own.underlay.nodes[WORLD]
    names = set(places)
    with pods.all_offering(places):
        for version in FAMILIES:
            near, far = (node_address(own, name, version) for name in ("node-1", "node-2"))
            source = own.underlay.address(WORLD, version) if policy == "Local" else near
            for protocol in ("tcp", "udp"):
                eventually(
                    lambda n=near, p=protocol: ask(world, n, ports[p], p) not in {REFUSED, SILENCE}, near
                )
                seen = {ask(world, near, ports[protocol], protocol) for _ in range(12)}
                assert {answer.split()[0] for answer in seen} == names
                assert {answer.split()[1] for answer in seen} == {source}
                answer = ask(world, far, ports[protocol], protocol)
                if policy == "Local":
                    assert answer == SILENCE
                else:
                    assert answer.split() in [[name, far] for name in names]


def test_a_service_without_endpoints_is_refused_at_once(own: Kubernetes) -> None:
    own.apply(pods.service("nobody"), pods.deployment("asker", 1))
    [client] = own.await_pods("asker", 1)
    place = own.space_of(client)
    for address in own.get("service", "nobody")["spec"]["clusterIPs"]:
        eventually(lambda a=address: ask(place, a, pods.PORT) == REFUSED, address)
        started = time.monotonic()
        assert ask(place, address, pods.PORT) == REFUSED
        assert time.monotonic() - started < 0.5


@dataclass
class Requests:
    """Requests without a pause, and what went wrong with them."""

    done: int = 0
    failed: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self, space: Space, address: str) -> None:
        while not self.ended.is_set():
            try:
                status = get(space, address)
                self.failed += [] if status == 200 else [str(status)]
            except (OSError, HTTPException) as error:
                self.failed.append(repr(error))
            self.done += 1
            time.sleep(0.005)


@contextmanager
def requesting(space: Space, address: str) -> Iterator[Requests]:
    requests = Requests()
    thread = threading.Thread(target=requests.run, args=(space, address))
    thread.start()
    try:
        yield requests
    finally:
        requests.ended.set()
        thread.join()


def test_a_rolling_update_loses_no_request_while_the_agent_is_killed(
    own: Kubernetes, record_property: Any
) -> None:
    rolled = pods.deployment("rolled", 8)
    spec = rolled["spec"]["template"]["spec"]
    spec["terminationGracePeriodSeconds"] = 40
    ready = {"httpGet": {"path": "/hostname", "port": pods.PORT}, "periodSeconds": 1}
    # As long as the killed agent may be away: who goes serves on meanwhile.
    pause = {"preStop": {"sleep": {"seconds": 12}}}
    spec["containers"] = [pods.container(**NETEXEC, readinessProbe=ready, lifecycle=pause)]
    rolled["spec"]["strategy"] = {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 2}}
    own.apply(rolled, pods.service("rolled"), pods.pod("client", "node-1", **NETEXEC))
    own.await_pods("rolled", 8)
    [client] = own.await_pods("client", 1)
    place = own.space_of(client)
    addresses = own.get("service", "rolled")["spec"]["clusterIPs"]
    for address in addresses:
        eventually(lambda a=address: answers(place, a), address)
    with requesting(place, addresses[0]) as four, requesting(place, addresses[1]) as six:
        own.kubectl("rollout", "restart", "deployment/rolled")
        time.sleep(2)
        podwire.kill_agent(own.workers[1])
        words = ("rollout", "status", "deployment/rolled", "--timeout=20s")
        eventually(lambda: own.kubectl(*words, check=False).returncode == 0, "the rollout", within=180)
        # The last of the old ones take leave.
        own.await_pods("rolled", 8)
    podwire.await_agents(own)
    assert (four.failed, six.failed) == ([], [])
    record_property("figures", f"rolling update of 8 pods: {four.done + six.done} requests, none lost")


def test_the_doctor_finds_nothing_wrong_with_services_and_names_a_rival(own: Kubernetes) -> None:
    worker = own.workers[2]
    found = podwire.agents(own)
    [name] = [pod["metadata"]["name"] for pod in found if pod["spec"]["nodeName"] == worker.name]
    words = ("exec", podwire.NAMESPACE, name, "-c", "agent", "--", "podwire", "doctor")
    assert "Services" not in own.kubectl(*words, check=False).stdout
    worker.space.run("nft", "add", "table", "ip", "kube-proxy")
    worker.space.run("nft", "add", "chain", "ip", "kube-proxy", "services")
    eventually(
        lambda: "nft delete table ip kube-proxy" in own.kubectl(*words, check=False).stdout,
        lambda: own.kubectl(*words, check=False).stdout,
    )
    worker.space.run("nft", "delete", "table", "ip", "kube-proxy")
