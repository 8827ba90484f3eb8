"""Peers from a file, the gateway of a flat segment, direct routes, and NAT of the outer packet."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.cluster import (
    TUNNEL,
    Cluster,
    address_of,
    capture,
    exchange,
    make_cluster,
    overlay_state,
    serving,
    sync,
    write_conflist,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
CONF = "conf/10-podwire-vxlan-flat.conflist"


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 2)
    yield made
    made.remove()


@pytest.fixture
def far_cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    """Return three nodes, the third behind a router."""
    made = make_cluster(tmp_path, bin_dir, 3, behind_router=(3,))
    yield made
    made.remove()


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    return tmp_path / "peers"


@pytest.mark.parametrize("form", ["flat", "routed"])
@pytest.mark.parametrize("lifetime", [(), ("preferred_lft", "0")], ids=["preferred", "deprecated"])
def test_the_tunnel_keeps_its_end_beside_an_address_that_comes_and_goes(
    cluster: Cluster, form: str, lifetime: tuple[str, ...]
) -> None:
    """A virtual address is the newest, which the kernel lists first and chooses as a source."""
    node, pods = cluster.nodes[1], cluster.start_pods(form, 6)
    added = ("ip", "addr", "add", "2001:db8::99/64", "dev", "u0", "nodad")
    node.run(*added, "valid_lft", "forever", *lifetime) if lifetime else node.run(*added)
    node.add(cluster.config(form, 1, 6), node.pod())
    assert overlay_state(node)["settings"]["local6"] == "2001:db8::1"
    assert pods[2].ping(address_of(pods[1], 4))
    node.run("ip", "addr", "del", "2001:db8::99/64", "dev", "u0")
    node.add(cluster.config(form, 1, 6), node.pod())
    assert overlay_state(node)["settings"]["local6"] == "2001:db8::1"


def test_a_new_tunnel_takes_no_address_that_is_deprecated(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    words = ("dev", "u0", "nodad", "valid_lft", "forever", "preferred_lft", "0")
    node.run("ip", "addr", "add", "2001:db8::99/64", *words)
    node.add(cluster.config("routed", 1, 6, device="u0"), node.pod())
    assert overlay_state(node)["settings"]["local6"] == "2001:db8::1"


def test_a_peers_file_is_read_again_by_every_add_and_sync(cluster: Cluster, peers: Path) -> None:
    node, config = cluster.nodes[1], cluster.config("flat", 1, peersFile=str(peers))
    peers.write_text("# nodes\n192.0.2.2\n")
    node.add(config, node.pod())
    assert [line.split()[2] for line in overlay_state(node)["fdb"]] == ["192.0.2.2"]
    peers.write_text("192.0.2.2\n192.0.2.7  # new\n")
    node.add(config, node.pod())
    assert [line.split()[2] for line in overlay_state(node)["fdb"]] == ["192.0.2.2", "192.0.2.7"]
    peers.write_text(json.dumps(["192.0.2.8", {"vtep": "192.0.2.2"}]))
    assert sync(node, config).stdout.startswith("network test: 2 changes\n")
    assert [line.split()[2] for line in overlay_state(node)["fdb"]] == ["192.0.2.2", "192.0.2.8"]


SUBNETS = "10.244.2.0/24 fd00:10:244:2::/64"
BROKEN: dict[str, tuple[str | bytes | None, str]] = {
    "cut within a line": (
        "192.0.2.2 10.244.2.0/24 fd00:10:2",
        "wanted a newline at its end, found it cut off",
    ),
    "cut at once": ("", "wanted a newline at its end, found it cut off"),
    "cut JSON": ('[{"vtep": "192.0.2.2", "subnets": ["10.244.2', "wanted a JSON list of peers, found"),
    "no address": ("one of the nodes\n", 'line 1" must be an IP address, found "one"'),
    "host bits": ("192.0.2.2 10.244.2.1/24\n", "must have no host bits, found 10.244.2.1/24"),
    "a twin": ("192.0.2.2 10.244.2.0/24\n192.0.2.2 10.244.3.0/24\n", "peer 192.0.2.2 is listed twice"),
    "an overlap": (
        "192.0.2.2 10.244.2.0/24\n192.0.2.3 10.244.2.0/25\n",
        "overlaps 10.244.2.0/25 of peer 192.0.2.3",
    ),
    "no text": (b"\xff\xfe\x00", "peersFile"),
    "gone": (None, "No such file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_of_a_broken_peers_file_the_last_good_one_stays_in_force(
    cluster: Cluster, peers: Path, name: str
) -> None:
    content, words = BROKEN[name]
    node, config = cluster.nodes[1], cluster.config("routed", 1, peersFile=str(peers))
    peers.write_text(f"192.0.2.2 {SUBNETS}\n")
    node.add(config, node.pod())
    wanted = overlay_state(node)
    if content is None:
        peers.unlink()
    else:
        peers.write_bytes(content.encode() if isinstance(content, str) else content)
    done = sync(node, config)
    assert done.returncode == 1
    assert f'"peersFile" {peers}' in done.stderr
    assert words in done.stderr
    assert "the peers of the last sync stay in force" in done.stderr
    answer = node.call("ADD", config, node.pod())
    assert answer.status == 0, answer.stdout
    assert words in answer.stderr
    assert overlay_state(node) == wanted
    # Also what is repaired then is what was last good.
    node.run("ip", "link", "del", TUNNEL)
    assert sync(node, config).returncode == 1
    assert overlay_state(node) == wanted
    peers.write_text(f"192.0.2.2 {SUBNETS}\n")
    assert sync(node, config).stdout == "network test: 0 changes\n"


def test_without_a_last_good_one_a_broken_peers_file_is_refused(cluster: Cluster, peers: Path) -> None:
    node = cluster.nodes[1]
    before = node.transcript()
    for form in ("flat", "hostgw"):
        config = cluster.config(form, 1, peersFile=str(peers))
        answer = node.call("ADD", config, node.pod())
        assert answer.status == 1
        assert answer.json["code"] == 7
        assert f'"peersFile" {peers}' in answer.json["msg"]
        assert sync(node, config).returncode == 1
    assert node.transcript() == before


def test_one_broken_network_does_not_keep_the_others_from_their_sync(cluster: Cluster, peers: Path) -> None:
    node = cluster.nodes[1]
    (node.tmp / "net.d").mkdir()
    (node.tmp / "net.d/01-half.conflist").write_text('{"name":')
    directory = write_conflist(node, cluster.config("hostgw", 1))
    broken = {"type": "podwire", "mode": "vxlan", "vxlan": {"vni": 9, "peersFile": str(peers)}}
    first = {"cniVersion": "1.1.0", "name": "broken", "plugins": [broken]}
    (node.tmp / "net.d/05-broken.conflist").write_text(json.dumps(first))
    words = ("sync", "--conf-dir", directory, "--bin-dir", str(node.bin_dir))
    done = node.run(str(node.bin_dir / "podwire"), *words, check=False)
    assert done.returncode == 1
    assert "01-half.conflist: " in done.stderr
    assert f'network broken: "peersFile" {peers}' in done.stderr
    assert "network test: 2 changes" in done.stdout


def test_the_first_node_of_a_routed_network_keeps_the_form_without_a_peer(
    cluster: Cluster, peers: Path
) -> None:
    node, pods = cluster.nodes[1], {}
    peers.write_text("# nobody yet\n")
    config = cluster.config("routed", 1, peersFile=str(peers))
    pods[1] = node.pod()
    node.add(config, pods[1])
    assert "master" not in node.links()[TUNNEL]
    bridge = node.links()["cni0"]["address"]
    pods[2] = cluster.nodes[2].pod()
    cluster.nodes[2].add(cluster.config("routed", 2), pods[2])
    peers.write_text(f"192.0.2.2 {SUBNETS}\n")
    assert sync(node, config).returncode == 0
    assert node.links()["cni0"]["address"] == bridge
    assert all(pods[1].ping(address_of(pods[2], v)) for v in (4, 6))


def shipped(cluster: Cluster, i: int, peers: Path) -> dict[str, Any]:
    """Return the shipped flat configuration; on the second node as docs/node.md makes it."""
    found = re.search(
        r"^sed '(.*)' conf/10-podwire-vxlan-flat", (ROOT / "docs/node.md").read_text(), re.MULTILINE
    )
    assert found
    words = ["sed", found[1] if i == 2 else "", str(ROOT / CONF)]
    document = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    config = {"cniVersion": "1.1.0", "name": document["name"], **document["plugins"][0]}
    config["vxlan"]["peersFile"] = str(peers)
    config["ipam"]["dataDir"] = str(cluster.nodes[i].data_dir)
    return config


def test_two_nodes_from_the_shipped_flat_conflist_are_both_the_gateway(
    cluster: Cluster, tmp_path: Path
) -> None:
    pods = {}
    for i, node in cluster.nodes.items():
        own = tmp_path / f"peers{i}"
        own.write_text(f"{cluster.address(3 - i, 4)}\n")
        pods[i] = node.pod()
        config = shipped(cluster, i, own)
        with cluster.captured(tmp_path) as seen:
            node.add(config, pods[i])
            gateways = {4: "10.244.0.1", 6: "fd00:10:244::1"}
            for gateway in gateways.values():
                pods[i].run("ip", "neigh", "flush", "to", gateway)
                assert pods[i].ping(gateway)
        tunnelled = seen.frames("udp port 4789")
        assert not [line for line in tunnelled if "10.244.0.1" in line or gateways[6] + "," in line]
    gateway_macs = {node.links()["cni0"]["address"] for node in cluster.nodes.values()}
    assert len(gateway_macs) == 1
    with cluster.captured(tmp_path) as seen:
        for v in (4, 6):
            assert pods[1].ping(address_of(pods[2], v))
            assert pods[2].ping(address_of(pods[1], v))
            # A pod that moved finds its gateway where it left it.
            assert {
                pod.run("ip", "neigh", "show", g, "dev", "eth0").stdout.split()[2]
                for pod in pods.values()
                for g in gateways.values()
            } == gateway_macs
    assert seen.frames("udp port 4789"), "wanted the pods' own packets in the tunnel"
    assert not [line for line in seen.frames("udp port 4789") if gateway_macs & set(line.split())]


def test_what_is_said_of_the_gateway_never_crosses_the_tunnel(cluster: Cluster, tmp_path: Path) -> None:
    pods = cluster.start_pods("flat")
    node = cluster.nodes[1]
    mac = node.links()["cni0"]["address"]
    with capture(node, tmp_path / "tunnel.pcap", link=TUNNEL) as seen:
        pods[1].run("ip", "neigh", "flush", "all")
        assert pods[1].ping("10.244.0.1")
        assert pods[1].ping("fd00:10:244::1")
        # The node looks for pods that are not there, and for its own: all of it comes from the gateway.
        for address in ("10.244.2.77", "fd00:10:244::2:77", address_of(pods[1], 4)):
            node.ping(address, within=0.2)
        assert pods[1].ping(address_of(pods[2], 4))
    assert seen.frames(f"ether host {mac}") == []
    assert seen.frames("arp host 10.244.0.1") == []
    assert seen.frames("icmp6 and ip6[40] == 135 and dst host ff02::1:ff00:1") == []
    assert seen.frames("icmp"), "wanted to see the pods' own packets, found none"


@pytest.mark.parametrize("version", [4, 6])
def test_a_peer_on_the_same_link_is_routed_to_plainly_and_one_behind_a_router_through_the_tunnel(
    far_cluster: Cluster, tmp_path: Path, version: int
) -> None:
    cluster = far_cluster
    pods = cluster.start_pods("routed", version, directRouting=True)
    state = overlay_state(cluster.nodes[1])
    near, far = (
        next(r for r in state[f"routes{version}"] if f":{n}:" in r or f".{n}.0/" in r) for n in (2, 3)
    )
    assert f"via {cluster.address(2, version)} dev u0" in near
    assert f"dev {TUNNEL}" in far
    for i, filter_ in ((2, "not port 4789"), (3, "port 4789")):
        target = address_of(pods[i], version)
        with cluster.captured(tmp_path) as seen:
            assert pods[1].ping(target)
            assert cluster.nodes[1].ping(target)
        assert bool(seen.frames("udp port 4789")) == (filter_ == "port 4789")
        other = address_of(pods[i], 10 - version)
        assert pods[1].ping(other)
    with serving(pods[3]):
        assert all(seen["tcp"]["intact"] for seen in exchange(pods[1], address_of(pods[3], version)).values())


MASQUERADE = """
table inet test {
    chain out {
        type nat hook postrouting priority 100;
        oifname "u0" udp dport 4789 counter masquerade fully-random
    }
}
"""


@pytest.mark.parametrize("version", [4, 6])
def test_no_masquerade_of_others_takes_the_tunnel(cluster: Cluster, version: int) -> None:
    """https://github.com/kubernetes/kubernetes/issues/88986: its packets are not tracked."""
    for node in cluster.nodes.values():
        node.run("nft", "-f", "-", input=MASQUERADE)
    pods = cluster.start_pods("routed", version)
    targets = [address_of(pods[2], v) for v in (4, 6)]
    with serving(pods[2]):
        for to, seen in exchange(pods[1], *targets).items():
            assert seen["tcp"]["intact"], to
            assert seen["udp"]["intact"], to
    for node in cluster.nodes.values():
        assert "counter packets 0 bytes 0 masquerade" in node.run("nft", "list", "ruleset").stdout
        shown = node.run("nstat", "-asz", "UdpInCsumErrors", "Udp6InCsumErrors", "TcpInCsumErrors").stdout
        assert [line.split()[1] for line in shown.splitlines() if "Csum" in line] == ["0"] * 3


@pytest.mark.parametrize("version", [4, 6])
def test_pods_find_each_other_through_a_multicast_group(cluster: Cluster, version: int) -> None:
    group = {4: "239.1.1.1", 6: "ff05::42"}[version]
    pods = cluster.start_pods("flat", version, group=group, device="u0")
    assert all(pods[1].ping(address_of(pods[2], v)) for v in (4, 6))
    shown = cluster.nodes[1].links()[TUNNEL]["linkinfo"]["info_data"]
    assert shown.get("group") == group or shown.get("group6") == group
