"""A machine of the cluster: a namespace on the underlay, and processes, mounts and a name of its own.

What a disk keeps (/var/lib, /var/log, /etc, /opt) is a directory of the test's, so that a reboot, which is
the end of all processes, the network namespace and /run, finds it again. The machine's own is only read.
"""

from __future__ import annotations

import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness.runtime.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable

# An overlay's upper directory cannot be on an overlay, as which /tmp may be mounted, so /etc is a copy.
_ENTER = """
disk=$1
shift
for kept in var/lib var/log opt etc; do mkdir -p "$disk/$kept"; done
[ -e "$disk/etc/passwd" ] || { cp -a /etc/. "$disk/etc" && rm -rf "$disk/etc/cni"; }
mkdir -p "$disk/opt/cni/bin" "$disk/etc/cni/net.d"
mount -t tmpfs -o mode=0755 podwire /run
mkdir /run/netns
for kept in var/lib var/log opt etc; do mount --bind "$disk/$kept" "/$kept"; done
mount --make-rshared /
hostname "$1"
shift
echo entered
exec >&2
"$@"
exit $?
"""


@dataclass
class Daemon:
    """A process that a machine keeps running, and how it was started."""

    name: str
    argv: tuple[str, ...]
    machine: Machine
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.machine.inside, *self.argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, which is the child of the one that entered."""
        assert self.process
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for pid in children.read_text().split():
            subprocess.run(["kill", f"-{number.value}", pid], check=True)

    def kill(self) -> None:
        assert self.process
        self.signal(signal.SIGKILL)
        self.process.wait(timeout=30)

    def tail(self) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])


class Host:
    """The processes of one machine of the cluster, by name."""

    def __init__(self, name: str, *, netns: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.daemons: dict[str, Daemon] = {}
        self.runs = False
        self.machine = self._machine(netns)

    def _machine(self, netns: str) -> Machine:
        argv = (self.name, "sleep", "infinity")
        return Machine(netns=netns, directory=self.directory / "machine", argv=argv, enter=_ENTER)

    @property
    def disk(self) -> Path:
        """The directory that its disk is."""
        return self.directory / "machine/scratch"

    def boot(self, netns: str) -> None:
        """Begin to be, in a network namespace."""
        self.machine = self._machine(netns)
        self.machine.__enter__()
        self.runs = True

    def halt(self) -> None:
        """End every process at once, as a power switch does."""
        self.machine.__exit__(None, None, None)
        self.runs = False
        for daemon in self.daemons.values():
            if daemon.process:
                daemon.process.wait(timeout=30)
        self.daemons.clear()

    def start(self, name: str, *argv: str) -> Daemon:
        """Start a process that stays."""
        log = self.directory / f"{name}.log"
        daemon = self.daemons[name] = Daemon(name, argv, self.machine, log)
        daemon.start()
        return daemon

    def file(self, name: str, content: str) -> str:
        """Write a file that the machine reads; return its path there, which is the same."""
        path = self.directory / name
        path.write_text(content)
        return str(path)


def eventually(ready: Callable[[], object], what: str | Callable[[], str], *, within: float = 120) -> None:
    """Wait until it is true; fail with what was waited for."""
    deadline = time.monotonic() + within
    while not ready():
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(0.1)
