"""A node whose routed pods are judged by policies, and another node's pod beyond the tunnel."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cni_plugin.cluster.policy_objects import parse_namespace, parse_pod, parse_policy
from cni_plugin.cluster.resources import key_of
from cni_plugin.config.network import Attachment
from cni_plugin.dataplane.policy.desired import LocalPod, PolicyModel
from cni_plugin.dataplane.policy.sync import PolicySync, PolicyTable
from cni_plugin.kernel.netns import open_pod
from tests.harness.cluster import Cluster, address_of, make_cluster
from tests.harness.services import ask, offering

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node, Pod, Space

PORT, OTHER_PORT = 8080, 8081
NAMED = [{"name": "web", "containerPort": PORT}]
ALLOWED, DENIED = "allowed", "denied"


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


@dataclass
class PolicyLab:
    """Pods by name; `web` and `near` are on the first node, `far` is on the second."""

    cluster: Cluster
    version: int
    pods: dict[str, Pod] = field(default_factory=dict)
    model: PolicyModel = field(default_factory=lambda: PolicyModel("node1"))
    table: PolicyTable = field(default_factory=PolicyTable)

    @property
    def node(self) -> Node:
        return self.cluster.nodes[1]

    def config(self, i: int, **keys: Any) -> dict[str, Any]:
        policy = {"networkPolicy": {"socket": str(self.node.tmp / "policy.sock"), **keys}} if i == 1 else {}
        return {**self.cluster.config("tunnel", i), **policy}

    def start_pod(self, name: str, i: int = 1, **labels: str) -> Pod:
        """Make a pod, which is closed at first, and have the model know of it."""
        pod = self.pods[name] = self.cluster.nodes[i].pod()
        args = f"K8S_POD_NAMESPACE=a;K8S_POD_NAME={name}"
        self.cluster.nodes[i].add(self.config(i), pod, environ={"CNI_ARGS": args})
        self.tell(name, i, **labels)
        return pod

    def tell(self, name: str, i: int = 1, **labels: str) -> None:
        """Let the model know what the API says of a pod, and what its ADD said."""
        pod = self.pods[name]
        addresses = [address_of(pod, version) for version in (4, 6)]
        raw = {
            "metadata": {"namespace": "a", "name": name, "uid": name, "labels": labels},
            "spec": {
                "nodeName": f"node{i}",
                "containers": [{"ports": [{"name": "web", "containerPort": PORT}]}],
            },
            "status": {"phase": "Running", "podIPs": [{"ip": address} for address in addresses]},
        }
        self.model.put_pods({f"a/{name}": parse_pod(raw)})
        if i == 1:
            self.model.put_local([self.local(name)])

    def local(self, name: str) -> LocalPod:
        pod = self.pods[name]
        identity = Attachment(
            network="test", container_id=pod.container_id, ifname="eth0", netns=str(pod.path)
        ).identity
        addresses = tuple(packed(address_of(pod, version)) for version in (4, 6))
        return LocalPod(identity=identity, namespace="a", name=name, addresses=addresses)

    def put_namespace(self, **labels: str) -> None:
        self.model.put_namespaces({"a": parse_namespace({"metadata": {"name": "a", "labels": labels}})})

    def put(self, name: str, **spec: Any) -> PolicySync:
        """Make or change a policy, and bring the table in line."""
        raw = {"metadata": {"namespace": "a", "name": name}, "spec": json.loads(json.dumps(spec))}
        self.model.put_policies({key_of(raw): parse_policy(raw)})
        return self.sync()

    def drop(self, name: str) -> PolicySync:
        self.model.put_policies({f"a/{name}": None})
        return self.sync()

    def sync(self, table: PolicyTable | None = None) -> PolicySync:
        self.table = table or self.table
        rules = self.model.compute()
        with open_pod(self.node.path) as host, host.entered():
            return self.table.sync(host.nftables, rules, {})

    def space(self, name: str) -> Space:
        return self.cluster.underlay if name == "outside" else self.pods[name]

    def ask(self, source: str, target: str, port: int = PORT, protocol: str = "tcp") -> str:
        """Return whether one is answered by another."""
        address = address_of(self.pods[target], self.version)
        answer = ask(self.space(source), address, port, protocol, within=0.6)
        return ALLOWED if answer.startswith(target) else DENIED

    def pings(self, source: str, target: str) -> bool:
        address = address_of(self.pods[target], self.version)
        return self.space(source).run("ping", "-c", "1", "-W", "1", address, check=False).returncode == 0

    def listing(self) -> str:
        return self.node.run("nft", "list", "table", "inet", "podwire_policy").stdout


@contextmanager
def policy_lab(tmp: Path, bin_dir: Path, version: int) -> Iterator[PolicyLab]:
    """Return the lab with its three pods, which no policy selects yet."""
    cluster = make_cluster(tmp, bin_dir, 2)
    try:
        lab = PolicyLab(cluster, version)
        lab.put_namespace()
        lab.start_pod("web", app="web")
        lab.start_pod("near", app="near")
        lab.start_pod("far", 2, app="far")
        lab.sync()
        with ExitStack() as stack:
            for name, pod in lab.pods.items():
                for port in (PORT, OTHER_PORT):
                    stack.enter_context(offering(pod, port, name=f"{name} "))
            yield lab
    finally:
        cluster.remove()
