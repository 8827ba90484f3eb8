"""A node: a machine with a containerd, a kubelet and a kube-proxy, at the paths where every node has them."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from tests.harness.kubernetes import images
from tests.harness.kubernetes.control import GATES, ControlPlane, program
from tests.harness.kubernetes.host import Host, eventually
from tests.harness.runtime.cri import Runtime
from tests.harness.runtime.machine import remove_cgroups

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Node

# restrict_oom_score_adj: the machine may lack CAP_SYS_RESOURCE.
_CONTAINERD = """
version = 2
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{sandbox}"
restrict_oom_score_adj = true
disable_apparmor = true
"""
_SOCKET = "/run/containerd/containerd.sock"


class Worker:
    """One node of the cluster, from power-on to power-off."""

    def __init__(self, name: str, control: ControlPlane, directory: Path) -> None:
        directory.mkdir()
        self.name, self.control, self.directory = name, control, directory
        self.cgroup = f"podwire-{directory.parent.name}-{name}"
        self.host = Host(name, netns="", directory=directory)

    def boot(self, space: Node, addresses: tuple[str, ...]) -> None:
        """Start the machine in a network namespace that is on the underlay, and its daemons."""
        self.space = space
        self.host.boot(space.name)
        self._install()
        self.host.start("containerd", "containerd", "--config", self._write_containerd())
        socket = self.host.machine.root / _SOCKET.lstrip("/")
        eventually(socket.exists, self.host.daemons["containerd"].tail)
        self.runtime = Runtime(socket, cgroup_parent=f"/{self.cgroup}")
        self._start_kubelet(addresses)
        self._start_proxy()

    def halt(self) -> None:
        """Switch it off: processes, mounts and control groups are gone, the disk stays."""
        self.runtime.close()
        self.host.halt()
        remove_cgroups(self.cgroup)

    def _install(self) -> None:
        """Put in place what an installation of Kubernetes brings: `loopback` is all of CNI that it needs."""
        loopback = self.host.disk / "opt/cni/bin/loopback"
        if not loopback.exists():
            shutil.copy("/usr/lib/cni/loopback", loopback)

    def import_image(self, archive: Path) -> None:
        """Load an image as `ctr images import` does."""
        self.host.machine.run("ctr", "-n", "k8s.io", "images", "import", str(archive))

    def _write_containerd(self) -> str:
        return self.host.file("containerd.toml", _CONTAINERD.format(sandbox=images.SANDBOX))

    def _start_kubelet(self, addresses: tuple[str, ...]) -> None:
        self.host.start(
            "kubelet",
            program("kubelet"),
            f"--config={self.host.file('kubelet.json', json.dumps(self._kubelet()))}",
            f"--kubeconfig={self.control.kubeconfig}",
            f"--hostname-override={self.name}",
            f"--node-ip={','.join(addresses)}",
            "--container-runtime=remote",
            f"--container-runtime-endpoint=unix://{_SOCKET}",
            "--network-plugin=cni",
        )

    def _kubelet(self) -> dict[str, Any]:
        resolver = self.host.file("resolv.conf", "nameserver 192.0.2.53\n")
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "resolvConf": resolver,
            "featureGates": {"IPv6DualStack": True, "LocalStorageCapacityIsolation": False},
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "maxPods": 200,
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "volumePluginDir": "/var/lib/kubelet/plugins",
            "nodeStatusUpdateFrequency": "1s",
            "kubeAPIQPS": 200,
            "kubeAPIBurst": 400,
            "eventRecordQPS": 0,
        }

    def _start_proxy(self) -> None:
        self.host.start(
            "proxy",
            program("kube-proxy"),
            f"--kubeconfig={self.control.kubeconfig}",
            f"--hostname-override={self.name}",
            "--proxy-mode=iptables",
            f"--cluster-cidr={self.control.pod_cidrs}",
            "--conntrack-max-per-core=0",
            "--iptables-min-sync-period=0s",
            GATES,
        )
