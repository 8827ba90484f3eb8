"""The control plane on a machine of its own: etcd, API server with RBAC, controllers, scheduler."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.harness.kubernetes.host import Host, eventually
from tests.harness.runtime import tools

if TYPE_CHECKING:
    from tests.harness.node import Node

TOKEN = "admin-of-the-test"
_POD_CIDRS = {4: "10.244.0.0/16", 6: "fd00:10:244::/56"}
_SERVICE_CIDRS = {4: "10.96.0.0/16", 6: "fd00:10:96::/112"}
GATES = "--feature-gates=IPv6DualStack=true"


def program(name: str) -> str:
    """Return a program of Kubernetes."""
    path = Path(os.environ.get("PODWIRE_CACHE", "/var/cache/podwire")) / "kubernetes/bin" / name
    assert path.exists(), f"{path} is missing: run tests/kubernetes/build-kubernetes (scripts/test does)"
    return str(path)


def bracketed(address: str) -> str:
    """Return an address as the host of a URL."""
    return f"[{address}]" if ":" in address else address


class ControlPlane:
    """What nodes and tests ask; `address` is where. Pods and services have addresses of these families."""

    def __init__(self, node: Node, address: str, directory: Path, families: tuple[int, ...]) -> None:
        directory.mkdir()
        self.node, self.address = node, address
        self.pod_cidrs = ",".join(_POD_CIDRS[version] for version in families)
        self._service_cidrs = ",".join(_SERVICE_CIDRS[version] for version in families)
        self.directory = directory
        self.url = f"https://{bracketed(address)}:6443"
        self.host = Host("control", netns=node.name, directory=directory)
        self.kubeconfig = self.host.file("kubeconfig", json.dumps(self._kubeconfig()))

    def start(self) -> None:
        self.host.boot(self.node.name)
        key = self.directory / "sa.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        self._start_etcd()
        self.start_apiserver()
        self._start_controllers(str(key))

    def _start_etcd(self) -> None:
        etcd = str(tools.installed("etcd", package="etcd-server"))
        # /run is memory: what is synchronized to a busy disk takes seconds.
        self.host.start("etcd", etcd, "--data-dir=/run/etcd", "--log-level=warn")

    def start_apiserver(self) -> None:
        """Start the API server and wait until it is healthy."""
        self.host.file("tokens", f"{TOKEN},admin,admin,system:masters\n")
        self.host.start(
            "apiserver",
            program("kube-apiserver"),
            "--etcd-servers=http://127.0.0.1:2379",
            f"--cert-dir={self.directory}",
            f"--advertise-address={self.address}",
            f"--bind-address={self.address}",
            f"--service-cluster-ip-range={self._service_cidrs}",
            f"--token-auth-file={self.directory}/tokens",
            "--authorization-mode=RBAC",
            f"--service-account-key-file={self.directory}/sa.key",
            f"--service-account-signing-key-file={self.directory}/sa.key",
            "--service-account-issuer=https://kubernetes.test",
            "--allow-privileged",
            "--kubelet-preferred-address-types=InternalIP",
            "--max-requests-inflight=2000",
            "--max-mutating-requests-inflight=1000",
            GATES,
        )
        eventually(self.healthy, self.host.daemons["apiserver"].tail)

    def healthy(self) -> bool:
        """Tell whether the API answers."""
        return self.kubectl("get", "--raw", "/healthz", check=False).stdout == "ok"

    def follow(self, *words: str) -> subprocess.Popen[str]:
        """Start a kubectl that goes on, with its output to read."""
        argv = [program("kubectl"), f"--kubeconfig={self.kubeconfig}", *words]
        inside = ["ip", "netns", "exec", self.node.name]
        return subprocess.Popen([*inside, *argv], stdout=subprocess.PIPE, text=True)

    def kubectl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl beside the API server."""
        cache = f"--cache-dir={self.directory}/cache"
        return self.node.run(
            program("kubectl"), f"--kubeconfig={self.kubeconfig}", cache, *words, check=check
        )

    def _start_controllers(self, key: str) -> None:
        fast = ("--kube-api-qps=200", "--kube-api-burst=400", "--leader-elect=false")
        self.host.start(
            "controllers",
            program("kube-controller-manager"),
            f"--kubeconfig={self.kubeconfig}",
            f"--service-account-private-key-file={key}",
            f"--root-ca-file={self.directory}/apiserver.crt",
            "--allocate-node-cidrs",
            f"--cluster-cidr={self.pod_cidrs}",
            f"--service-cluster-ip-range={self._service_cidrs}",
            "--node-monitor-period=1s",
            "--node-monitor-grace-period=10s",
            *fast,
            GATES,
        )
        self.host.start(
            "scheduler", program("kube-scheduler"), f"--kubeconfig={self.kubeconfig}", *fast, GATES
        )

    def _kubeconfig(self) -> dict[str, Any]:
        cluster = {"server": self.url, "insecure-skip-tls-verify": True}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
