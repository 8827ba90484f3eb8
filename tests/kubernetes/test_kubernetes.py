"""podwire as the network of a real Kubernetes: its manifests, its image, nodes that come and go."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.kubernetes import pods, podwire
from tests.kubernetes.control import program
from tests.kubernetes.host import eventually
from tests.kubernetes.kubernetes import WORLD
from tests.services import REFUSED, ask, ask_all, offering

if TYPE_CHECKING:
    from tests.kubernetes.conftest import Installed
    from tests.kubernetes.kubernetes import Kubernetes
    from tests.kubernetes.pods import RunningPod
    from tests.node import Space

pytestmark = pytest.mark.xdist_group("kubernetes")
FAMILIES = (4, 6)


def address_of(pod: RunningPod, version: int) -> str:
    return next(each for each in pod.addresses if (":" in each) == (version == 6))


def spaces(cluster: Kubernetes, found: list[RunningPod]) -> dict[str, Any]:
    known = {
        address: space
        for node in {pod.node for pod in found}
        for address, space in pods.spaces_of(cluster.worker(node)).items()
    }
    return {pod.name: known[pod.addresses[0]] for pod in found}


def node_address(cluster: Kubernetes, name: str, version: int) -> str:
    return cluster.underlay.address(int(name.removeprefix("node-")), version)


def reach_all(found: list[RunningPod], places: dict[str, Space]) -> None:
    """Ask every pod from every other, over both families; each must see the other's own address."""
    seen = {
        (source.name, target.name, version): ask_all(
            places[source.name], address_of(target, version), pods.PORT
        )
        for source in found
        for target in found
        for version in FAMILIES
        if source != target
    }
    names = {pod.name: pod for pod in found}
    wanted = {key: {f"{key[1]} {address_of(names[key[0]], key[2])}"} for key in seen}
    assert seen == wanted


def test_nodes_become_ready_by_applying_the_manifests(installed: Installed) -> None:
    assert installed.unready_before
    podwire.await_agents(installed.kubernetes)
    assert installed.seconds_to_ready < 60


def test_the_agent_has_no_more_rights_than_the_manifest_says(cluster: Kubernetes) -> None:
    net_admin, sys_admin = 1 << 12, 1 << 21
    for worker in cluster.workers.values():
        found = podwire.processes(worker)
        assert set(found) == {"agent", "cluster"}
        for pid in found.values():
            status = (worker.host.machine.root / f"proc/{pid}/status").read_text()
            rights = dict(
                line.split(":\t") for line in status.splitlines() if line.startswith(("Cap", "NoNew", "Secc"))
            )
            assert {int(rights[f"Cap{name}"], 16) for name in ("Prm", "Eff", "Bnd")} == {
                net_admin | sys_admin
            }
            assert (rights["NoNewPrivs"], rights["Seccomp"]) == ("1", "2")
    account = "--as=system:serviceaccount:kube-system:podwire"
    verbs = ("get", "list", "watch", "patch", "update", "create", "delete")
    resources = (("nodes",), ("nodes", "--subresource=status"), ("pods",), ("secrets",))
    allowed = {
        (verb, *resource)
        for verb in verbs
        for resource in resources
        if cluster.kubectl("auth", "can-i", verb, *resource, account, check=False).stdout == "yes\n"
    }
    assert allowed == {("list", "nodes"), ("watch", "nodes"), ("patch", "nodes", "--subresource=status")}


def test_pods_reach_each_other_and_every_node_with_their_own_addresses(cluster: Kubernetes) -> None:
    cluster.apply(pods.deployment("web", 4))
    found = cluster.await_pods("web", 4)
    assert {pod.node for pod in found} == {"node-1", "node-2"}
    assert [len(pod.addresses) for pod in found] == [2] * 4
    places = spaces(cluster, found)
    with pods.all_offering(places):
        reach_all(found, places)
        for worker in cluster.workers.values():
            for pod in found:
                for version in FAMILIES:
                    [answer] = ask_all(worker.space, address_of(pod, version), pods.PORT)
                    assert answer.startswith(f"{pod.name} ")
    for worker in cluster.workers.values():
        for version in FAMILIES:
            target = node_address(cluster, worker.name, version)
            with offering(worker.space, 8099, address=target, name="node "):
                for pod in found:
                    seen = ask_all(places[pod.name], target, 8099)
                    assert seen == {f"node {address_of(pod, version)}"}, (pod, target)


def test_services_lead_to_pods_to_themselves_and_to_the_api(cluster: Kubernetes) -> None:
    cluster.apply(
        pods.pod("web", "node-1"), pods.service("web"), pods.pod("near", "node-1"), pods.pod("far", "node-2")
    )
    found = [cluster.await_pods(name, 1)[0] for name in ("web", "near", "far")]
    places = spaces(cluster, found)
    services = cluster.get("service", "web")["spec"]["clusterIPs"]
    with offering(places["web"], pods.PORT, name="web "):
        for client in found:
            for service in services:
                seen: set[str] = set()

                def answered(
                    client: RunningPod = client, service: str = service, seen: set[str] = seen
                ) -> bool:
                    seen.clear()
                    seen.update(ask_all(places[client.name], service, pods.PORT, within=1))
                    return all(each.startswith("web ") for each in seen)

                # kube-proxy takes a moment to write its rules.
                eventually(answered, f"{client} {service} {seen}", within=20)
                if client.name != "web":
                    assert seen == {f"web {address_of(client, 6 if ':' in service else 4)}"}
    version = (
        "get",
        "--raw",
        "/version",
        "--server=https://10.96.0.1",
        f"--kubeconfig={cluster.control.kubeconfig}",
    )
    for client in found:
        answer = places[client.name].run(
            program("kubectl"), *version, f"--cache-dir={cluster.directory}/cache"
        )
        assert json.loads(answer.stdout)["gitVersion"]


def test_a_host_port_leads_to_its_pod_and_the_world_sees_the_node(cluster: Kubernetes) -> None:
    cluster.apply(
        pods.pod("web", "node-1", ports=[{"containerPort": pods.PORT, "hostPort": 8080}]),
        pods.pod("far", "node-2"),
    )
    found = [cluster.await_pods(name, 1)[0] for name in ("web", "far")]
    places = spaces(cluster, found)
    world = cluster.underlay.nodes[WORLD]
    with offering(places["web"], pods.PORT, name="web "):
        for version in FAMILIES:
            node = node_address(cluster, "node-1", version)
            outside = cluster.underlay.address(WORLD, version)
            assert ask(world, node, 8080) == f"web {outside}"
            assert ask(cluster.workers[2].space, node, 8080).startswith("web ")
            assert ask(places["far"], node, 8080).startswith("web ")
            assert ask(cluster.workers[1].space, node, 8080).startswith("web ")
    with offering(world, 7000, name="world "):
        for pod in found:
            for version in FAMILIES:
                seen = ask_all(places[pod.name], cluster.underlay.address(WORLD, version), 7000)
                assert seen == {f"world {node_address(cluster, pod.node, version)}"}
    cluster.delete("pod", "web")
    eventually(
        lambda: ask(world, node, 8080, within=1) == REFUSED, "the host port of a pod that is gone", within=20
    )


def test_sixty_pods_at_once_get_networks_and_leave_nothing(cluster: Kubernetes) -> None:
    cluster.apply(pods.deployment("many", 60, node="node-1"))
    found = cluster.await_pods("many", 60, within=150)
    assert len({address for pod in found for address in pod.addresses}) == 120
    cluster.delete("deployment", "many")
    podwire.assert_nothing_left(cluster.workers[1])


def test_an_agent_that_is_killed_while_pods_are_replaced_loses_nothing(cluster: Kubernetes) -> None:
    cluster.apply(pods.deployment("web", 6))
    cluster.await_pods("web", 6)
    cluster.kubectl("rollout", "restart", "deployment/web")
    for worker in cluster.workers.values():
        podwire.kill_agent(worker)
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=55s")
    podwire.await_agents(cluster)
    found = cluster.await_pods("web", 6)
    places = spaces(cluster, found)
    with pods.all_offering(places):
        reach_all(found, places)
    cluster.delete("deployment", "web")
    for worker in cluster.workers.values():
        podwire.assert_nothing_left(worker)


def test_an_upgrade_of_image_and_shim_while_pods_are_made_loses_nothing(cluster: Kubernetes) -> None:
    before = podwire.processes(cluster.workers[1])["agent"]
    for worker in cluster.workers.values():
        worker.host.machine.run(
            *("ctr", "-n", "k8s.io", "images", "tag", "--force", podwire.IMAGE, podwire.NEXT_IMAGE)
        )
        podwire.make_shim_old(worker)
    cluster.apply(pods.deployment("web", 12))
    podwire.set_image(cluster, podwire.NEXT_IMAGE)
    podwire.await_agents(cluster, within=55)
    found = cluster.await_pods("web", 12)
    assert podwire.processes(cluster.workers[1])["agent"] != before
    assert [podwire.has_old_shim(worker) for worker in cluster.workers.values()] == [False, False]
    places = spaces(cluster, found)
    with pods.all_offering(places):
        reach_all(found[:4], places)
    podwire.set_image(cluster, podwire.IMAGE)
    podwire.await_agents(cluster, within=55)


def test_a_node_that_reboots_gets_its_pods_back(cluster: Kubernetes) -> None:
    cluster.apply(pods.deployment("web", 4))
    before = cluster.await_pods("web", 4)
    cluster.power_off(2)
    cluster.power_on(2)
    eventually(lambda: "node-2" in cluster.ready_nodes(), lambda: podwire.explain(cluster))

    def restarted() -> bool:
        known = pods.spaces_of(cluster.workers[2])
        here = [pod for pod in cluster.pods("web") if pod.node == "node-2"]
        return len(here) == 2 and all(pod.addresses[0] in known for pod in here)

    eventually(restarted, lambda: podwire.explain(cluster))
    found = cluster.await_pods("web", len(before))
    places = spaces(cluster, found)
    with pods.all_offering(places):
        reach_all(found, places)
    held = {address for pod in found if pod.node == "node-2" for address in pod.addresses}
    eventually(
        lambda: set(podwire.left(cluster.workers[2])["addresses"]) == held, "no address of before", within=90
    )


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
