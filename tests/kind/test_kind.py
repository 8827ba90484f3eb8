"""kind as it is, with the commands of the README: its own containers, kubeadm, kubelet and kube-proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.harness.kind.cluster import Cluster
from tests.harness.kind.docker import ROOT
from tests.harness.pages import find_commands

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.kind.docker import Docker

COMMANDS = find_commands("README.md", "kind create cluster")


def test_the_pages_say_the_same() -> None:
    assert find_commands("docs/kubernetes.md", "kind create cluster") == COMMANDS


def test_the_documented_commands_make_a_cluster_whose_pods_reach_each_other(
    docker: Docker, figures: Callable[[str], None]
) -> None:
    cluster = Cluster(docker)
    whole = (ROOT / "conf/kind/cluster.yaml").read_text()
    # One node; tests/kind/test_long.py has all of them.
    cluster.install(COMMANDS, whole.replace("  - role: worker\n", ""))
    figures(f"kind, one node: {cluster.figures()}")
    cluster.start_pods()
    assert set(cluster.pods()) == {"kind-control-plane"}
    cluster.reach_all()
    cluster.diagnose()
    docker.run("kind delete cluster")
