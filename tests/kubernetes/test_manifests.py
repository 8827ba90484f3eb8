"""The manifests: each form of them, applied by either side, and the port that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.kubernetes import podwire
from tests.harness.scrape import get
from tests.harness.services import REFUSED, ask

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.kubernetes.kubernetes import Kubernetes

KUSTOMIZATIONS = sorted(path.parent for path in podwire.CONF.rglob("kustomization.yaml"))
PORT = 9112


def test_the_plain_file_is_what_kustomize_makes(cluster: Kubernetes) -> None:
    made = cluster.kubectl("kustomize", str(podwire.CONF / "kubernetes")).stdout
    assert (podwire.CONF / "install.yaml").read_text() == made, (
        "kubectl kustomize conf/kubernetes > conf/install.yaml"
    )


@pytest.mark.parametrize("place", KUSTOMIZATIONS, ids=lambda place: str(place.relative_to(podwire.CONF)))
def test_the_api_takes_each_kustomization_without_a_warning(cluster: Kubernetes, place: Path) -> None:
    done = cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-k", str(place))
    warned = [line for line in done.stderr.splitlines() if line.startswith("Warning")]
    # What the overlay for an older Kubernetes is there for.
    assert all(place.name.startswith("before-") and "apparmor" in line for line in warned), warned


def test_what_was_applied_is_what_the_api_has_and_server_side_apply_meets_no_conflict(
    cluster: Kubernetes,
) -> None:
    place = str(cluster.directory / "manifests/kind")
    assert cluster.kubectl("diff", "-k", place, check=False).stdout == ""
    before = generation(cluster)
    for words in (("--server-side",), ("--server-side",), ()):
        done = cluster.kubectl("apply", *words, "-k", place)
        assert "conflict" not in done.stderr
    plain = str(podwire.CONF / "install.yaml")
    cluster.kubectl("apply", "--server-side", "--dry-run=server", "-f", plain)
    assert generation(cluster) == before


def generation(cluster: Kubernetes) -> int:
    """Return how often the DaemonSet was changed."""
    found = cluster.get("daemonset", "podwire", podwire.NAMESPACE)["metadata"]["generation"]
    return int(found)


def test_a_service_names_the_metrics_which_each_agent_has_on_one_address_of_its_node(
    cluster: Kubernetes,
) -> None:
    addresses = {pod["spec"]["nodeName"]: pod["status"]["hostIP"] for pod in podwire.agents(cluster)}
    slices = cluster.get("endpointslices", podwire.NAMESPACE, "-l", "kubernetes.io/service-name=podwire")[
        "items"
    ]
    named = {(port["name"], port["port"]) for each in slices for port in each["ports"]}
    found = {end["nodeName"]: end["addresses"][0] for each in slices for end in each["endpoints"]}
    assert (named, found) == ({("metrics", PORT)}, addresses)
    for worker in cluster.workers.values():
        place = f"{addresses[worker.name]}:{PORT}"
        assert "podwire_cluster_ready" in get(worker.space, f"http://{place}/metrics").text
        assert ask(worker.space, "127.0.0.1", PORT, within=1) == REFUSED
