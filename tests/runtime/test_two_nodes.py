"""Two nodes, each with a containerd of its own: pods that real runtimes started reach each other."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.cluster import FORMS, Cluster, make_cluster
from tests.harness.runtime.containerd import Containerd
from tests.runtime.test_containerd import (
    SandboxNetwork,
    assert_nothing_left,
    bin_dir_beside_reference_plugins,
    ping_all,
    start_pods,
    stop_pods,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 2)
    yield made
    made.remove()


def containerd_of(node: Node, config: dict[str, Any]) -> Containerd:
    plugin = {key: value for key, value in config.items() if key not in {"name", "cniVersion"}}
    conflist = {"cniVersion": "0.4.0", "name": config["name"], "plugins": [plugin]}
    return Containerd(
        netns=node.name,
        directory=node.tmp / "containerd",
        bin_dir=bin_dir_beside_reference_plugins(node),
        conflist=json.dumps(conflist),
    )


@pytest.mark.parametrize("form", FORMS)
def test_pods_of_two_containerds_reach_each_other_over_both_families(cluster: Cluster, form: str) -> None:
    with ExitStack() as stack:
        runtimes = [
            stack.enter_context(containerd_of(node, cluster.config(form, i)))
            for i, node in cluster.nodes.items()
        ]
        pods = [start_pods(containerd, 2) for containerd in runtimes]
        here, there = (
            [SandboxNetwork(containerd, pod) for pod in started]
            for containerd, started in zip(runtimes, pods, strict=True)
        )
        ping_all((pod, address) for pod in here for other in there for address in other.addresses)
        ping_all((pod, address) for pod in there for other in here for address in other.addresses)
        for containerd, node, started in zip(runtimes, cluster.nodes.values(), pods, strict=True):
            stop_pods(containerd, started)
            assert_nothing_left(containerd, node)
