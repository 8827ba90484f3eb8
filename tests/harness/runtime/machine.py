"""What a node has besides its network namespace: processes and mounts of its own.

A runtime keeps files under /var/lib and leaves processes behind when it dies. Here it gets a PID
namespace, which the kernel empties when its first process ends, and a mount namespace with an overlay
on /var/lib, so that the machine's own state is never written to.

The same by hand: nsenter --net=/run/netns/NODE unshare --mount --uts --pid --fork --kill-child --mount-proc
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

_UNSHARE = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--")

# The overlay's upper directory is on a tmpfs, because an overlay (as in a container) cannot hold one.
# The machine's own /run stays: it holds the named namespaces of the pods.
# The shell remains as the first process, to reap orphans: containerd reaps none, and each shim is one.
_ENTER = """
scratch=$1
shift
mount -t tmpfs -o mode=0755 podwire "$scratch"
mkdir "$scratch/upper" "$scratch/work"
mount -t overlay -o "lowerdir=/var/lib,upperdir=$scratch/upper,workdir=$scratch/work" podwire /var/lib
echo entered
exec >&2
"$@"
exit $?
"""


class Machine:
    """Runs one process, and what it starts, in namespaces that end with it.

    `enter` is a shell script that prepares the mounts of its own in another way; $1 is an empty directory.
    """

    def __init__(
        self,
        *,
        netns: str,
        directory: Path,
        argv: tuple[str, ...] = ("sleep", "infinity"),
        enter: str = _ENTER,
    ) -> None:
        self.netns = netns
        self.log = directory / "log"
        self._scratch = directory / "scratch"
        self._argv = argv
        self._enter = enter

    def __enter__(self) -> Self:
        self._scratch.mkdir(parents=True, exist_ok=True)
        command = ["nsenter", f"--net=/run/netns/{self.netns}", *_UNSHARE]
        command += ["sh", "-ec", self._enter, "machine", str(self._scratch), *self._argv]
        with self.log.open("a") as log:
            self._unshare = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        with ExitStack() as unless_entered:
            unless_entered.callback(self._unshare.wait, timeout=30)
            unless_entered.callback(self._unshare.kill)  # and with it, by --kill-child, what it has started
            assert self._unshare.stdout
            with self._unshare.stdout as stdout:
                assert stdout.readline() == "entered\n", self.log.read_text()
            children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
            self.pid = int(children.read_text())
            unless_entered.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # With the first process the kernel kills all others, and only then lets unshare have its status.
        os.kill(self.pid, signal.SIGKILL)
        self._unshare.wait(timeout=30)

    @property
    def root(self) -> Path:
        """The machine's file system as seen from outside."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def inside(self) -> tuple[str, ...]:
        """The words before a command that make it a process of this machine."""
        return ("nsenter", f"--target={self.pid}", "--mount", "--root", "--net", "--uts", "--pid", "--")

    def run(
        self, *argv: str, env: dict[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a process of this machine."""
        done = subprocess.run(
            [*self.inside, *argv], env=env, capture_output=True, text=True, check=False, timeout=60
        )
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done

    def processes(self) -> list[str]:
        """List the names of what runs here beside the first process."""
        names = []
        for comm in (self.root / "proc").glob("[0-9]*/comm"):
            # It may end between being listed and being read.
            with suppress(FileNotFoundError, ProcessLookupError):
                names += [comm.read_text().strip()] if comm.parent.name != "1" else []
        return sorted(names)


def remove_cgroups(name: str) -> None:
    """Remove the control groups that a runtime made below `name`, in every hierarchy."""
    hierarchies = Path("/sys/fs/cgroup")
    for parent in (*hierarchies.glob(name), *hierarchies.glob(f"*/{name}")):
        for child in sorted(parent.glob("**"), reverse=True):
            child.rmdir()
