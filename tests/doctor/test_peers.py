"""What goes wrong between nodes: each fault is made on an underlay, found, mended as printed, and gone."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from netaddr import IPAddress

from cni_plugin.kernel.netns import inside
from cni_plugin.kernel.probe import Echo, ask_twice, find_largest, send_echoes, smallest
from tests.harness.clinic import examine, mend, the_only
from tests.harness.cluster import TUNNEL, make_cluster, sync, write_conflist

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tests.harness.cluster import Cluster
    from tests.harness.node import Space


# Every form, and both families where an address inside is asked.
FORMED = [("flat", 4), ("routed", 4), ("routed", 6), ("tunnel", 4), ("bridgegw", 4), ("hostgw", 6)]

# A node that loses the first echo, the third, and so on.
EVERY_OTHER = (
    "add table inet lossy; add chain inet lossy input { type filter hook input priority 0; };"
    "add rule inet lossy input meta l4proto { icmp, ipv6-icmp } @th,0,8 { 8, 128 } numgen inc mod 2 0 drop"
)


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 2)
    yield made
    made.remove()


@pytest.fixture
def beyond(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    """Return two nodes of which the second is behind a router."""
    made = make_cluster(tmp_path, bin_dir, 2, behind_router=(2,))
    yield made
    made.remove()


def settle(cluster: Cluster, form: str, version: int = 4, **keys: Any) -> None:
    """Bring every node's network in sync, as an agent does at its start."""
    for i, node in cluster.nodes.items():
        assert sync(node, cluster.config(form, i, version, **keys)).returncode == 0


@pytest.mark.parametrize(("form", "version"), FORMED)
def test_healthy_nodes_yield_nothing(cluster: Cluster, form: str, version: int) -> None:
    settle(cluster, form, version)
    cluster.start_pods(form, version)
    assert examine(cluster.nodes[1]) == []
    assert examine(cluster.nodes[2]) == []


def test_peers_that_the_kernel_does_not_know_are_named_and_synced(cluster: Cluster) -> None:
    settle(cluster, "routed")
    node = cluster.nodes[1]
    node.run("ip", "route", "del", "10.244.2.0/24")
    found = the_only(examine(node))
    assert "10.244.2.0/24" in found["found"]
    mend(node, found["remedy"])
    assert examine(node) == []
    node.run("nft", "delete table inet podwire")
    assert "nft add chain inet podwire " in the_only(examine(node))["found"]
    node.run("ip", "link", "del", TUNNEL)
    mend(node, the_only(examine(node))["remedy"])
    assert examine(node) == []


@pytest.mark.parametrize("version", [4, 6])
def test_a_port_that_this_node_blocks_is_named_with_what_opens_it(cluster: Cluster, version: int) -> None:
    settle(cluster, "routed", version)
    node = cluster.nodes[1]
    rules = "add table inet fw; add chain inet fw input { type filter hook input priority 0; }"
    node.run("nft", f"{rules}; add rule inet fw input udp dport 4789 counter drop")
    found = the_only(examine(node))
    assert found["object"] == "table inet fw, chain input"
    peer = cluster.address(2, version)
    said = f"it drops UDP port 4789; peer {peer}: it answers on u0, and not through {TUNNEL}"
    assert found["found"] == said
    mend(node, found["remedy"])
    assert examine(node) == []


def test_a_policy_of_iptables_that_blocks_the_port_is_named_with_what_opens_it(cluster: Cluster) -> None:
    settle(cluster, "routed")
    node = cluster.nodes[1]
    node.run("iptables-nft", "-P", "INPUT", "DROP")
    node.run("iptables-nft", "-A", "INPUT", "-p", "icmp", "-j", "ACCEPT")
    found = the_only(examine(node))
    assert found["remedy"] == "iptables -I INPUT -p udp --dport 4789 -j ACCEPT"
    mend(node, found["remedy"].replace("iptables ", "iptables-nft "))
    assert examine(node) == []


def test_a_port_that_the_peer_blocks_is_told_here_and_mended_there(cluster: Cluster) -> None:
    settle(cluster, "routed")
    here, there = cluster.nodes[1], cluster.nodes[2]
    rules = "add table inet fw; add chain inet fw input { type filter hook input priority 0; }"
    there.run("nft", f"{rules}; add rule inet fw input udp dport 4789 drop")
    found = the_only(examine(here))
    assert found["object"] == "peer 192.0.2.2"
    assert found["found"] == f"it answers on u0, and not through {TUNNEL}"
    assert "UDP port 4789 is blocked there" in found["meaning"]
    assert found["remedy"].startswith("on 192.0.2.2: podwire sync; podwire doctor.")
    mend(there, the_only(examine(there))["remedy"])
    assert examine(here) == examine(there) == []


def test_a_peer_that_is_down_is_named(cluster: Cluster) -> None:
    settle(cluster, "routed")
    cluster.underlay.run("ip", "link", "set", "p2", "down")
    found = the_only(examine(cluster.nodes[1]))
    assert found["object"] == "peer 192.0.2.2"
    assert found["found"] == "it answers no echo, neither itself nor through the tunnel"


def test_strict_rp_filter_that_drops_the_answers_is_named_and_loosened(cluster: Cluster) -> None:
    for i, node in cluster.nodes.items():
        # Node 1 sends plainly what node 2, which is not strict, answers through the tunnel.
        assert sync(node, cluster.config("routed", i, directRouting=i == 1)).returncode == 0
    cluster.nodes[2].run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.u0.rp_filter=0")
    node = cluster.nodes[1]
    node.run("sysctl", "-qw", f"net.ipv4.conf.{TUNNEL}.rp_filter=1")
    found = the_only(examine(node))
    assert found["object"] == f"sysctl net.ipv4.conf.{TUNNEL}.rp_filter"
    mend(node, found["remedy"])
    assert examine(node) == []


@pytest.mark.parametrize(("form", "version"), FORMED)
def test_a_smaller_mtu_on_the_way_is_measured_and_the_interface_brought_in_line(
    cluster: Cluster, form: str, version: int
) -> None:
    settle(cluster, form, version)
    node = cluster.nodes[1]
    # The far node's interface takes no more: to node 1 it is as any path that narrows.
    cluster.underlay.run("ip", "link", "set", "p2", "mtu", "1400")
    cluster.nodes[2].run("ip", "link", "set", "u0", "mtu", "1400")
    found = [each for each in examine(node) if each["object"] == f"path to {cluster.address(2, version)}"]
    assert the_only(found)["found"] == (
        "packets of 1500 bytes, which u0 sends, do not arrive; of 1400 they do"
    )
    mend(node, found[0]["remedy"])
    sync(cluster.nodes[2], cluster.config(form, 2, version))
    assert examine(node) == []


def test_an_mtu_that_became_smaller_here_is_mended_by_a_sync(cluster: Cluster) -> None:
    settle(cluster, "routed")
    cluster.set_mtu(1400)
    found = the_only(examine(cluster.nodes[1]))
    assert found["remedy"].startswith("podwire sync")
    for node in cluster.nodes.values():
        mend(node, the_only(examine(node))["remedy"].replace(str(cluster.nodes[1].tmp), str(node.tmp)))
    assert examine(cluster.nodes[1]) == examine(cluster.nodes[2]) == []


def test_many_silent_peers_are_counted_and_not_listed(cluster: Cluster) -> None:
    settle(cluster, "hostgw")
    node = cluster.nodes[1]
    peers = [{"addresses": [f"192.0.2.{n}"], "subnets": [f"10.244.{n}.0/24"]} for n in range(20, 45)]
    config = cluster.config("hostgw", 1, peers=peers)
    assert sync(node, config).returncode == 0
    write_conflist(node, config)
    found = examine(node)
    assert len(found) == 11
    assert found[-1]["object"] == "15 more peers"


# The probe


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mtu", [1281, 1437])
def test_the_largest_packet_that_passes_is_found(beyond: Cluster, version: int, mtu: int) -> None:
    beyond.underlay.run("ip", "link", "set", "p2", "mtu", str(mtu))
    beyond.nodes[2].run("ip", "link", "set", "u0", "mtu", str(mtu))
    address = IPAddress(beyond.address(2, version))
    with entered(beyond.nodes[1]):
        assert send_echoes([Echo(address, 100)], 5.0)  # the neighbours know each other now
        assert find_largest(address, smallest(version), 1500, 0.3) == mtu


@pytest.mark.parametrize("version", [4, 6])
def test_echoes_to_many_are_told_apart(cluster: Cluster, version: int) -> None:
    nobody = IPAddress({4: "192.0.2.77", 6: "2001:db8::77"}[version])
    somebody = IPAddress(cluster.address(2, version))
    asked = {Echo(address, size) for address in (nobody, somebody) for size in (100, 1500, 1501)}
    with entered(cluster.nodes[1]):
        assert ask_twice(asked, 2.0) == {Echo(somebody, 100), Echo(somebody, 1500)}


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_silent_is_asked_again(cluster: Cluster, version: int) -> None:
    asked = {Echo(IPAddress(cluster.address(2, version)), 100)}
    with entered(cluster.nodes[1]):
        assert send_echoes(asked, 5.0) == asked  # the neighbours know each other now
        cluster.nodes[2].run("nft", EVERY_OTHER)
        assert send_echoes(asked, 0.3) == set()
        assert send_echoes(asked, 5.0) == asked
        assert ask_twice(asked, 1.0) == asked


@contextmanager
def entered(space: Space) -> Iterator[None]:
    with Path(space.path).open() as opened, inside(opened.fileno()):
        yield
