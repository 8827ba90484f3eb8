"""A containerd of the test's own, inside the network namespace of its node.

Root, state, socket, the pods' named namespaces and the cache of libcni are in a mount namespace of its own
and its shims in a PID namespace of its own (machine.py), so that several run side by side, and nothing of a
containerd is left when its first process ends, whatever happened to it.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from tests.harness.runtime import image, tools
from tests.harness.runtime.cri import Runtime
from tests.harness.runtime.machine import Machine, remove_cgroups

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from tests.harness.runtime.cri import Sandbox

_PLACES = """
root = "/run/containerd/root"
state = "/run/containerd/state"
[grpc]
address = "/run/containerd/containerd.sock"
"""
# The plugin "opt" would make /opt/containerd on the machine.
# restrict_oom_score_adj: the machine may lack CAP_SYS_RESOURCE.
_CONFIG = {
    "old": """
version = 2
disabled_plugins = ["io.containerd.internal.v1.opt"]
{places}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{bin_dir}"
conf_dir = "{conf_dir}"
""",
    "new": """
version = 3
disabled_plugins = ["io.containerd.internal.v1.opt"]
{places}
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{image}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{bin_dir}"]
conf_dir = "{conf_dir}"
""",
}

# /run/containerd/s holds the sockets of all shims, wherever containerd's state is: /run must be our own.
# containerd takes its shim from PATH.
_START = 'mount -t tmpfs -o mode=0755 podwire /run && PATH=$1:$PATH && exec containerd --config "$0"'


def render_config(
    age: tools.Age,
    *,
    places: str = "",
    bin_dir: Path | str = "/opt/cni/bin",
    conf_dir: Path | str = "/etc/cni/net.d",
) -> str:
    """Return containerd's configuration: where an installation has everything, unless said otherwise."""
    return _CONFIG[age].format(image=image.NAME, places=places, bin_dir=bin_dir, conf_dir=conf_dir)


class Containerd:
    """A running containerd, of which the tests use the CRI socket."""

    def __init__(
        self, *, netns: str, directory: Path, bin_dir: Path, conflist: str, age: tools.Age = "new"
    ) -> None:
        self._age = age
        self.programs = tools.containerd(age)
        self._stack = ExitStack()
        self._directory = directory
        self._bin_dir = bin_dir
        self._conflist = conflist
        self._cgroup = f"podwire-{netns}"
        self.machine = Machine(
            netns=netns,
            directory=directory / "machine",
            argv=("sh", "-ec", _START, str(directory / "config.toml"), str(self.programs)),
        )

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._write_config()
            stack.callback(remove_cgroups, self._cgroup)
            stack.enter_context(self.machine)
            socket = self.machine.root / "run/containerd/containerd.sock"
            self._await(socket.exists)
            self.runtime = Runtime(socket, cgroup_parent=f"/{self._cgroup}")
            stack.callback(self.runtime.close)
            self._await(lambda: not self.runtime.unready())
            self._import_image()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def run_in_pod(self, sandbox: Sandbox, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the machine in the pod's network namespace."""
        return self.machine.run("nsenter", f"--net={sandbox.netns}", *argv)

    def named_namespaces(self) -> list[str]:
        """List the network namespaces that containerd keeps for pods."""
        return sorted(path.name for path in (self.machine.root / "run/netns").glob("*"))

    def _write_config(self) -> None:
        conf_dir = self._directory / "net.d"
        conf_dir.mkdir(parents=True)
        (conf_dir / "10-test.conflist").write_text(self._conflist)
        text = render_config(self._age, places=_PLACES, bin_dir=self._bin_dir, conf_dir=conf_dir)
        (self._directory / "config.toml").write_text(text)

    def _import_image(self) -> None:
        archive = self._directory / "sandbox.tar"
        busybox = tools.installed("busybox", package="busybox-static")
        image.write_image(archive, pause=tools.cached("pause"), busybox=busybox)
        self.machine.run(str(self.programs / "ctr"), "-n", "k8s.io", "images", "import", str(archive))
        # The CRI part of containerd learns of an image through an event.
        self._await(lambda: self.runtime.has_image(image.NAME))

    def _await(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not ready():
            assert time.monotonic() < deadline, f"containerd is not ready:\n{self.machine.log.read_text()}"
            time.sleep(0.02)
