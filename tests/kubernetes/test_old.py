"""The old end of the range: Kubernetes 1.20 with containerd 1.6, whose kubelet has CNI 0.4.0."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.kubernetes import pods, podwire
from tests.harness.kubernetes.kubernetes import FAMILIES, Kubernetes
from tests.harness.kubernetes.reach import reach_all, spaces
from tests.kubernetes.conftest import installing
from tests.kubernetes.test_rollout import measure_a_kill

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, image: Path) -> Iterator[Kubernetes]:
    """Start a cluster of before and apply the same manifests."""
    with installing(Kubernetes(tmp_path_factory.mktemp("old"), FAMILIES, "old"), image) as made:
        yield made.kubernetes


def test_pods_of_an_old_kubernetes_reach_each_other_and_leave_nothing(old: Kubernetes) -> None:
    runtimes = {node["status"]["nodeInfo"]["containerRuntimeVersion"] for node in old.nodes().values()}
    assert {runtime.rpartition(".")[0] for runtime in runtimes} == {"containerd://1.6"}
    old.apply(pods.deployment("web", 4))
    found = old.await_pods("web", 4)
    assert [len(pod.addresses) for pod in found] == [2] * 4
    places = spaces(old, found)
    with pods.all_offering(places):
        reach_all(found, places)
    old.delete("deployment", "web")
    for worker in old.workers.values():
        podwire.assert_nothing_left(worker)


def test_thirty_pods_start_while_their_node_s_agent_is_killed(
    old: Kubernetes, record_property: Callable[[str, object], None]
) -> None:
    record_property("figures", f"Kubernetes 1.20: {measure_a_kill(old)}")
