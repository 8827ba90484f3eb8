"""podwire as the network of a real Kubernetes: its manifests, its image, and what Kubernetes asks of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.harness.kubernetes import pods, podwire
from tests.harness.kubernetes.host import eventually
from tests.harness.kubernetes.kubernetes import FAMILIES, WORLD
from tests.harness.kubernetes.reach import address_of, node_address, reach_all, spaces
from tests.harness.runtime import tools
from tests.harness.services import REFUSED, ask, ask_all, offering

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.kubernetes.kubernetes import Kubernetes
    from tests.harness.kubernetes.pods import RunningPod
    from tests.kubernetes.conftest import Installed


def test_nodes_become_ready_by_applying_the_manifests(
    installed: Installed, record_property: Callable[[str, object], None]
) -> None:
    assert installed.unready_before
    podwire.await_agents(installed.kubernetes)
    shown = [node["status"]["nodeInfo"] for node in installed.kubernetes.nodes().values()]
    assert {each["kubeletVersion"] for each in shown} == {f"v{tools.module_version('kubernetes')}"}
    assert {each["containerRuntimeVersion"] for each in shown} == {
        f"containerd://{tools.module_version('containerd')}"
    }
    record_property(
        "figures", f"seconds from apply until all nodes were Ready: {installed.seconds_to_ready:.1f}"
    )
    assert installed.seconds_to_ready < 60


def test_the_agent_has_no_more_rights_than_the_manifest_says(cluster: Kubernetes) -> None:
    net_admin, net_raw, sys_admin = 1 << 12, 1 << 13, 1 << 21
    for worker in cluster.workers.values():
        found = podwire.processes(worker)
        assert set(found) == {"agent", "cluster"}
        for pid in found.values():
            status = (worker.host.machine.root / f"proc/{pid}/status").read_text()
            rights = dict(
                line.split(":\t") for line in status.splitlines() if line.startswith(("Cap", "NoNew", "Secc"))
            )
            assert {int(rights[f"Cap{name}"], 16) for name in ("Prm", "Eff", "Bnd")} == {
                net_admin | net_raw | sys_admin
            }
            assert (rights["NoNewPrivs"], rights["Seccomp"]) == ("1", "2")
    account = "--as=system:serviceaccount:kube-system:podwire"
    verbs = ("get", "list", "watch", "patch", "update", "create", "delete")
    watched = ("nodes", "services", "endpointslices.discovery.k8s.io", "networkpolicies.networking.k8s.io")
    looked_at = ("pods", "namespaces")
    resources = [(name,) for name in (*watched, *looked_at, "secrets")]
    resources.append(("nodes", "--subresource=status"))
    allowed = {
        (verb, *resource)
        for verb in verbs
        for resource in resources
        if cluster.kubectl("auth", "can-i", verb, *resource, account, check=False).stdout == "yes\n"
    }
    wanted = {(verb, name) for verb in ("list", "watch") for name in (*watched, *looked_at)}
    wanted |= {("get", name) for name in looked_at}
    assert allowed == {*wanted, ("patch", "nodes", "--subresource=status")}


def test_the_doctor_finds_nothing_where_the_agent_runs(cluster: Kubernetes) -> None:
    cluster.apply(pods.deployment("web", 4))
    names = {pod.node: pod.name for pod in cluster.await_pods("web", 4)}
    for agent in podwire.agents(cluster):
        inside = ("exec", podwire.NAMESPACE, agent["metadata"]["name"], "--", "podwire")
        web = names[agent["spec"]["nodeName"]]
        for words in (("doctor",), ("doctor", "--pod", f"default/{web}"), ("status",), ("ipam", "check")):
            done = cluster.kubectl(*inside, *words, check=False)
            assert done.returncode == 0, (words, done.stdout, done.stderr)


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
            cluster.control.program("kubectl"), *version, f"--cache-dir={cluster.directory}/cache"
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
