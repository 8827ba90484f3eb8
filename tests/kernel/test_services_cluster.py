"""Services of a cluster: nodes that follow Services and slices of an API, over a real kernel."""

from __future__ import annotations

import http.client
import json
import signal
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.api_objects import render_endpoint, render_service, render_slice
from tests.harness.api_server import SERVICES, SLICES
from tests.harness.cluster import ROUTER, address_of
from tests.harness.followers import Follower, Followers, following
from tests.harness.networks import eventually, inside
from tests.harness.services import REFUSED, SILENCE, ask, offering

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Pod

VIPS = {4: "10.96.0.10", 6: "fd00:96::10"}
CIDRS = ["10.96.0.0/16", "fd00:96::/112"]
TARGET = 8080
PORTS = [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}]
SLICE_PORTS = [{"name": "http", "port": TARGET, "protocol": "TCP"}]


class Shop:
    """A cluster of two nodes with a pod each, and a Service in front of them."""

    def __init__(self, nodes: Followers, pods: dict[int, Pod]) -> None:
        self.nodes = nodes
        self.pods = pods

    def put_service(self, **spec: Any) -> None:
        found = render_service("web", [VIPS[v] for v in self.nodes.families], PORTS, type="NodePort", **spec)
        self.nodes.api.put(found, path=SERVICES)

    def put_slices(self, *numbers: int, **conditions: bool) -> None:
        """Let the pods of these nodes be the Service's endpoints."""
        slices = []
        for version in self.nodes.families:
            endpoints = [
                render_endpoint(address_of(self.pods[i], version), f"node{i}", **conditions) for i in numbers
            ]
            found = render_slice(f"web-{version}", "web", endpoints, SLICE_PORTS)
            slices.append({**found, "addressType": f"IPv{version}"})
        self.nodes.api.put(*slices, path=SLICES)

    def answers(self, i: int, version: int, port: int = 80, address: str = "") -> set[str]:
        """Return who answers the pod of node i."""
        where = address or VIPS[version]
        return {ask(self.pods[i], where, port, within=1.0).partition(" ")[0] for _ in range(12)}

    def everywhere(self) -> set[str]:
        return {name for version in self.nodes.families for name in self.answers(1, version)}


@pytest.fixture
def shop(tmp_path: Path, bin_dir: Path) -> Iterator[Shop]:
    with (
        following(tmp_path, bin_dir, count=2, services={"serviceCIDRs": CIDRS}) as made,
        ExitStack() as stack,
    ):
        made.start()
        pods = {i: follower.start_pod() for i, follower in made.nodes.items()}
        for i, pod in pods.items():
            stack.enter_context(offering(pod, TARGET, name=f"pod{i} "))
        yield Shop(made, pods)


def services_state(follower: Follower) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((follower.state_file.parent / "services.json").read_text())
    except FileNotFoundError:
        return {}
    return found


def health(follower: Follower, port: int) -> int:
    with inside(follower.node):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
        connection.close()
        return status


def test_pods_and_nodes_reach_a_service_as_it_changes(shop: Shop) -> None:
    shop.put_service()
    shop.put_slices(1, 2)
    assert eventually(shop.everywhere, {"pod1", "pod2"}, within=10) == {"pod1", "pod2"}
    node = shop.nodes.nodes[1].node
    for version in shop.nodes.families:
        address = shop.nodes.cluster.address(1, version)
        seen = {ask(shop.nodes.cluster.underlay, address, 30080) for _ in range(12)}
        assert {answer.partition(" ")[0] for answer in seen} == {"pod1", "pod2"}
        assert {ask(node, VIPS[version], 80).partition(" ")[0] for _ in range(12)} == {"pod1", "pod2"}
    shop.put_slices(2)
    assert eventually(shop.everywhere, {"pod2"}) == {"pod2"}
    shop.put_slices()
    assert eventually(shop.everywhere, {REFUSED}) == {REFUSED}
    shop.put_slices(1, ready=False, terminating=True)
    assert eventually(shop.everywhere, {"pod1"}) == {"pod1"}
    state = services_state(shop.nodes.nodes[1])
    assert (state["ready"], state["services"], state["reasons"]) == (True, 1, [])
    # Nobody has this address: it is refused, and the node is not told that the network is unreachable.
    assert ask(node, "10.96.7.7", 80) == ask(shop.pods[1], "fd00:96::7", 80) == REFUSED
    shop.nodes.api.remove("shop/web", path=SERVICES)
    assert eventually(shop.everywhere, {REFUSED}) == {REFUSED}


def test_a_node_port_of_policy_local_keeps_the_client_and_tells_balancers(shop: Shop) -> None:
    shop.put_service(externalTrafficPolicy="Local", healthCheckNodePort=30999)
    shop.put_slices(2)
    outside = shop.nodes.cluster.underlay
    wanted = {1: (SILENCE, 503), 2: (f"pod2 {ROUTER[4]}", 200)}
    for i, (answer, status) in wanted.items():
        follower, address = shop.nodes.nodes[i], shop.nodes.cluster.address(i, 4)
        assert eventually(lambda f=follower: services_state(f).get("endpoints", 0) > 0, True) is True
        assert eventually(lambda a=address: ask(outside, a, 30080), answer) == answer
        assert health(follower, 30999) == status
        assert health(follower, 10256) == 200


def test_a_killed_agent_leaves_everything_and_the_next_one_changes_nothing(shop: Shop) -> None:
    shop.put_service()
    shop.put_slices(1, 2)
    assert eventually(shop.everywhere, {"pod1", "pod2"}, within=10) == {"pod1", "pod2"}
    first = shop.nodes.nodes[1]
    before = first.node.run("nft", "list", "table", "inet", "podwire_services").stdout
    first.stop(signal.SIGKILL)
    assert shop.everywhere() == {"pod1", "pod2"}
    updated = services_state(first)["updated"]
    first.start()
    assert eventually(lambda: services_state(first)["updated"] > updated, True, within=20) is True
    assert eventually(lambda: services_state(first)["ready"], True, within=20) is True
    assert services_state(first)["elements"] == 0
    assert first.node.run("nft", "list", "table", "inet", "podwire_services").stdout == before


def test_a_flushed_ruleset_is_filled_again(shop: Shop) -> None:
    shop.put_service()
    shop.put_slices(1, 2)
    assert eventually(shop.everywhere, {"pod1", "pod2"}, within=10) == {"pod1", "pod2"}
    shop.nodes.nodes[1].node.run("nft", "flush", "ruleset")
    assert eventually(shop.everywhere, {"pod1", "pod2"}, within=10) == {"pod1", "pod2"}


def test_services_that_are_switched_off_leave_nothing(shop: Shop) -> None:
    shop.put_service()
    shop.put_slices(1)
    assert eventually(shop.everywhere, {"pod1"}, within=10) == {"pod1"}
    first = shop.nodes.nodes[1]
    first.stop()
    first.configure()
    first.start()
    look = first.node.run
    gone = lambda: "podwire_services" in look("nft", "list", "tables").stdout  # noqa: E731
    assert eventually(gone, False, within=20) is False
    routes = lambda: "10.96.0.0/16" in look("ip", "route").stdout  # noqa: E731
    assert eventually(routes, False) is False
    assert not (first.state_file.parent / "services.json").exists()


def test_two_services_with_one_address_are_the_older_one_s(shop: Shop) -> None:
    ports = [{"name": "http", "port": 80, "protocol": "TCP"}]
    external = {"externalIPs": ["203.0.113.7"]}
    shop.nodes.api.put(
        render_service("late", ["10.96.0.21"], ports, created=2, **external),
        render_service("early", ["10.96.0.20"], ports, created=1, **external),
        path=SERVICES,
    )
    slices = [
        render_slice(
            f"{name}-1", name, [render_endpoint(address_of(shop.pods[i], 4), f"node{i}")], SLICE_PORTS
        )
        for name, i in (("early", 1), ("late", 2))
    ]
    shop.nodes.api.put(*slices, path=SLICES)

    def who() -> set[str]:
        return shop.answers(2, 4, address="203.0.113.7")

    assert eventually(who, {"pod1"}, within=10) == {"pod1"}
    reasons = services_state(shop.nodes.nodes[2])["reasons"]
    assert reasons == ["service shop/late: wanted 203.0.113.7:80/TCP, found it is service shop/early's"]
    shop.nodes.api.remove("shop/early", path=SERVICES)
    assert eventually(who, {"pod2"}) == {"pod2"}


def test_nothing_is_programmed_before_both_lists_are_complete(tmp_path: Path, bin_dir: Path) -> None:
    with following(tmp_path, bin_dir, count=1, services=True) as made:
        made.api.missing.add(SLICES)
        made.api.put(render_service("web", ["10.96.0.10"], PORTS), path=SERVICES)
        made.api.put(*(made.render(i) for i in made.nodes))
        follower = made.nodes[1]
        follower.start()
        follower.wait_ready(0)
        eventually(lambda: "endpointslices" in str(services_state(follower).get("reasons")), True, within=10)
        state = services_state(follower)
        assert not state["ready"]
        assert "endpointslices" in state["reasons"][0]
        assert "podwire_services" not in follower.node.run("nft", "list", "tables").stdout
        made.api.missing.clear()
        assert eventually(lambda: services_state(follower)["ready"], True, within=20) is True
        time.sleep(0.1)
        assert (
            "10.96.0.10"
            in follower.node.run("nft", "list", "map", "inet", "podwire_services", "stop4").stdout
        )


def command(follower: Follower, *words: str) -> tuple[int, str, str]:
    """Run `podwire services` as an operator on a node does."""
    program = [sys.executable, "-m", "cni_plugin", "services", *words, *follower.words]
    done = follower.node.run(*program, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_command_says_what_leads_where_and_what_a_client_meets(shop: Shop) -> None:
    shop.put_service(externalTrafficPolicy="Local", sessionAffinity="ClientIP")
    shop.put_slices(2)
    assert eventually(shop.everywhere, {"pod2"}, within=10) == {"pod2"}
    first, (pod,) = shop.nodes.nodes[1], [address_of(shop.pods[2], 4)]
    status, said, _ = command(first)
    lines = {" ".join(line.split()) for line in said.splitlines()}
    assert status == 0
    assert "SERVICE FRONTEND ENDPOINTS WITHOUT KEPT IN THE KERNEL" in lines
    assert "shop/web:http 10.96.0.10:80/TCP 1 - 10800 s yes" in lines
    assert "shop/web:http 192.0.2.1:30080/TCP 0 (1 from inside) drop 10800 s yes" in lines
    status, said, _ = command(first, "shop/web")
    assert (
        f"10.96.0.10:80/TCP of shop/web:http: 1 endpoints, kept 10800 s, in the kernel: yes\n  {pod}:8080"
        in said
    )
    assert f"  {pod} (http=8080) on node2: ready serving" in said
    lack = "externalTrafficPolicy Local: wanted an endpoint on this node, found 1 on others"
    assert f"port http, IPv4: {lack}" in said
    refused = ", this node: refused"
    explained = {
        ("node", "10.96.0.10:80"): [", this node: answered", f"by one of 1: {pod}:8080", "the client itself"],
        ("node", "192.0.2.1:30080/tcp"): ["this node and its pods may use all", "which sees this node"],
        ("192.0.2.254", "192.0.2.1:30080"): ["outside of the cluster: dropped", "no endpoint on this node"],
        ("2001:db8::99", "[fd00:96::10]:80"): ["a cluster address asked from outside"],
        ("node", "10.96.0.10:81"): [refused, "a Service has the address, and not the port 81/TCP"],
        ("node", "10.96.9.9:81"): [refused, "no Service has the cluster address"],
        ("node", "198.18.0.1:80"): ["untouched", "no Service has the address and port"],
    }
    for words, wanted in explained.items():
        status, said, _ = command(first, "explain", *words)
        assert status == 0
        assert [part for part in wanted if part not in said] == [], said
    first.node.run(
        "nft", "delete", "element", "inet", "podwire_services", "svc4", "{ 10.96.0.10 . tcp . 80 }"
    )
    status, said, _ = command(first)
    assert status == 1
    assert "shop/web:http 10.96.0.10:80/TCP 1 - 10800 s differs" in {
        " ".join(x.split()) for x in said.splitlines()
    }


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("shop/none",), "wanted a Service that podwire serves, found none of the name shop/none"),
        (("explain", "node"), "wanted explain FROM ADDRESS:PORT[/PROTOCOL], found explain node"),
        (
            ("explain", "node", "10.96.0.10"),
            "wanted ADDRESS:PORT[/PROTOCOL], an IPv6 address in brackets, found",
        ),
        (("explain", "node", "10.96.0.10:80/ICMP"), "wanted ADDRESS:PORT"),
        (("a/b", "c/d"), "wanted one Service, found a/b c/d"),
    ],
)
def test_a_wrong_question_is_told_what_is_wanted(
    tmp_path: Path, bin_dir: Path, words: tuple[str, ...], wanted: str
) -> None:
    with following(tmp_path, bin_dir, count=1, services=True) as made:
        made.api.put(*(made.render(i) for i in made.nodes))
        status, said, error = command(made.nodes[1], *words)
        assert (status, said) == (1, "")
        assert wanted in error
