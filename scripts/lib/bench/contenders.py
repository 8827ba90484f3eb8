"""Who is measured: Go plugins of a directory, and ours with the C shim, the Python shim and no agent."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DEBIAN = Path("/usr/lib/cni")
C_SHIM, PYTHON_SHIM, NO_AGENT = "C shim", "Python shim", "no agent"
# The directory, the socket, and how to install.
_WAYS = {
    NO_AGENT: ("process", "none.sock"),
    PYTHON_SHIM: ("python", "agent.sock"),
    C_SHIM: ("c", "agent.sock", "--shim"),
}
# scripts/install puts two names in place; a chain calls the same executable by more.
_CHAINED = ("portmap", "bandwidth", "firewall", "tuning")


class Agent:
    """The process behind both shims."""

    def __init__(self, python: str, directory: Path) -> None:
        """Start it and wait for its socket."""
        self.socket = directory / "agent.sock"
        self._log = directory / "agent.log"
        command = [python, "-I", "-m", "cni_plugin", "agent", "--socket", str(self.socket)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log)
        while not self.socket.exists():
            if self._process.poll() is not None:
                raise SystemExit(f"scripts/bench: the agent ended: {self._log.read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ask it to end, and wait."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    def cpu(self) -> float:
        """Return the processor seconds that it has had so far."""
        # The clock of another process: MAKE_PROCESS_CPUCLOCK in linux/posix-timers.h.
        return time.clock_gettime(~self._process.pid << 3 | 2)

    def resident(self) -> int:
        """Return its resident memory in KiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


@dataclass(kw_only=True)
class Contender:
    """A directory of plugins."""

    name: str
    key: str
    directory: Path
    ours: bool = True
    agent: Agent | None = None

    @property
    def plugin(self) -> str:
        """Return what joins a pod to a bridge."""
        return "podwire" if self.ours else "bridge"

    @property
    def manager(self) -> str:
        """Return what manages addresses."""
        return "podwire-ipam" if self.ours else "host-local"

    def agent_cpu(self) -> float:
        """Return the processor seconds of the process behind it."""
        return self.agent.cpu() if self.agent else 0.0


def go_contenders(directories: list[Path]) -> list[Contender]:
    """Return a contender for every directory of Go plugins, named by version."""
    return [
        Contender(name=f"Go {go_version(directory)}", key=f"go{number}", directory=directory, ours=False)
        for number, directory in enumerate(directories)
    ]


def go_version(directory: Path) -> str:
    """Return the version that the plugin names; Debian's names none, so there the package is asked."""
    plugin = directory / "bridge"
    said = subprocess.run([plugin], capture_output=True, text=True, check=False, env={}).stderr
    if found := re.search(r"plugin v?(\d[\w.+-]*)", said):
        return found[1]
    query = ["dpkg-query", "--show", "--showformat", "${Version}", "containernetworking-plugins"]
    packaged = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    if directory == DEBIAN and packaged:
        return f"{packaged.partition('+')[0]} (Debian)"
    return f"of unknown version in {directory}"


def install_ours(work: Path) -> None:
    """Install ours in its ways; this may need the network."""
    for key, socket, *options in _WAYS.values():
        _install(work / key, work / socket, work / "lib", options)


def our_contenders(work: Path) -> list[Contender]:
    """Return what was installed; the two with a shim share an agent that `start_agent` starts."""
    return [Contender(name=name, key=way[0], directory=work / way[0]) for name, way in _WAYS.items()]


def _install(directory: Path, socket: Path, prefix: Path, options: list[str]) -> None:
    # An interpreter that has podwire is that of a checkout's environment; else scripts/install makes one.
    has_podwire = [sys.executable, "-I", "-c", "import cni_plugin, filelock, netaddr, pyroute2"]
    installed = subprocess.run(has_podwire, cwd="/", capture_output=True, check=False).returncode == 0
    place = ["--python", sys.executable] if installed else ["--prefix", str(prefix)]
    command = [str(ROOT / "scripts/install"), "--bin-dir", str(directory), "--socket", str(socket)]
    subprocess.run([*command, *place, *options], check=True, stdout=subprocess.DEVNULL)
    for name in _CHAINED:
        if not (directory / name).exists():
            (directory / name).hardlink_to(directory / "podwire")


def start_agent(work: Path, contenders: list[Contender]) -> Agent:
    """Start an agent for those who use one."""
    shebang = (work / "process/podwire").read_text().split()[0]
    agent = Agent(shebang.removeprefix("#!"), work)
    for contender in contenders:
        contender.agent = agent if contender.name in {C_SHIM, PYTHON_SHIM} else None
    return agent
