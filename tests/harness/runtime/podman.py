"""Podman with its CNI backend, inside the network namespace of a node.

Its configuration, images, containers and temporary files are in the test's directory. What it keeps under
/run (runc, named namespaces) and /var/lib (address store, libcni's cache) is in the mount namespace of a
machine of its own, and its containers are in that machine's PID namespace, so that they end with it.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.harness.runtime import image, tools
from tests.harness.runtime.drop_in import PathSpace
from tests.harness.runtime.machine import Machine, remove_cgroups

if TYPE_CHECKING:
    from types import TracebackType

# Debian's package brings its default network; where there is none podman has the same built in.
DEFAULT_CONFLIST = Path("/etc/cni/net.d/87-podman-bridge.conflist")

# The limits of a container are podman's own only where CAP_SYS_RESOURCE lets it raise them.
_CONTAINERS = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
dns_servers = ["192.0.2.53"]
log_driver = "k8s-file"
[network]
network_backend = "cni"
cni_plugin_dirs = ["{bin_dir}"]
network_config_dir = "{conf_dir}"
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "none"
"""
_STORAGE = """
[storage]
driver = "vfs"
graphroot = "{directory}/root"
runroot = "{directory}/run"
"""
_START = "mount -t tmpfs -o mode=0755 podwire /run && exec sleep infinity"


class Podman:
    """Runs podman's commands on a machine of its own."""

    def __init__(self, *, netns: str, directory: Path, bin_dir: Path) -> None:
        self._stack = ExitStack()
        self._directory = directory
        self._bin_dir = bin_dir
        self._cgroup = f"podwire-{netns}"
        self._env = {
            "CONTAINERS_CONF": str(directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(directory / "storage.conf"),
            "HOME": str(directory),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        }
        self.machine = Machine(netns=netns, directory=directory / "machine", argv=("sh", "-ec", _START))

    def __enter__(self) -> Self:
        tools.installed("podman", package="podman")
        with ExitStack() as stack:
            self._write_config()
            stack.callback(remove_cgroups, self._cgroup)
            stack.enter_context(self.machine)
            archive = self._directory / "image.tar"
            busybox = tools.installed("busybox", package="busybox-static")
            image.write_image(archive, pause=tools.cached("pause"), busybox=busybox)
            self("load", "--input", str(archive))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def __call__(self, *words: str) -> str:
        """Run a podman command, which must succeed, and return what it prints."""
        places = ("--tmpdir", f"{self._directory}/tmp")
        return self.machine.run("podman", *places, *words, env=self._env).stdout

    def run(self, name: str, *options: str) -> PathSpace:
        """Start a container and return its network namespace."""
        words = ("--detach", "--name", name, f"--cgroup-parent=/{self._cgroup}", *options)
        self("run", *words, image.NAME)
        path = self("inspect", "--format", "{{.NetworkSettings.SandboxKey}}", name).strip()
        return PathSpace(name=f"{self.machine.root}{path}")

    def _write_config(self) -> None:
        conf_dir = self._directory / "net.d"
        conf_dir.mkdir(parents=True)
        if DEFAULT_CONFLIST.exists():
            (conf_dir / DEFAULT_CONFLIST.name).write_text(DEFAULT_CONFLIST.read_text())
        text = _CONTAINERS.format(bin_dir=self._bin_dir, conf_dir=conf_dir)
        (self._directory / "containers.conf").write_text(text)
        (self._directory / "storage.conf").write_text(_STORAGE.format(directory=self._directory))
