"""After the documented steps of removal nothing of podwire is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.harness.kubernetes import pods, podwire
from tests.harness.kubernetes.host import eventually

if TYPE_CHECKING:
    from tests.harness.kubernetes.kubernetes import Kubernetes

# The cluster has no network from here on: this file is the last of its directory.


def test_after_the_documented_steps_nothing_of_podwire_is_left_and_no_pod_is_stuck(
    cluster: Kubernetes,
) -> None:
    cluster.apply(pods.deployment("web", 6), pods.daemon_set("each"))
    cluster.await_pods("web", 6)
    cluster.await_pods("each", 2)
    for name in cluster.nodes():
        cluster.kubectl("cordon", name)
    cluster.delete("daemonset", "each")
    cluster.delete("pods", "-l", "app")
    eventually(lambda: cluster.pods("web") == cluster.pods("each") == [], lambda: podwire.explain(cluster))
    # The agent is what takes their networks away.
    for worker in cluster.workers.values():
        podwire.assert_nothing_left(worker)
    podwire.uninstall(cluster)
    for worker in cluster.workers.values():
        assert sorted(path.name for path in (worker.host.disk / "opt/cni/bin").iterdir()) == ["loopback"]
        assert list((worker.host.disk / "etc/cni/net.d").iterdir()) == []
        assert set(worker.space.links()) == {"lo", "u0"}
        assert "podwire" not in worker.space.run("nft", "list", "tables").stdout
        assert "112" not in worker.space.run("ip", "rule").stdout
