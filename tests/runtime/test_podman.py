"""Podman's CNI backend drives our executables under the reference's names, with its own configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.cluster import ROUTER, Cluster
from tests.harness.runtime import state
from tests.harness.runtime.drop_in import assert_footprint, footprint, install_drop_in, node_in_the_world
from tests.harness.runtime.podman import Podman
from tests.harness.services import REFUSED, SILENCE, ask, offering

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node

FAMILIES = (4, 6)
SUBNETS = ("--subnet=10.89.7.0/24", "--subnet=fd00:89:7::/64")
IDENTITY = ("--ip=10.89.7.77", "--mac-address=02:00:5e:10:00:01")


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    with node_in_the_world(tmp_path, bin_dir) as made:
        yield made


def podman_on(node: Node) -> Podman:
    return Podman(netns=node.name, directory=node.tmp / "podman", bin_dir=install_drop_in(node))


def files(podman: Podman) -> list[Path]:
    return [podman.machine.root / place for place in ("var/lib/cni", "run/cni", "run/netns")]


def test_the_default_network_serves_published_ports_and_leaves_nothing(cluster: Cluster) -> None:
    node, outside, here = cluster.nodes[1], cluster.underlay, cluster.address(1, 4)
    with podman_on(node) as podman:
        podman.run("first", "--publish", "8080:80")
        podman("rm", "--force", "--time=0", "first")
        before = footprint(node, *files(podman))
        web, other = podman.run("web", "--publish", "8080:80"), podman.run("other")
        with offering(web, 80, name="web "), offering(outside, 7000):
            assert ask(outside, here, 8080) == f"web {ROUTER[4]}"
            assert ask(node, here, 8080) == f"web {here}"
            assert ask(node, "127.0.0.1", 8080).startswith("web ")
            [at, *_], [own, *_] = (state.addresses(each, "eth0") for each in (web, other))
            for switch in (0, 1):
                node.set_filtering(switch)
                assert ask(other, at, 80) == f"web {own}"
                assert ask(other, here, 8080).startswith("web ")
            assert ask(web, ROUTER[4], 7000) == here
        podman("exec", "web", "ping", "-c1", "-W2", own)
        podman("rm", "--force", "--time=0", "web", "other")
        assert_footprint(node, before, *files(podman))
        assert ask(outside, here, 8080) == REFUSED
        assert podman.machine.processes() == ["sleep"]


def test_a_network_that_podman_creates_is_dual_stack_and_isolated_as_asked(cluster: Cluster) -> None:
    node, outside = cluster.nodes[1], cluster.underlay
    with podman_on(node) as podman:
        podman("network", "create", "--opt=isolate=true", "--ipv6", *SUBNETS, "dual")
        web = podman.run("web", "--network=dual", *IDENTITY, "--publish=8080:80")
        assert "10.89.7.77" in state.addresses(web, "eth0")
        assert web.links()["eth0"]["address"] == "02:00:5e:10:00:01"
        other = podman.run("other")
        with offering(web, 80, name="web "):
            for family in FAMILIES:
                assert ask(outside, cluster.address(1, family), 8080) == f"web {ROUTER[family]}"
            assert ask(other, "10.89.7.77", 80, within=0.5) == SILENCE
            podman("network", "connect", "dual", "other")
            assert ask(other, "10.89.7.77", 80).startswith("web 10.89.7.")
        podman("rm", "--force", "--time=0", "web", "other")
        podman("network", "rm", "dual")
        assert state.veths(node) == []
        assert state.reserved(files(podman)[0] / "networks") == []
