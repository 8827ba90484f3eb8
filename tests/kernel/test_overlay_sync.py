"""One sync makes devices, entries, neighbours and routes equal to what is wanted, whatever happened."""

from __future__ import annotations

import re
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.cluster import (
    FORMS,
    TUNNEL,
    TUNNELLED,
    Cluster,
    address_of,
    make_cluster,
    overlay_state,
    sync,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.node import Node, Pod

FLAT, ROUTED, BRIDGEGW, TUNNEL_ALONE, HOSTGW = FORMS


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 3)
    yield made
    made.remove()


def changes(node: Node, config: dict[str, Any]) -> int:
    """Sync and return the number of changes that it reports."""
    done = sync(node, config)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"network test: (\d+) changes\n(?:  mended: .*\n)*", done.stdout)
    assert found, done.stdout
    return int(found[1])


@contextmanager
def pinging(pod: Pod, address: str) -> Iterator[None]:
    """Send two hundred packets a second meanwhile."""
    command = ["nsenter", f"--net={pod.path}", "ping", "-n", "-q", "-i", "0.005", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield
        finally:
            process.terminate()


def on_node(*words: str) -> Callable[[Node], None]:
    return lambda node: node.run(*words) and None


def remove_fdb(node: Node) -> None:
    mac, _, vtep, *_ = overlay_state(node)["fdb"][0].split()
    node.run("bridge", "fdb", "del", mac, "dev", TUNNEL, "dst", vtep)


def readdress_fdb(node: Node) -> None:
    mac, _, vtep, *_ = overlay_state(node)["fdb"][0].split()
    node.run("bridge", "fdb", "del", mac, "dev", TUNNEL, "dst", vtep)
    node.run("bridge", "fdb", "append", mac, "dev", TUNNEL, "dst", "192.0.2.99")


def remove_neighbour(node: Node) -> None:
    node.run("ip", "neigh", "del", overlay_state(node)["neighbours"][0].split()[0], "dev", TUNNEL)


def rewrite_neighbour(node: Node) -> None:
    address = overlay_state(node)["neighbours"][0].split()[0]
    node.run(
        "ip", "neigh", "replace", address, "lladdr", "02:00:00:00:00:09", "dev", TUNNEL, "nud", "permanent"
    )


def remove_routes(node: Node) -> None:
    for version in (4, 6):
        node.run("ip", f"-{version}", "route", "del", *overlay_state(node)[f"routes{version}"][0].split()[:1])


def redirect_route(node: Node) -> None:
    words = overlay_state(node)["routes4"][0].split()
    metric = words[words.index("metric") + 1]
    node.run("ip", "route", "replace", words[0], "via", "192.0.2.254", "proto", "112", "metric", metric)


def add_rule(node: Node) -> None:
    table = overlay_state(node)["rules"][0].split("lookup ")[1].split()[0]
    node.run("ip", "rule", "add", "from", "10.9.9.0/24", "table", table, "protocol", "112")


ADD_FDB = ("bridge", "fdb", "append", "02:00:00:00:00:09", "dev", TUNNEL, "dst", "192.0.2.99")
ADD_NEIGHBOUR = (
    "ip",
    "neigh",
    "add",
    "10.9.9.9",
    "lladdr",
    "02:00:00:00:00:09",
    "dev",
    TUNNEL,
    "nud",
    "permanent",
)
TUNNELS, GATEWAYS = (FLAT, *TUNNELLED), (BRIDGEGW, HOSTGW)
DAMAGE: dict[str, tuple[tuple[str, ...], Callable[[Node], object]]] = {
    "device deleted": (TUNNELS, on_node("ip", "link", "del", TUNNEL)),
    "device down": (TUNNELS, on_node("ip", "link", "set", TUNNEL, "down")),
    "MAC rewritten": (TUNNELS, on_node("ip", "link", "set", TUNNEL, "address", "02:00:00:00:00:07")),
    "MTU changed": (TUNNELS, on_node("ip", "link", "set", TUNNEL, "mtu", "1300")),
    "taken out of the bridge": ((FLAT,), on_node("ip", "link", "set", TUNNEL, "nomaster")),
    "gateway's rules flushed": (
        (FLAT,),
        on_node("nft", "flush", "chain", "bridge", "podwire", f"tunnel_{TUNNEL}"),
    ),
    "FDB entry removed": (TUNNELS, remove_fdb),
    "FDB entry readdressed": (TUNNELS, readdress_fdb),
    "FDB entry added": (TUNNELS, on_node(*ADD_FDB)),
    "address removed": (TUNNELLED, on_node("ip", "addr", "del", "10.244.1.0/32", "dev", TUNNEL)),
    "neighbour removed": (TUNNELLED, remove_neighbour),
    "neighbour rewritten": (TUNNELLED, rewrite_neighbour),
    "neighbour added": (TUNNELLED, on_node(*ADD_NEIGHBOUR)),
    "rule removed": (TUNNELLED, on_node("ip", "rule", "del", "from", "10.244.1.0/24")),
    "rule added": (TUNNELLED, add_rule),
    "marks flushed": (
        TUNNELLED,
        on_node("nft", "flush", "chain", "inet", "podwire", f"tunnel_{TUNNEL}"),
    ),
    "routes removed": ((*TUNNELLED, *GATEWAYS), remove_routes),
    "route redirected": ((*TUNNELLED, *GATEWAYS), redirect_route),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_sync_repairs_it_while_traffic_runs_and_the_next_changes_nothing(
    cluster: Cluster, form: str
) -> None:
    pods, node, config = cluster.start_pods(form), cluster.nodes[1], cluster.config(form, 1)
    targets = [address_of(pods[i], v) for i in (2, 3) for v in (4, 6)]
    assert all(pods[1].ping(target) for target in targets)
    wanted = overlay_state(node)
    assert changes(node, config) == 0
    with pinging(pods[1], targets[0]), pinging(pods[2], address_of(pods[1], 6)):
        for name, (forms, damage) in DAMAGE.items():
            if form not in forms:
                continue
            damage(node)
            assert overlay_state(node) != wanted, name
            assert changes(node, config) > 0, name
            assert overlay_state(node) == wanted, name
            assert all(pods[1].ping(target) for target in targets), name
            assert changes(node, config) == 0, name
    assert changes(node, config) == 0
    assert overlay_state(node) == wanted


@pytest.mark.parametrize("form", FORMS)
def test_what_is_wanted_is_one_object_of_each_kind_per_peer(cluster: Cluster, form: str) -> None:
    cluster.start_pods(form)
    state = overlay_state(cluster.nodes[1])
    counts = {
        key: len(state[key])
        for key in ("routes4", "routes6", "fdb", "neighbours", "addresses")
        if key in state
    }
    flat = {"routes4": 0, "routes6": 0, "fdb": 2, "neighbours": 0, "addresses": 0}
    tunnelled = {"routes4": 2, "routes6": 2, "fdb": 2, "neighbours": 4, "addresses": 2}
    gateways = {"routes4": 2, "routes6": 2}
    wanted = {FLAT: flat} | dict.fromkeys(TUNNELLED, tunnelled) | dict.fromkeys(GATEWAYS, gateways)
    assert counts == wanted[form]


@pytest.mark.parametrize("form", FORMS)
def test_of_a_peer_that_is_removed_nothing_stays(cluster: Cluster, form: str) -> None:
    pods, node = cluster.start_pods(form), cluster.nodes[1]
    one = cluster.config(form, 1, peers=[cluster.peer(form, 2)])
    assert changes(node, one) > 0
    state = overlay_state(node)
    gone = [cluster.address(3, 4), cluster.address(3, 6), "10.244.3.", "fd00:10:244:3:"]
    assert not [word for word in gone if word in str(state)]
    assert pods[1].ping(address_of(pods[2], 6))
    assert not pods[1].ping(address_of(pods[3], 4), within=0.3)
    both = cluster.config(form, 1)
    assert changes(node, both) > 0
    assert changes(node, both) == 0
    assert pods[1].ping(address_of(pods[3], 4))


@pytest.mark.parametrize("form", FORMS)
def test_an_add_ends_in_sync_after_the_peers_changed(cluster: Cluster, form: str) -> None:
    node = cluster.nodes[1]
    node.add(cluster.config(form, 1, peers=[cluster.peer(form, 2)]), node.pod())
    node.add(cluster.config(form, 1), node.pod())
    assert changes(node, cluster.config(form, 1)) == 0


@pytest.mark.parametrize("form", FORMS)
def test_an_add_ends_in_sync_after_somebody_removed_or_added_something(cluster: Cluster, form: str) -> None:
    node, config = cluster.nodes[1], cluster.config(form, 1)
    node.add(config, node.pod())
    wanted = overlay_state(node)
    # What keeps every number as it was is found by `podwire sync` and CHECK only.
    same_number = {"FDB entry readdressed", "neighbour rewritten", "route redirected"}
    for name, (forms, damage) in DAMAGE.items():
        if form in forms and name not in same_number:
            damage(node)
            node.add(config, node.pod())
            assert overlay_state(node) == wanted, name


@pytest.mark.parametrize("form", FORMS)
def test_check_finds_what_is_missing_and_what_is_too_much(cluster: Cluster, form: str) -> None:
    node, pod, config = cluster.nodes[1], cluster.nodes[1].pod(), cluster.config(form, 1)
    result = node.add(config, pod)
    assert node.check(config, result, pod).status == 0
    for name, (forms, damage) in DAMAGE.items():
        if form in forms:
            damage(node)
            answer = node.check(config, result, pod)
            assert answer.status == 1, name
            assert answer.json["code"] == 100, name
            changes(node, config)
            assert node.check(config, result, pod).status == 0, name


@pytest.mark.parametrize("version", [4, 6])
def test_routes_move_between_plain_and_tunnelled_whatever_else_covers_them(
    cluster: Cluster, version: int
) -> None:
    pods, node = cluster.start_pods(ROUTED, version), cluster.nodes[1]
    # Somebody's routes to all nodes' subnets, over another link.
    node.run("ip", "route", "add", "10.244.0.0/16", "via", "192.0.2.254")
    node.run("ip", "route", "add", "fd00:10:244::/48", "via", "2001:db8::fe")
    for direct in (True, False, True):
        # On all nodes, or strict rp_filter drops what comes back another way.
        for i, each in cluster.nodes.items():
            config = cluster.config(ROUTED, i, version, directRouting=direct)
            assert changes(each, config) > 0
            assert changes(each, config) == 0
        assert all(pods[1].ping(address_of(pods[2], v)) for v in (4, 6))


@pytest.mark.parametrize(
    ("before", "after"), [(FLAT, ROUTED), (ROUTED, FLAT), (ROUTED, TUNNEL_ALONE), (TUNNEL_ALONE, ROUTED)]
)
def test_a_network_can_change_its_form(cluster: Cluster, before: str, after: str) -> None:
    for i, node in cluster.nodes.items():
        assert changes(node, cluster.config(before, i)) > 0
    for i, node in cluster.nodes.items():
        node.run("ip", "link", "del", "cni0", check=before != TUNNEL_ALONE)
        assert changes(node, cluster.config(after, i)) > 0
        assert changes(node, cluster.config(after, i)) == 0
    pods = cluster.start_pods(after)
    assert all(pods[1].ping(address_of(pods[2], v)) for v in (4, 6))


def test_the_last_peer_leaves_a_node_alone_and_able_to_attach(cluster: Cluster) -> None:
    for form in FORMS:
        node = cluster.nodes[1]
        config = cluster.config(form, 1)
        node.add(config, node.pod())
        nobody = cluster.config(form, 1, peers=[])
        assert changes(node, nobody) > 0
        state = overlay_state(node)
        assert not [state[k] for k in ("routes4", "routes6", "fdb", "neighbours") if state.get(k)], form
        node.run("ip", "link", "del", "cni0", check=False)
        node.run("ip", "link", "del", TUNNEL, check=False)


def test_the_tunnels_mac_follows_from_vni_and_address_alone(cluster: Cluster) -> None:
    node, config = cluster.nodes[1], cluster.config(ROUTED, 1)
    changes(node, config)
    first = overlay_state(node)["device"]["address"]
    node.run("ip", "link", "del", TUNNEL)
    changes(node, config)
    assert overlay_state(node)["device"]["address"] == first
    changes(cluster.nodes[2], cluster.config(ROUTED, 2))
    assert first in str(overlay_state(cluster.nodes[2])["fdb"])
    other = cluster.config(ROUTED, 1, vni=43) | {"name": "other"}
    assert sync(node, other).returncode == 0
    assert node.links()["vxlan43"]["address"] != first


def test_udev_leaves_the_tunnels_mac_alone(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    changes(node, cluster.config(ROUTED, 1))
    script = f"mount -t sysfs none /sys && cat /sys/class/net/{TUNNEL}/addr_assign_type"
    # NET_ADDR_SET: set from user space, so that MACAddressPolicy=persistent does not apply.
    assert node.run("unshare", "--mount", "sh", "-c", script).stdout == "3\n"
