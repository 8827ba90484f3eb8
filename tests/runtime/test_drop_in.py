"""Installed under the reference's names, with the reference's configurations unchanged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.conftest import in_process
from tests.harness.cluster import ROUTER, Cluster
from tests.harness.runtime import conflists, state
from tests.harness.runtime.containerd import Containerd
from tests.harness.runtime.documented import CHAINS
from tests.harness.runtime.drop_in import (
    PathSpace,
    assert_footprint,
    footprint,
    install_drop_in,
    node_in_the_world,
)
from tests.harness.services import REFUSED, ask, offering
from tests.runtime.test_cnitool import cnitool_on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node
    from tests.harness.runtime.cri import Sandbox

FAMILIES = (4, 6)
WEB = {"protocol": "TCP", "container_port": 80, "host_port": 8080}
ASKED = {
    "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
    "bandwidth": dict.fromkeys(("ingressRate", "ingressBurst", "egressRate", "egressBurst"), 10**7),
    "mac": "02:00:5e:10:00:01",
}
SLOW = {f"kubernetes.io/{way}-bandwidth": "10M" for way in ("ingress", "egress")}


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    with node_in_the_world(tmp_path, bin_dir) as made:
        yield made


def start_pod(containerd: Containerd, name: str) -> Sandbox:
    pod = containerd.runtime.run_pod_sandbox(name, WEB, annotations=SLOW)
    return containerd.runtime.pod_sandbox_status(pod)


def stop_pod(containerd: Containerd, pod: Sandbox) -> None:
    containerd.runtime.stop_pod_sandbox(pod.sandbox_id)
    containerd.runtime.remove_pod_sandbox(pod.sandbox_id)


def assert_reached_and_reaching(cluster: Cluster, inside: PathSpace) -> None:
    """The host port works from outside and on the node, and the world sees the node's address."""
    node, outside = cluster.nodes[1], cluster.underlay
    with offering(inside, 80, name="web "), offering(outside, 7000):
        for family in FAMILIES:
            here = cluster.address(1, family)
            assert ask(outside, here, 8080) == f"web {ROUTER[family]}"
            assert ask(node, here, 8080) == f"web {here}"
            assert ask(inside, ROUTER[family], 7000) == here
        assert ask(node, "127.0.0.1", 8080).startswith("web ")


def assert_configured(node: Node, inside: PathSpace) -> None:
    """Each plugin of the chain, and containerd's own call of `loopback`, has done its work."""
    assert "UP" in inside.links()["lo"]["flags"]
    assert inside.run("sysctl", "-n", "net.core.somaxconn").stdout == "500\n"
    buckets = [line for line in node.run("tc", "qdisc", "show").stdout.splitlines() if " tbf " in line]
    assert ["rate 10Mbit" in line for line in buckets] == [True, True]
    assert "set firewall4_" in node.run("nft", "list", "ruleset").stdout


def test_containerd_serves_host_ports_limits_and_the_world_through_the_unchanged_chain(
    cluster: Cluster,
) -> None:
    """Nothing else is in the directory of plugins, and the files are where the reference has them."""
    node = cluster.nodes[1]
    with Containerd(
        netns=node.name,
        directory=node.tmp / "containerd",
        bin_dir=install_drop_in(node),
        conflist=conflists.drop_in().read_text(),
    ) as containerd:
        files = [containerd.machine.root / place for place in ("var/lib/cni", "run/cni")]
        # What attachments share stays after the first of them.
        stop_pod(containerd, start_pod(containerd, "first"))
        before = footprint(node, *files)
        pod = start_pod(containerd, "web")
        inside = PathSpace(name=f"{containerd.machine.root}/run/netns/{pod.netns.rpartition('/')[2]}")
        assert_configured(node, inside)
        assert_reached_and_reaching(cluster, inside)
        stop_pod(containerd, pod)
        assert_footprint(node, before, *files)
        assert ask(cluster.underlay, cluster.address(1, 4), 8080) == REFUSED
        assert containerd.named_namespaces() == []


@in_process
def test_cnitool_adds_checks_and_deletes_the_chain_with_what_a_runtime_asks_for(node: Node) -> None:
    pod = node.pod()
    node.bin_dir = install_drop_in(node)
    with cnitool_on(node, pod, conflists.drop_in(), CAP_ARGS=json.dumps(ASKED)) as cnitool:
        cnitool("add")
        cnitool("del")
        before = footprint(node, node.data_dir, node.tmp / "tuning")
        cnitool("add")
        assert pod.links()["eth0"]["address"] == ASKED["mac"]
        assert cnitool("check").stdout == ""
        limited = [name for name in node.links() if name.startswith("bwp")]
        node.run("tc", "qdisc", "del", "dev", limited[0], "root")
        assert cnitool("check", check=False).returncode != 0
        cnitool("del")
        assert_footprint(node, before, node.data_dir, node.tmp / "tuning")
        assert state.veths(node) == []


@in_process
@pytest.mark.parametrize("example", CHAINS)
def test_cnitool_adds_checks_and_deletes_each_documented_chain(node: Node, example: str) -> None:
    version, *plugins = CHAINS[example]
    conflist = node.tmp / "documented.conflist"
    conflist.write_text(json.dumps({"cniVersion": version, "name": "mynet", "plugins": plugins}))
    pod = node.pod()
    node.bin_dir = install_drop_in(node)
    with cnitool_on(node, pod, conflist, CAP_ARGS=json.dumps(ASKED)) as cnitool:
        cnitool("add")
        cnitool("del")
        before = footprint(node, node.data_dir, node.tmp / "tuning")
        cnitool("add")
        if version != "0.3.1":
            cnitool("check")
        cnitool("del")
        assert_footprint(node, before, node.data_dir, node.tmp / "tuning")
