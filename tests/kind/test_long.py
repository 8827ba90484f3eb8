"""What takes kind minutes: three nodes and their restarts, IPv6 alone, and no kube-proxy. With --long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.harness.kind.cluster import Cluster
from tests.harness.kind.docker import ROOT
from tests.harness.pages import find_commands

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.kind.docker import Docker

COMMANDS = find_commands("README.md", "kind create cluster")
CONFIG = (ROOT / "conf/kind/cluster.yaml").read_text()
NODES = {"kind-control-plane", "kind-worker", "kind-worker2"}


def test_three_nodes_survive_every_restart(docker: Docker, figures: Callable[[str], None]) -> None:
    cluster = Cluster(docker)
    cluster.install(COMMANDS)
    figures(f"kind, three nodes: {cluster.figures()}")
    cluster.start_pods()
    assert set(cluster.pods()) == NODES
    cluster.reach_all()
    cluster.diagnose()
    swap_addresses(cluster)
    cluster.recover()
    docker.run("docker restart kind-control-plane")
    cluster.recover()
    docker.stop()
    docker.start()
    cluster.recover()
    cluster.diagnose()


def swap_addresses(cluster: Cluster) -> None:
    """Restart both workers: Docker gives the first that starts the lowest address that is free."""
    workers = sorted(("kind-worker", "kind-worker2"), key=cluster.address_of)
    before = [cluster.address_of(each) for each in workers]
    cluster.docker.run(f"docker stop {' '.join(workers)}")
    for each in reversed(workers):
        cluster.docker.run(f"docker start {each}")
    assert [cluster.address_of(each) for each in workers] == before[::-1]


def test_a_cluster_of_ipv6_alone(docker: Docker) -> None:
    cluster = Cluster(docker)
    cluster.install(COMMANDS, CONFIG.replace("ipFamily: dual", "ipFamily: ipv6"))
    cluster.start_pods()
    found = {each["ip"] for pod in cluster.pods().values() for each in pod["status"]["podIPs"]}
    assert len(found) == len(NODES)
    assert all(":" in each for each in found)
    cluster.reach_all()
    cluster.diagnose()


def test_a_cluster_without_kube_proxy_takes_the_kustomization_that_names_its_api(docker: Docker) -> None:
    cluster = Cluster(docker)
    commands = [each.replace("conf/kubernetes", "conf/kind") for each in COMMANDS]
    cluster.install(commands, f"{CONFIG}  kubeProxyMode: none\n")
    cluster.start_pods()
    cluster.reach_all(service=False)
