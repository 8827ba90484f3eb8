"""The control plane on a machine of its own: etcd, API server, controllers, scheduler.

Who asks has the name, the groups and so the rights that kubeadm gives it, by a token and not a certificate.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from tests.harness.kubernetes.host import Host, eventually
from tests.harness.runtime import tools

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Node

ADMIN = "admin"
_GROUPS = {
    ADMIN: "system:masters",
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
    "system:kube-proxy": "",
    **{f"system:node:node-{i}": "system:nodes" for i in range(1, 10)},
}
_POD_CIDRS = {4: "10.244.0.0/16", 6: "fd00:10:244::/56"}
_SERVICE_CIDRS = {4: "10.96.0.0/16", 6: "fd00:10:96::/112"}
# Services of two families were behind a gate.
_GATES: dict[tools.Age, tuple[str, ...]] = {"old": ("--feature-gates=IPv6DualStack=true",), "new": ()}


def bracketed(address: str) -> str:
    """Return an address as the host of a URL."""
    return f"[{address}]" if ":" in address else address


class ControlPlane:
    """What nodes and tests ask; `address` is where. Pods and services have addresses of these families."""

    def __init__(
        self, node: Node, address: str, directory: Path, families: tuple[int, ...], age: tools.Age
    ) -> None:
        directory.mkdir()
        self.age, self.gates = age, _GATES[age]
        self.node, self.address = node, address
        self.pod_cidrs = ",".join(_POD_CIDRS[version] for version in families)
        self._service_cidrs = ",".join(_SERVICE_CIDRS[version] for version in families)
        self.directory = directory
        self.url = f"https://{bracketed(address)}:6443"
        self.host = Host("control", netns=node.name, directory=directory)
        self.kubeconfig = self.kubeconfig_of(ADMIN)

    def program(self, name: str) -> str:
        """Return a program of this Kubernetes."""
        return str(tools.kubernetes(self.age) / name)

    def start(self) -> None:
        self.host.boot(self.node.name)
        key = self.directory / "sa.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        self._start_etcd()
        self.start_apiserver()
        self._start_controllers(str(key))

    def _start_etcd(self) -> None:
        # /run is memory: what is synchronized to a busy disk takes seconds.
        self.host.start("etcd", str(tools.etcd(self.age)), "--data-dir=/run/etcd", "--log-level=warn")

    def start_apiserver(self) -> None:
        """Start the API server and wait until it is healthy."""
        tokens = [f'{_token(name)},{name},{name},"{groups}"\n' for name, groups in _GROUPS.items()]
        self.host.file("tokens", "".join(tokens))
        self.host.start(
            "apiserver",
            self.program("kube-apiserver"),
            "--etcd-servers=http://127.0.0.1:2379",
            f"--cert-dir={self.directory}",
            f"--advertise-address={self.address}",
            f"--bind-address={self.address}",
            f"--service-cluster-ip-range={self._service_cidrs}",
            f"--token-auth-file={self.directory}/tokens",
            "--authorization-mode=Node,RBAC",
            f"--service-account-key-file={self.directory}/sa.key",
            f"--service-account-signing-key-file={self.directory}/sa.key",
            "--service-account-issuer=https://kubernetes.test",
            "--allow-privileged",
            "--kubelet-preferred-address-types=InternalIP",
            "--max-requests-inflight=2000",
            "--max-mutating-requests-inflight=1000",
            "--enable-admission-plugins=NodeRestriction",
            *self.gates,
        )
        eventually(self.healthy, self.host.daemons["apiserver"].tail)

    def return_apiserver(self) -> None:
        """Start the API server again, and those anew that would have lost their lease without it.

        Here nobody else waits for the lease. With what they knew they would make again what is deleted since.
        """
        self.start_apiserver()
        for name in ("controllers", "scheduler"):
            self.host.daemons[name].kill()
            self.host.daemons[name].start()

    def healthy(self) -> bool:
        """Tell whether the API answers."""
        return self.kubectl("get", "--raw", "/healthz", check=False).stdout == "ok"

    def follow(self, *words: str) -> subprocess.Popen[str]:
        """Start a kubectl that goes on, with its output to read."""
        argv = [self.program("kubectl"), f"--kubeconfig={self.kubeconfig}", *words]
        inside = ["ip", "netns", "exec", self.node.name]
        return subprocess.Popen([*inside, *argv], stdout=subprocess.PIPE, text=True)

    def kubectl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl beside the API server."""
        cache = f"--cache-dir={self.directory}/cache"
        return self.node.run(
            self.program("kubectl"), f"--kubeconfig={self.kubeconfig}", cache, *words, check=check
        )

    def _start_controllers(self, key: str) -> None:
        fast = ("--kube-api-qps=200", "--kube-api-burst=400", "--leader-elect=false")
        self.host.start(
            "controllers",
            self.program("kube-controller-manager"),
            f"--kubeconfig={self.kubeconfig_of('system:kube-controller-manager')}",
            f"--service-account-private-key-file={key}",
            f"--root-ca-file={self.directory}/apiserver.crt",
            "--allocate-node-cidrs",
            f"--cluster-cidr={self.pod_cidrs}",
            f"--service-cluster-ip-range={self._service_cidrs}",
            "--node-monitor-period=1s",
            "--node-monitor-grace-period=10s",
            "--use-service-account-credentials",
            *fast,
            *self.gates,
        )
        kubeconfig = self.kubeconfig_of("system:kube-scheduler")
        program = self.program("kube-scheduler")
        self.host.start("scheduler", program, f"--kubeconfig={kubeconfig}", *fast, *self.gates)

    def kubeconfig_of(self, name: str) -> str:
        """Write what a client of this name asks with; return its path."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "test", "user": {"token": _token(name)}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        return self.host.file(f"{name.replace(':', '-')}.kubeconfig", json.dumps(config))


def _token(name: str) -> str:
    return f"token-of-{name}"
