"""Docker on a machine of its own, whose network, mounts and processes are no other's and end with it.

dockerd's data is below the cache of the tests and not below /tmp: its overlays cannot be on an overlay.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.harness.kind.programs import directories
from tests.harness.kubernetes.host import eventually
from tests.harness.node import make_node
from tests.harness.runtime import tools
from tests.harness.runtime.machine import Machine, remove_cgroups

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).parents[3]
_RUNC = ROOT / "tests/kind/runc"
IMAGE = f"kindest/node:v{tools.module_version('kubernetes')}"
_SOCKET = "unix:///run/docker.sock"
# /sys shows the network namespace that it was mounted in, and dockerd's bridges are in this one.
_ENTER = """
mount -t tmpfs -o mode=0755 podwire /run
mkdir /run/netns /run/cgroup
mount --rbind /sys/fs/cgroup /run/cgroup
mount -t sysfs sysfs /sys
mount --rbind /run/cgroup /sys/fs/cgroup
umount -l /run/cgroup
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
shift
echo entered
exec >&2
"$@"
exit $?
"""


class Docker:
    """A machine with dockerd, kind and kubectl; `place` is where commands are typed."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory, self.place = directory, directory / "typed"
        self.log = directory / "dockerd.log"
        self._cgroup = f"podwire-{directory.parent.name}-{directory.name}"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._data = Path(tempfile.mkdtemp(prefix=".docker.", dir=tools.cache()))
            stack.callback(shutil.rmtree, self._data)
            self.node = make_node(self.directory, self.directory)
            stack.callback(self.node.remove)
            self.machine = Machine(netns=self.node.name, directory=self.directory / "machine", enter=_ENTER)
            stack.callback(remove_cgroups, self._cgroup)
            stack.enter_context(self.machine)
            self._write_settings()
            self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._process.wait(timeout=30)

    def _write_settings(self) -> None:
        """Write dockerd's settings, and a `kind` that names the image, since no registry is at hand."""
        settings = {
            "runtimes": {"limited": {"path": str(_RUNC)}},
            "default-runtime": "limited",
            "cgroup-parent": f"/{self._cgroup}",
            "data-root": str(self._data),
            "exec-root": "/run/docker",
            "pidfile": "/run/docker.pid",
            "hosts": [_SOCKET],
        }
        (self.directory / "daemon.json").write_text(json.dumps(settings))
        binaries = self.directory / "bin"
        binaries.mkdir()
        kind = binaries / "kind"
        kind.write_text(
            "#!/bin/sh\n"
            f'[ "$1 $2" != "create cluster" ] || set -- "$@" --image {IMAGE}\n'
            f'exec {directories()["kind"]}/kind "$@"\n'
        )
        kind.chmod(0o755)
        self.place.mkdir()

    def start(self) -> None:
        """Start dockerd and wait until it answers."""
        words = (
            "env",
            f"PATH={self._path()}",
            "dockerd",
            "--config-file",
            str(self.directory / "daemon.json"),
        )
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.machine.inside, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        eventually(lambda: self.run("docker version", check=False).returncode == 0, self.log.read_text)

    def stop(self) -> None:
        """End dockerd as an operator does: with it all containers stop."""
        self.run("kill $(cat /run/docker.pid)")
        self._process.wait(timeout=120)

    def _path(self) -> str:
        found = directories()
        first = (str(self.directory / "bin"), str(tools.cache() / "docker/bin"), found["kubernetes"])
        return ":".join((*first, os.environ["PATH"]))

    def run(
        self, script: str, *, check: bool = True, within: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Run what a person types on this machine."""
        settings = (
            f"PATH={self._path()}",
            f"DOCKER_HOST={_SOCKET}",
            f"KUBECONFIG={self.directory}/kubeconfig",
        )
        typed = ("sh", "-ec", f"cd {self.place}\n{script}")
        started = time.monotonic()
        done = subprocess.run(
            [*self.machine.inside, "env", *settings, *typed],
            capture_output=True,
            text=True,
            check=False,
            timeout=within,
        )
        took = time.monotonic() - started
        assert not check or done.returncode == 0, f"{script} ({took:.0f} s): {done.stdout}{done.stderr}"
        return done

    def load_node(self, root: Path) -> None:
        """Make a directory's tar kind's image of a node; an import alone cannot tell how it is stopped."""
        self.run(f"docker import {root} node-root")
        steps = (
            "FROM node-root",
            "ENV container=docker",
            "STOPSIGNAL SIGRTMIN+3",
            'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]',
        )
        lines = "\\n".join(step.replace('"', '\\"') for step in steps)
        self.run(f'printf "{lines}" | docker build --quiet --tag {IMAGE} -')
