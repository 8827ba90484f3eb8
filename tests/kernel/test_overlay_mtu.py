"""The MTU of pods that reach other nodes: exactly what the path carries, proved by packets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.cluster import (
    TUNNELLED,
    Cluster,
    address_of,
    exchange,
    make_cluster,
    overlay_state,
    serving,
    sync,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Pod

OVERHEAD = {(form, 4): 0 for form in ("bridgegw", "hostgw")} | {
    (form, v): {4: 50, 6: 70}[v] for form in ("flat", *TUNNELLED) for v in (4, 6)
}
FORMS = list(OVERHEAD)
HEADERS = {4: 20 + 8, 6: 40 + 8}  # bytes: IP and ICMP echo
# Fragments and "too big" of both families, as they would be seen on the underlay.
FRAGMENTS = "(ip and ip[6:2] & 0x3fff != 0) or (ip6 and ip6[6] == 44)"
TOO_BIG = "(icmp and icmp[0] == 3 and icmp[1] == 4) or (icmp6 and ip6[40] == 2)"


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 2)
    yield made
    made.remove()


def ping_unfragmented(pod: Pod, address: str, size: int) -> tuple[bool, str]:
    """Send one echo request that makes an IP packet of `size` bytes; return whether it was answered."""
    content = size - HEADERS[6 if ":" in address else 4]
    done = pod.run(
        "ping", "-n", "-M", "do", "-c1", "-W1", "-s", str(content), address, check=False, env={"LC_ALL": "C"}
    )
    return done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("underlay", [1500, 1400, 9000])
@pytest.mark.parametrize(("form", "version"), FORMS)
def test_a_packet_of_the_mtu_passes_whole_and_one_byte_more_is_refused_in_the_pod(
    cluster: Cluster, tmp_path: Path, form: str, version: int, underlay: int
) -> None:
    cluster.set_mtu(underlay)
    mtu = underlay - OVERHEAD[form, version]
    pods = cluster.start_pods(form, version)
    assert {pod.links()["eth0"]["mtu"] for pod in pods.values()} == {mtu}
    targets = [address_of(pods[2], v) for v in (4, 6)]
    assert all(pods[1].ping(target) for target in targets)
    with cluster.captured(tmp_path) as seen:
        for target in targets:
            passed, said = ping_unfragmented(pods[1], target, mtu)
            assert passed, said
            passed, said = ping_unfragmented(pods[1], target, mtu + 1)
            assert not passed
            assert f"mtu={mtu}" in said.replace(": ", "=").replace("mtu = ", "mtu="), said
        with serving(pods[2]):
            # UDP of 8 KB is cut inside by the pod itself; outside of a tunnel nothing may be seen of that.
            exchange(pods[1], *targets)
    largest = f"greater {underlay + 14}"
    assert seen.frames(largest), "wanted frames that fill the underlay, found none"
    assert seen.frames(TOO_BIG) == []
    if OVERHEAD[form, version]:
        assert seen.frames(FRAGMENTS) == []


def test_an_underlay_that_changes_takes_the_tunnel_with_it(cluster: Cluster) -> None:
    for form in ("flat", *TUNNELLED):
        node, config = cluster.nodes[1], cluster.config(form, 1)
        for underlay in (1500, 1400, 9000):
            cluster.set_mtu(underlay)
            assert sync(node, config).returncode == 0
            assert overlay_state(node)["device"]["mtu"] == underlay - 50
            assert form == "tunnel" or node.links()["cni0"]["mtu"] == underlay - 50
        node.run("ip", "link", "del", "vxlan42")
        node.run("ip", "link", "del", "cni0", check=form != "tunnel")


@pytest.mark.parametrize(
    ("form", "version", "room"), [("flat", 4, 1450), ("routed", 6, 1430), ("tunnel", 4, 1450)]
)
def test_an_explicit_mtu_may_be_smaller_and_never_larger_than_what_fits(
    cluster: Cluster, form: str, version: int, room: int
) -> None:
    node, pod, config = cluster.nodes[1], cluster.nodes[1].pod(), cluster.config(form, 1, version)
    before = node.transcript()
    answer = node.call("ADD", config | {"mtu": room + 1}, pod)
    assert answer.json["code"] == 7
    assert f"wanted {room + 1}, found room for {room}: u0 carries 1500" in answer.json["msg"]
    assert node.transcript() == before
    for mtu in (1300, room):
        node.add(config | {"mtu": mtu}, pod)
        assert {pod.links()["eth0"]["mtu"], overlay_state(node)["device"]["mtu"]} == {mtu}
        node.delete(config, pod)


def test_the_overhead_of_what_lies_beneath_is_left_free(cluster: Cluster) -> None:
    pod = cluster.nodes[1].pod()
    cluster.nodes[1].add(cluster.config("routed", 1) | {"mtuOverhead": 80}, pod)
    assert pod.links()["eth0"]["mtu"] == 1500 - 50 - 80


def test_ipv6_pods_on_a_path_too_small_for_them_are_refused(cluster: Cluster) -> None:
    cluster.set_mtu(1300)
    answer = cluster.nodes[1].call("ADD", cluster.config("flat", 1), cluster.nodes[1].pod())
    assert answer.json["code"] == 7
    assert all(word in answer.json["msg"] for word in ("1280", "1250"))


EXPLAINED = {
    ("flat", 4): [
        "underlay u0 (192.0.2.1) carries 1500",
        "VXLAN over IPv4 takes 50",
        "mtuOverhead takes 20",
        "pods get 1430",
    ],
    ("routed", 6): [
        "underlay u0 (2001:db8::1) carries 1500",
        "VXLAN over IPv6 takes 70",
        "mtuOverhead takes 20",
        "pods get 1410",
    ],
    ("hostgw", 4): [
        "the interface towards other nodes carries 1500",
        "mtuOverhead takes 20",
        "pods get 1480",
    ],
}
EXPLAINED |= {("tunnel", 6): EXPLAINED["routed", 6], ("bridgegw", 4): EXPLAINED["hostgw", 4]}


@pytest.mark.parametrize(("form", "version"), EXPLAINED)
def test_podwire_mtu_shows_the_computation(cluster: Cluster, form: str, version: int) -> None:
    config = cluster.config(form, 1, version) | {"mtuOverhead": 20}
    done = sync(cluster.nodes[1], config, "mtu")
    assert done.stdout.splitlines() == ["network test:", *(f"  {line}" for line in EXPLAINED[form, version])]
    explicit = sync(cluster.nodes[1], config | {"mtu": 1400}, "mtu").stdout
    assert "pods get 1400, as configured" in explicit


def test_podwire_mtu_of_a_network_that_is_not_there_says_so(cluster: Cluster) -> None:
    done = sync(cluster.nodes[1], cluster.config("flat", 1), "mtu", "other")
    assert done.returncode == 1
    assert "wanted other of podwire's, found none" in done.stderr
