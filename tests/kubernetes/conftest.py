"""One cluster for all tests of this directory, with podwire applied as a person applies it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.harness.kubernetes import dns, images, podwire
from tests.harness.kubernetes.host import eventually
from tests.harness.kubernetes.kubernetes import Kubernetes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIRST_NODES = (1, 2)


@dataclass
class Installed:
    """A cluster with podwire on it, and the seconds from `kubectl apply` until all nodes were Ready."""

    kubernetes: Kubernetes
    image: Path
    unready_before: bool
    seconds_to_ready: float


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write podwire's image."""
    return images.write_podwire(tmp_path_factory.mktemp("image") / "podwire.tar")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, image: Path) -> Iterator[Installed]:
    """Start a cluster and apply the manifests."""
    with installing(Kubernetes(tmp_path_factory.mktemp("kubernetes")), image) as made:
        yield made


@contextmanager
def installing(made: Kubernetes, image: Path) -> Iterator[Installed]:
    """Start a cluster of two nodes, which are not Ready, and apply the manifests."""
    with ThreadPoolExecutor() as pool, made as kubernetes:
        for join in [pool.submit(kubernetes.join, i, image) for i in FIRST_NODES]:
            join.result()
        unready = kubernetes.ready_nodes() == set()
        started = time.monotonic()
        podwire.apply(kubernetes)
        wanted = {worker.name for worker in kubernetes.workers.values()}
        eventually(lambda: kubernetes.ready_nodes() == wanted, lambda: podwire.explain(kubernetes))
        yield Installed(kubernetes, image, unready, time.monotonic() - started)


@pytest.fixture(scope="session")
def cluster(installed: Installed) -> Kubernetes:
    """Return the cluster."""
    return installed.kubernetes


@pytest.fixture(scope="module")
def named(cluster: Kubernetes) -> Iterator[Kubernetes]:
    """Let the cluster have a name server."""
    written = (
        images.write_agnhost(cluster.directory / "agnhost.tar"),
        images.write_coredns(cluster.directory / "coredns.tar"),
    )
    for worker in cluster.workers.values():
        for archive in written:
            worker.import_image(archive)
    cluster.apply(*dns.objects())
    words = ("rollout", "status", "-n", dns.NAMESPACE, "deployment/coredns", "--timeout=20s")
    eventually(lambda: cluster.kubectl(*words, check=False).returncode == 0, lambda: podwire.explain(cluster))
    yield cluster
    cluster.delete("-n", dns.NAMESPACE, "deployment/coredns", "service/kube-dns")


@pytest.fixture(autouse=True)
def _as_before(cluster: Kubernetes) -> Iterator[None]:
    """Let every test find the nodes Ready and no pods but podwire's."""
    yield

    def cleared() -> bool:
        cluster.delete("deployments,daemonsets,replicasets,services", "--selector=app")
        # The kubelet may take a minute until it has the API forget a pod that has ended.
        cluster.delete("pods", "--all", "--force", "--grace-period=0")
        # A controller that has not heard of the deletion yet makes what is missing once more.
        return not cluster.get("deployments,replicasets,pods")["items"]

    eventually(cleared, lambda: cluster.kubectl("describe", "pods").stdout)
