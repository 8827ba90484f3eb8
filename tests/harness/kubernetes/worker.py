"""A node: a machine with a containerd, a kubelet and a kube-proxy, at the paths where every node has them."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from tests.harness.kubernetes import dns
from tests.harness.kubernetes.host import Host, eventually
from tests.harness.runtime import tools
from tests.harness.runtime.containerd import render_config
from tests.harness.runtime.cri import Runtime
from tests.harness.runtime.machine import remove_cgroups

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.kubernetes.control import ControlPlane
    from tests.harness.node import Node

_SOCKET = "/run/containerd/containerd.sock"
_ENDPOINT = f"unix://{_SOCKET}"
# What the kubelet was told in another place, or is not asked any more.
_KUBELET_WORDS: dict[tools.Age, tuple[str, ...]] = {
    "old": (
        "--container-runtime=remote",
        f"--container-runtime-endpoint={_ENDPOINT}",
        "--network-plugin=cni",
    ),
    "new": (),
}
_KUBELET: dict[tools.Age, dict[str, Any]] = {
    "old": {"featureGates": {"IPv6DualStack": True, "LocalStorageCapacityIsolation": False}},
    "new": {
        "containerRuntimeEndpoint": _ENDPOINT,
        "localStorageCapacityIsolation": False,
        "failCgroupV1": False,
    },
}


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
        # It takes its shim from PATH.
        programs = f"PATH={tools.containerd(self.control.age)}:{os.environ['PATH']}"
        config = self.host.file("containerd.toml", render_config(self.control.age))
        self.host.start("containerd", "env", programs, "containerd", "--config", config)
        socket = self.host.machine.root / _SOCKET.lstrip("/")
        eventually(socket.exists, self.host.daemons["containerd"].tail)
        self.runtime = Runtime(socket, cgroup_parent=f"/{self.cgroup}")
        self._start_kubelet(addresses)
        self._start_proxy()

    def halt(self) -> None:
        """Switch it off: processes, mounts and control groups are gone, the disk stays."""
        self.host.halt()
        remove_cgroups(self.cgroup)
        self.runtime.close()

    def _install(self) -> None:
        """Put in place what an installation of Kubernetes brings: `loopback` is all of CNI that it needs."""
        loopback = self.host.disk / "opt/cni/bin/loopback"
        if not loopback.exists():
            plugins = tools.NEW_PLUGINS if self.control.age == "new" else tools.OLD_PLUGINS
            shutil.copy(tools.reference_plugins(plugins) / "loopback", loopback)

    def import_image(self, archive: Path) -> None:
        """Load an image as `ctr images import` does."""
        self.ctr("images", "import", str(archive))

    def ctr(self, *words: str) -> None:
        """Run containerd's own client."""
        self.host.machine.run(str(tools.containerd(self.control.age) / "ctr"), "-n", "k8s.io", *words)

    def _start_kubelet(self, addresses: tuple[str, ...]) -> None:
        self.host.start(
            "kubelet",
            self.control.program("kubelet"),
            f"--config={self.host.file('kubelet.json', json.dumps(self._kubelet()))}",
            f"--kubeconfig={self.control.kubeconfig_of(f'system:node:{self.name}')}",
            f"--hostname-override={self.name}",
            f"--node-ip={','.join(addresses)}",
            *_KUBELET_WORDS[self.control.age],
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
            "clusterDNS": [dns.ADDRESS],
            "clusterDomain": dns.DOMAIN,
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
            **_KUBELET[self.control.age],
        }

    def _start_proxy(self) -> None:
        self.host.start(
            "proxy",
            self.control.program("kube-proxy"),
            f"--kubeconfig={self.control.kubeconfig_of('system:kube-proxy')}",
            f"--hostname-override={self.name}",
            "--proxy-mode=iptables",
            f"--cluster-cidr={self.control.pod_cidrs}",
            "--conntrack-max-per-core=0",
            "--iptables-min-sync-period=0s",
            *self.control.gates,
        )
