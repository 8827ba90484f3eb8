"""The network of a Kubernetes cluster: nodes that follow Node objects, over a real kernel."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.agents import start_agent
from tests.harness.api_server import render_node
from tests.harness.cluster import ROUTER, TUNNEL, address_of, overlay_state
from tests.harness.followers import following
from tests.harness.networks import eventually
from tests.harness.services import REFUSED, SILENCE, ask, ask_all, offering

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.followers import Follower, Followers

FORMS = (
    *(("routed", "vxlan", families) for families in ("dual", "IPv4", "IPv6")),
    ("bridge", "vxlan", "dual"),
    ("bridge", "vxlan", "IPv6"),
    ("routed", "hostGateway", "dual"),
    ("bridge", "hostGateway", "dual"),
)


@pytest.fixture
def nodes(tmp_path: Path, bin_dir: Path) -> Iterator[Followers]:
    """Two nodes that are ready, of the three that the API has."""
    with following(tmp_path, bin_dir, 3, vni=42) as made:
        made.api.put(*(made.render(i) for i in made.nodes))
        for i in (1, 2):
            made.nodes[i].start()
        for i in (1, 2):
            made.nodes[i].wait_ready(2)
        yield made


@pytest.mark.parametrize(("attach", "backend", "families"), FORMS)
def test_every_pod_reaches_every_pod_and_a_restart_changes_nothing(
    tmp_path: Path, bin_dir: Path, attach: str, backend: str, families: str
) -> None:
    with following(tmp_path, bin_dir, families=families, attach=attach, backend=backend, vni=42) as made:
        made.start()
        pods = {i: follower.start_pod() for i, follower in made.nodes.items()}
        for one, other in itertools.permutations(pods, 2):
            for version in made.families:
                assert pods[one].ping(address_of(pods[other], version)), (one, other, version)
        before = made.nodes[1].node.transcript()
        state = made.nodes[1].restart()
        assert (state["ready"], state["syncs"], state["repairs"]) == (True, 1, 0)
        assert "changes=0" in made.nodes[1].log.read_text()
        assert made.nodes[1].node.transcript() == before


def test_pods_of_before_reach_new_ones_when_the_cluster_goes_from_bridge_to_routed(
    tmp_path: Path, bin_dir: Path
) -> None:
    with following(tmp_path, bin_dir, 2, vni=42, attach="bridge") as made:
        made.start()
        old = {i: follower.start_pod() for i, follower in made.nodes.items()}
        for i, follower in made.nodes.items():
            follower.stop()
            follower.configure(vni=42, attach="routed")
            follower.start()
            follower.wait(lambda state: state["ready"] and state["mode"] == "routed, vxlan")
            assert follower.config()["mode"] == "routed", i
        new = {i: follower.start_pod() for i, follower in made.nodes.items()}
        for one, other in itertools.permutations((*old.values(), *new.values()), 2):
            for version in (4, 6):
                assert one.ping(address_of(other, version), within=1), (one, other, version)
        one = made.nodes[1]
        one.node.delete(one.config(), old[1])
        one.node.run("ip", "link", "del", "cni0")
        one.wait(lambda _: "bridge" not in one.config())
        assert new[1].ping(address_of(new[2], 6))


def test_the_configuration_appears_when_the_datapath_is_there(tmp_path: Path, bin_dir: Path) -> None:
    with following(tmp_path, bin_dir, 2, vni=42) as made:
        one = made.nodes[1]
        one.start()
        state = one.wait(lambda state: "among the API's nodes" in str(state["reasons"]))
        assert (state["ready"], one.conflist.exists()) == (False, False)
        made.api.put(made.render(1, cidrs=[]))
        one.wait(lambda state: "spec.podCIDRs" in str(state["reasons"]))
        assert not one.conflist.exists()
        made.api.put(made.render(1, addresses=["192.0.2.99"]))
        one.wait(lambda state: "wanted its InternalIP 192.0.2.99" in str(state["reasons"]))
        assert not one.conflist.exists()
        made.api.put(made.render(1), made.render(2))
        state = one.wait_ready(1)
        assert state["podCIDRs"] == ["10.244.1.0/24", "fd00:10:244:1::/64"]
        assert one.node.links()[TUNNEL]["mtu"] == 1450
        assert [path.name for path in one.conflist.parent.iterdir()] == ["10-podwire.conflist"]


def test_nodes_that_change_their_address_or_leave_are_followed(nodes: Followers) -> None:
    one, before = nodes.nodes[1], nodes.nodes[1].conflist.stat().st_mtime_ns
    nodes.api.put(nodes.render(3, addresses=["192.0.2.33", "2001:db8::33"]))
    one.wait(lambda _: any("192.0.2.33" in entry for entry in overlay_state(one.node)["fdb"]))
    nodes.api.remove("node3")
    one.wait_ready(1)
    assert len(overlay_state(one.node)["fdb"]) == 1
    nodes.api.put(nodes.render(2, cidrs=[]))
    one.wait_ready(0)
    state = overlay_state(one.node)
    assert (state["fdb"], state["routes4"], state["routes6"]) == ([], [], [])
    nodes.api.put(nodes.render(2))
    one.wait_ready(1)
    assert one.conflist.stat().st_mtime_ns == before


def test_a_node_that_gets_another_address_of_its_own_is_reached_there(nodes: Followers) -> None:
    one, two = nodes.nodes[1], nodes.nodes[2]
    pods = one.start_pod(), two.start_pod()
    # Its connection to the API has the old one.
    one.node.run("ip", "addr", "add", "192.0.2.51/24", "dev", "u0")
    nodes.api.put(nodes.render(1, addresses=["192.0.2.51", "2001:db8::1"]))
    one.wait(lambda state: state["ready"] and one.config()["vxlan"]["local"] == "192.0.2.51")
    two.wait(lambda _: any("192.0.2.51" in entry for entry in overlay_state(two.node)["fdb"]))
    for version in (4, 6):
        assert pods[0].ping(address_of(pods[1], version), within=3)


def test_a_node_that_loses_its_subnet_keeps_its_configuration_and_says_so(nodes: Followers) -> None:
    one = nodes.nodes[1]
    pod, content = one.start_pod(), one.conflist.read_text()
    assert one.node.call("STATUS", one.config()).status == 0
    nodes.api.put(nodes.render(1, cidrs=[]))
    one.wait(lambda state: not state["ready"])
    assert one.conflist.read_text() == content
    answer = one.node.call("STATUS", one.config())
    assert (answer.status, answer.json["code"]) == (1, 50)
    assert answer.json["msg"].startswith("node node1: wanted spec.podCIDRs, found none")
    nodes.api.remove("node1")
    one.wait(lambda state: "among the API's nodes" in str(state["reasons"]))
    assert pod.ping("192.0.2.1")
    nodes.api.put(nodes.render(1))
    one.wait_ready(2)


def test_a_node_that_joins_again_with_another_subnet_leaves_the_old_one_to_others(nodes: Followers) -> None:
    one, two = nodes.nodes[1], nodes.nodes[2]
    old = one.start_pod()
    nodes.api.remove("node1")
    one.node.delete(one.config(), old)
    nodes.api.put(nodes.render(1, cidrs=["10.244.9.0/24", "fd00:10:244:9::/64"]))
    one.wait(lambda state: state["podCIDRs"] == ["10.244.9.0/24", "fd00:10:244:9::/64"])
    nodes.api.put(nodes.render(2, cidrs=["10.244.1.0/24", "fd00:10:244:1::/64"]))
    two.wait(lambda state: state["podCIDRs"] == ["10.244.1.0/24", "fd00:10:244:1::/64"])
    one.wait(lambda _: "10.244.1.0/24 via" in str(overlay_state(one.node)["routes4"]))
    pods = one.start_pod(), two.start_pod()
    for version in (4, 6):
        assert pods[0].ping(address_of(pods[1], version), within=3)


def test_a_peer_that_contradicts_the_others_is_left_out_and_named(nodes: Followers) -> None:
    one = nodes.nodes[1]
    stolen = render_node("thief", ["192.0.2.77"], ["10.244.2.0/24"], created=1)
    one.node.run("ip", "addr", "add", "198.18.0.1/24", "dev", "u0")
    nodes.api.put(stolen, render_node("lost", ["2001:db8::78"], ["10.244.8.0/24"]))
    nodes.api.put(render_node("ghost", ["198.18.0.1"], ["10.244.9.0/24"]))
    state = one.wait(lambda state: state["peersWanted"] == 5)
    assert (state["ready"], state["peersProgrammed"]) == (True, 2)
    assert state["reasons"] == [
        "node ghost: wanted another machine's address, found 198.18.0.1 on this one",
        "node lost: wanted an InternalIP of IPv4 like ours, found none",
        "node thief: wanted 10.244.2.0/24 for it alone, found it is node node2's",
    ]


def test_host_gateways_leave_out_who_is_behind_a_router(tmp_path: Path, bin_dir: Path) -> None:
    with following(tmp_path, bin_dir, 3, behind=(3,), mode="hostGateway") as made:
        made.api.put(*(made.render(i) for i in made.nodes))
        made.nodes[1].start()
        state = made.nodes[1].wait_ready(1)
        assert state["reasons"] == [
            'node node3: "hostGateway" peer 198.51.100.3: wanted a neighbour, found it behind 192.0.2.254'
        ]


def test_what_is_known_stays_in_force_while_the_api_is_away(nodes: Followers) -> None:
    one = nodes.nodes[1]
    nodes.api.stop()
    one.wait(lambda state: state["ready"] and "nodes: " in str(state["reasons"]))
    # A node that was rebooted meanwhile: its kernel and /run are empty, its disk is not.
    one.stop()
    one.state_file.unlink()
    for link in (TUNNEL, "cni0"):
        one.node.run("ip", "link", "del", link, check=False)
    one.start()
    one.wait_ready(2)
    pods = one.start_pod(), nodes.nodes[2].start_pod()
    assert pods[0].ping(address_of(pods[1], 4))
    nodes.api.start(None, nodes.api.address[0])
    nodes.api.remove("node3")
    one.wait_ready(1)


def test_it_is_not_ready_for_settings_that_only_the_api_can_bring_into_force(nodes: Followers) -> None:
    one = nodes.nodes[1]
    before = one.conflist.read_text()
    nodes.api.stop()
    one.stop()
    one.state_file.unlink()
    settings = one.directory / "settings.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "mtu": 1300}))
    one.start()
    state = one.wait(lambda state: state["syncs"] > 0)
    assert (state["ready"], one.conflist.read_text()) == (False, before)
    assert (
        "settings: wanted the API's nodes to bring them into force, found no answer yet" in state["reasons"]
    )
    nodes.api.start(None, nodes.api.address[0])
    one.wait_ready(2)
    assert one.config()["mtu"] == 1300


def test_a_node_whose_settings_change_is_ready_all_the_time(nodes: Followers) -> None:
    """A runtime that asks STATUS at the wrong moment would say that the node is not."""
    one = nodes.nodes[1]
    for mtu in (1300, 1310, 1320):
        one.stop()
        settings = one.directory / "settings.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "mtu": mtu}))
        one.start()
        said = set()
        deadline = time.monotonic() + 60
        while one.config().get("mtu") != mtu:
            assert time.monotonic() < deadline
            said.add(one.state()["ready"])
        assert said == {True}


def test_what_somebody_deletes_is_made_again_at_once(nodes: Followers) -> None:
    one = nodes.nodes[1]
    before = overlay_state(one.node)
    one.node.run("ip", "link", "del", TUNNEL)
    state = one.wait(lambda state: state["repairs"] > 0 and overlay_state(one.node) == before)
    assert state["ready"]
    one.node.run("ip", "route", "del", "10.244.2.0/24")
    one.wait(lambda now: now["repairs"] > state["repairs"] and overlay_state(one.node) == before)
    one.node.run("ip", "link", "set", "u0", "mtu", "1400")
    one.wait(lambda _: one.node.links()[TUNNEL]["mtu"] == 1350)


def test_a_burst_of_nodes_is_one_sync(nodes: Followers) -> None:
    one = nodes.nodes[1]
    before = one.state()["syncs"]
    for i in range(100):
        nodes.api.put(render_node(f"more{i}", [f"192.0.2.{i + 100}"], [f"10.244.{i + 100}.0/24"]))
    state = one.wait_ready(102)
    # Two when the burst took longer than the longest wait, and the echo of our own changes.
    assert state["syncs"] - before <= 3
    assert len(overlay_state(one.node)["fdb"]) == 102


def test_a_thousand_nodes_are_a_burst_in_bounded_memory_and_cost_an_add_little(
    nodes: Followers,
) -> None:
    one, before = nodes.nodes[1], nodes.nodes[1].state()["syncs"]
    nodes.api.put(
        *(
            render_node(
                f"more{i}",
                [f"192.0.3.{i}" if i < 250 else f"198.18.{i // 250}.{i % 250}", f"2001:db8::ff:{i:x}"],
                [f"10.{100 + i // 250}.{i % 250}.0/24", f"fd00:10:245:{i:x}::/64"],
            )
            for i in range(1000)
        )
    )
    state = one.wait(lambda state: state["peersProgrammed"] == 1002, within=60)
    assert state["ready"]
    assert state["syncs"] - before <= 3  # as above
    status = Path(f"/proc/{one.processes[0].pid}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) < 100 * 1024
    # With the follower away an ADD makes the tunnel when there is none, and does not look at its peers else.
    one.stop()
    vtep = overlay_state(one.node)["fdb"][0]
    one.node.run("bridge", "fdb", "del", *vtep.split()[:1], "dev", TUNNEL, "dst", vtep.split()[2])
    one.start_pod()
    assert len(overlay_state(one.node)["fdb"]) == 1001
    one.node.run("ip", "link", "del", TUNNEL)
    one.start_pod()
    assert len(overlay_state(one.node)["fdb"]) == 1002


def settle(one: Follower) -> float:
    """Return when the node last looked, once it has left off looking for a while."""
    seen: float = one.state()["updated"]
    for _ in range(20):
        time.sleep(1)
        before, seen = seen, one.state()["updated"]
        if seen == before:
            return seen
    raise AssertionError("it looks on and on")


def test_a_pod_that_comes_or_goes_is_no_reason_to_look(nodes: Followers) -> None:
    one = nodes.nodes[1]
    one.start_pod()  # it brings the bridge up
    before = settle(one)
    pod = one.start_pod()
    one.node.delete(one.config(), pod)
    time.sleep(1)
    assert one.state()["updated"] == before


def test_the_condition_that_a_cloud_set_is_cleared(tmp_path: Path, bin_dir: Path) -> None:
    with following(tmp_path, bin_dir, 2, vni=42) as made:
        made.api.put(made.render(1, unavailable=True), made.render(2, unavailable=True))
        made.nodes[1].start()
        made.nodes[1].wait_ready(1)
        made.nodes[1].wait(lambda _: bool(made.api.patches))
        time.sleep(0.5)
        (patch,) = made.api.patches
        (condition,) = patch["status"]["conditions"]
        assert (condition["type"], condition["status"]) == ("NetworkUnavailable", "False")
        assert [r for r in made.api.requests if r.startswith("PATCH")] == ["PATCH /api/v1/nodes/node1/status"]


def test_the_agent_keeps_it_running_and_takes_it_along(nodes: Followers, tmp_path: Path) -> None:
    one = nodes.nodes[1]
    one.stop()
    one.state_file.unlink()
    with start_agent(tmp_path / "a.sock", "--kubernetes", *one.words, inside=one.node) as agent:
        one.wait_ready(2)
        child = child_of(agent.process.pid)
        os.kill(child, signal.SIGKILL)
        one.state_file.unlink()
        one.wait_ready(2)
        again = child_of(agent.process.pid)
        assert again != child
        assert agent.stop() == 0
        assert not exists(again)
    with start_agent(tmp_path / "a.sock", "--kubernetes", *one.words, inside=one.node) as agent:
        child = child_of(agent.process.pid)
        agent.kill()
        deadline = time.monotonic() + 10
        while exists(child):
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("pause", ["nan", "inf", "0", "soon"])
def test_a_pause_that_is_none_is_refused(pause: str) -> None:
    command = [sys.executable, "-m", "cni_plugin", "cluster", f"--resync={pause}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert f"--resync: wanted 1 to 86400 seconds, found '{pause}'" in done.stderr


def test_the_agent_starts_it_again_when_there_were_no_descriptors(nodes: Followers, tmp_path: Path) -> None:
    one = nodes.nodes[1]
    one.stop()
    with start_agent(tmp_path / "a.sock", "--kubernetes", *one.words, inside=one.node) as agent:
        one.wait_ready(2)
        agent.wait_ready()
        limit = resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (3, limit[1]))
        os.kill(child_of(agent.process.pid), signal.SIGKILL)
        assert eventually(
            lambda: any('state="not started"' in line for line in agent.lines()), True, within=20
        )
        resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, limit)
        one.state_file.unlink()
        one.wait_ready(2)
        assert agent.stop() == 0


def child_of(pid: int) -> int:
    """Return the one child of a process, whichever of its threads started it."""
    for _ in range(500):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        found = []
        for task in tasks:
            with suppress(FileNotFoundError):  # a thread that ended meanwhile
                found += (task / "children").read_text().split()
        if found:
            return int(found[0])
        time.sleep(0.02)
    raise AssertionError(pid)


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("attach", "backend"), [("routed", "vxlan"), ("bridge", "vxlan"), ("routed", "hostGateway")]
)
def test_pods_and_other_nodes_see_each_others_own_addresses(
    tmp_path: Path, bin_dir: Path, attach: str, backend: str
) -> None:
    with following(tmp_path, bin_dir, 2, attach=attach, backend=backend, vni=42) as made:
        made.start()
        one, two = made.nodes[1], made.nodes[2]
        pod = one.start_pod()
        for version in (4, 6):
            own, far = address_of(pod, version), made.cluster.address(2, version)
            with offering(two.node, 8080):
                assert ask_all(pod, far, 8080) == {own}
            with offering(pod, 8081):
                assert len(ask_all(two.node, own, 8081)) == 1
                assert two.node.run("ping", "-n", "-c1", "-W1", "-I", far, own).returncode == 0
            with offering(made.cluster.underlay, 8082):
                assert ask_all(pod, ROUTER[version], 8082) == {made.cluster.address(1, version)}


def test_what_does_not_take_the_tunnel_has_the_nodes_address(nodes: Followers) -> None:
    """IPVS finds the destination of a Service behind the place where pods' packets are marked."""
    one, two = nodes.nodes[1], nodes.nodes[2]
    pod = one.start_pod()
    one.node.run("nft", "flush", "chain", "inet", "podwire", f"tunnel_{TUNNEL}")
    with offering(two.node, 8080):
        for version in (4, 6):
            seen = ask_all(pod, nodes.cluster.address(2, version), 8080)
            assert seen == {nodes.cluster.address(1, version)}


def test_a_published_port_answers_other_nodes_the_way_they_came(nodes: Followers) -> None:
    one, two = nodes.nodes[1], nodes.nodes[2]
    pod = one.node.pod()
    mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
    one.node.add({**one.config(), "runtimeConfig": {"portMappings": [mapping]}}, pod)
    with offering(pod, 80):
        for version in (4, 6):
            address = nodes.cluster.address(1, version)
            assert ask(two.node, address, 8080) == nodes.cluster.address(2, version)
            assert ask(two.start_pod(), address, 8080) not in {REFUSED, SILENCE}
