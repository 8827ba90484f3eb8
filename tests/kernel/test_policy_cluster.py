"""Policies of a cluster: nodes that follow pods, namespaces and policies of an API, over a real kernel."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.api_server import NAMESPACES, PODS, POLICIES
from tests.harness.cluster import address_of
from tests.harness.followers import Follower, Followers, following
from tests.harness.networks import eventually, inside
from tests.harness.services import ask, offering

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Pod

PORT = 8080
WEB = {"matchLabels": {"app": "web"}}
NOTHING = {"podSelector": WEB, "policyTypes": ["Ingress"]}


class Town:
    """A cluster of two nodes: `web` and `near` on the first, `far` on the second."""

    def __init__(self, nodes: Followers, stack: ExitStack) -> None:
        self.nodes = nodes
        self.stack = stack
        self.pods: dict[str, Pod] = {}

    @property
    def first(self) -> Follower:
        return self.nodes.nodes[1]

    def announce(self, name: str, i: int, *, uid: str = "", **labels: str) -> None:
        """Let the API have a pod that is bound to a node, with its addresses once it has some."""
        addresses = [address_of(self.pods[name], v) for v in (4, 6)] if name in self.pods else []
        meta = {"namespace": "a", "name": name, "uid": uid or name, "labels": labels or {"app": name}}
        meta["creationTimestamp"] = "2026-01-01T00:00:00Z"
        status = {"phase": "Running", "podIPs": [{"ip": address} for address in addresses]}
        spec = {"nodeName": f"node{i}", "containers": [{"ports": []}]}
        self.nodes.api.put({"metadata": meta, "spec": spec, "status": status}, path=PODS)

    def make(self, name: str, i: int, **keys: Any) -> float:
        """Have the runtime make a pod; return how long its ADD took."""
        follower = self.nodes.nodes[i]
        pod = follower.node.pod()
        args = f"K8S_POD_NAMESPACE=a;K8S_POD_NAME={name};K8S_POD_UID={name}"
        begun = time.monotonic()
        follower.node.add({**follower.config(), **keys}, pod, environ={"CNI_ARGS": args})
        seconds = time.monotonic() - begun
        self.pods[name] = pod
        self.stack.enter_context(offering(pod, PORT, name=f"{name} "))
        return seconds

    def start(self, name: str, i: int) -> None:
        """Have a pod as a cluster has it: bound, made, and its addresses told."""
        self.announce(name, i)
        self.make(name, i)
        self.announce(name, i)

    def put(self, name: str, spec: dict[str, Any]) -> None:
        self.nodes.api.put({"metadata": {"namespace": "a", "name": name}, "spec": spec}, path=POLICIES)

    def reaches(self, source: str, target: str, version: int = 4) -> bool:
        address = address_of(self.pods[target], version)
        return ask(self.pods[source], address, PORT, within=0.5).startswith(target)

    def way(self, source: str, target: str) -> set[bool]:
        return {self.reaches(source, target, version) for version in (4, 6)}


def policy_state(follower: Follower) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((follower.state_file.parent / "policy.json").read_text())
    except FileNotFoundError:
        return {}
    return found


@pytest.fixture
def town(tmp_path: Path, bin_dir: Path) -> Iterator[Town]:
    with following(tmp_path, bin_dir, count=2, networkPolicy=True) as made, ExitStack() as stack:
        made.api.put({"metadata": {"name": "a", "labels": {"team": "red"}}}, path=NAMESPACES)
        made.start()
        found = Town(made, stack)
        for follower in made.nodes.values():
            assert eventually(lambda f=follower: policy_state(f).get("ready"), True, within=15) is True
        for name, i in (("web", 1), ("near", 1), ("far", 2)):
            found.start(name, i)
        yield found


def test_pods_are_open_when_their_add_returns_and_policies_come_and_go(town: Town) -> None:
    for source, target in (("near", "web"), ("far", "web"), ("web", "far")):
        assert town.way(source, target) == {True}, (source, target)
    town.put("nothing", NOTHING)
    assert eventually(lambda: town.way("near", "web"), {False}) == {False}
    assert town.way("far", "web") == {False}
    assert town.way("web", "far") == {True}
    rule = {"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "far"}}}]}
    town.put("some", {"podSelector": WEB, "ingress": [rule]})
    assert eventually(lambda: town.way("far", "web"), {True}) == {True}
    assert town.way("near", "web") == {False}
    town.announce("near", 1, app="far")
    assert eventually(lambda: town.way("near", "web"), {True}) == {True}
    town.nodes.api.remove("a/some", "a/nothing", path=POLICIES)
    town.announce("near", 1, app="near")
    assert eventually(lambda: town.way("near", "web"), {True}) == {True}
    state = policy_state(town.first)
    assert (state["ready"], state["reasons"], state["pending"], state["pods"]) == (True, [], [], 2)


@contextmanager
def echoing(pod: Pod, port: int) -> Iterator[None]:
    """Send back what connections say, for as long as they last."""
    with inside(pod):
        listener = socket.create_server(("", port))
    clients: list[socket.socket] = []

    def serve(client: socket.socket) -> None:
        with suppress(OSError), client:
            while said := client.recv(100):
                client.sendall(said)

    def run() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                clients.append(client)
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=run, daemon=True).start()
    try:
        yield
    finally:
        for each in (listener, *clients):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def talk(connection: socket.socket) -> str:
    try:
        connection.sendall(b"?")
        return connection.recv(10).decode() or "end"
    except ConnectionResetError:
        return "reset"
    except TimeoutError:
        return "silence"


def test_a_connection_ends_with_what_allowed_it_and_another_goes_on(town: Town) -> None:
    with echoing(town.pods["web"], PORT + 1), ExitStack() as stack:
        kept = {}
        for name in ("near", "far"):
            with inside(town.pods[name]):
                address = address_of(town.pods["web"], 4)
                kept[name] = stack.enter_context(socket.create_connection((address, PORT + 1), timeout=3))
        rule = {"from": [{"podSelector": {"matchLabels": {"app": "far"}}}]}
        town.put("some", {"podSelector": WEB, "ingress": [rule]})
        assert eventually(lambda: town.reaches("near", "web"), False) is False
        assert (talk(kept["near"]), talk(kept["far"])) == ("reset", "?")
        town.put("more", {"podSelector": WEB, "ingress": [{}]})
        assert eventually(lambda: town.reaches("near", "web"), True) is True
        assert talk(kept["far"]) == "?"


def test_a_connection_that_was_denied_while_nobody_followed_ends_with_the_next_agent(town: Town) -> None:
    rule = {"from": [{"podSelector": {"matchLabels": {"app": "near"}}}]}
    town.put("some", {"podSelector": WEB, "ingress": [rule]})
    assert eventually(lambda: town.reaches("far", "web"), False) is False
    with echoing(town.pods["web"], PORT + 1), ExitStack() as stack:
        with inside(town.pods["near"]):
            place = (address_of(town.pods["web"], 4), PORT + 1)
            kept = stack.enter_context(socket.create_connection(place, timeout=3))
        assert talk(kept) == "?"
        town.first.stop(signal.SIGKILL)
        town.announce("near", 1, app="other")
        assert talk(kept) == "?"
        town.first.start()
        assert eventually(lambda: town.reaches("near", "web"), False, within=20) is False
        assert talk(kept) == "reset"


def test_a_new_pod_is_judged_before_its_first_packet(town: Town) -> None:
    town.put("late", {"podSelector": {"matchLabels": {"app": "late"}}, "policyTypes": ["Ingress", "Egress"]})
    eventually(lambda: policy_state(town.first).get("policies"), 1)
    passed: list[str] = []
    ended = threading.Event()

    def flood() -> None:
        while not ended.is_set():
            for target in range(2, 12):
                answer = ask(town.pods["far"], f"10.244.1.{target}", PORT, "udp", within=0.02)
                passed.extend([answer] if answer.startswith("late") else [])

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        town.announce("late", 1)
        seconds = town.make("late", 1)
        assert seconds < 10
        assert not town.reaches("late", "near")
        assert not town.reaches("near", "late")
    finally:
        ended.set()
        thread.join()
    assert passed == []


def test_a_pod_that_the_watch_does_not_know_yet_is_asked_for(town: Town) -> None:
    town.nodes.api.objects[PODS]["a/quiet"] = {
        "metadata": {
            "namespace": "a",
            "name": "quiet",
            "uid": "quiet",
            "labels": {},
            "creationTimestamp": "",
        },
        "spec": {"nodeName": "node1"},
        "status": {},
    }
    assert town.make("quiet", 1) < 10
    assert town.way("near", "quiet") == {True}


def test_a_pod_that_nobody_knows_stays_closed_and_is_named(town: Town) -> None:
    seconds = town.make("nobody", 1, networkPolicy={**town.first.config()["networkPolicy"], "timeout": 300})
    assert 0.3 <= seconds < 10
    assert town.way("near", "nobody") == town.way("nobody", "near") == {False}
    named = lambda: policy_state(town.first)["pending"]  # noqa: E731
    town.put("any", NOTHING)
    assert eventually(named, ["a/nobody"]) == ["a/nobody"]
    town.announce("nobody", 1)
    assert eventually(lambda: town.way("near", "nobody"), {True}) == {True}


def test_a_killed_agent_leaves_policies_in_force_and_new_pods_closed(town: Town) -> None:
    town.put("nothing", NOTHING)
    assert eventually(lambda: town.way("near", "web"), {False}) == {False}
    before = town.first.node.run("nft", "list", "table", "inet", "podwire_policy").stdout
    town.first.stop(signal.SIGKILL)
    assert town.way("near", "web") == {False}
    assert town.way("web", "near") == {True}
    town.announce("late", 1)
    assert town.make("late", 1) < 10
    assert town.way("late", "near") == {False}
    town.announce("late", 1)
    town.first.start()
    assert eventually(lambda: town.way("late", "near"), {True}, within=20) == {True}
    assert town.way("near", "web") == {False}
    after = town.first.node.run("nft", "list", "table", "inet", "podwire_policy").stdout
    assert [line for line in before.splitlines() if "chain g_" in line] == [
        line for line in after.splitlines() if "chain g_" in line
    ]


def test_after_a_flush_isolated_pods_are_isolated_again(town: Town) -> None:
    town.put("nothing", NOTHING)
    assert eventually(lambda: town.way("near", "web"), {False}) == {False}
    town.first.node.run("nft", "flush", "ruleset")
    assert eventually(lambda: town.way("web", "far"), {True}, within=10) == {True}
    assert eventually(lambda: town.way("near", "web"), {False}, within=10) == {False}
    assert town.way("far", "web") == {False}


def test_policies_that_are_switched_off_leave_nothing_and_on_again_all(town: Town) -> None:
    town.put("nothing", NOTHING)
    assert eventually(lambda: town.way("near", "web"), {False}) == {False}
    town.first.stop()
    town.first.configure()
    town.first.start()
    look = town.first.node.run
    there = lambda: "podwire_policy" in look("nft", "list", "tables").stdout  # noqa: E731
    assert eventually(there, False, within=20) is False
    assert town.way("near", "web") == {True}
    town.first.stop()
    town.first.configure(networkPolicy=True)
    with echoing(town.pods["near"], PORT + 1), inside(town.pods["far"]):
        kept = socket.create_connection((address_of(town.pods["near"], 4), PORT + 1), timeout=3)
        with kept:
            town.first.start()
            while town.way("near", "web") != {False}:
                assert talk(kept) == "?"
                assert town.reaches("web", "far")
            assert town.way("web", "far") == {True}
            assert talk(kept) == "?"


def test_an_api_that_is_away_leaves_everything_as_it_was(town: Town) -> None:
    town.put("nothing", NOTHING)
    assert eventually(lambda: town.way("near", "web"), {False}) == {False}
    town.nodes.api.stop()
    assert town.way("near", "web") == {False}
    assert town.way("far", "near") == {True}
