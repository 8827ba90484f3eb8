"""Who is measured: Go plugins of a directory, and ours with the C shim, the Python shim and no agent."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DEBIAN = Path("/usr/lib/cni")
_CACHE = Path(os.environ.get("PODWIRE_CACHE", "/var/cache/podwire"))
# From this version on the Go plugins can translate with nftables; iptables is what they choose.
_WITH_NFTABLES = (1, 7)
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
    """The process behind a shim, on a node as the runtime is: in this network namespace."""

    def __init__(self, work: Path, name: str, space: str) -> None:
        """Start it and wait for its socket."""
        self._shared, self._socket = work / _WAYS[C_SHIM][1], work / f"agent-{name}.sock"
        self._log = work / "agents.log"
        shebang = (work / _WAYS[NO_AGENT][0] / "podwire").read_text().split()[0]
        python = [shebang.removeprefix("#!"), "-I", "-m", "cni_plugin"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["nsenter", f"--net={space}", *python, "agent", "--socket", str(self._socket)], stderr=log
            )
        while not self._socket.exists():
            if self._process.poll() is not None:
                raise SystemExit(f"scripts/bench: the agent ended: {self._log.read_text()}")
            time.sleep(0.02)

    def answer(self) -> None:
        """Be the one that the shims ask from now on: the path of the socket is a part of them."""
        new = self._shared.with_suffix(".new")
        new.symlink_to(self._socket)
        new.replace(self._shared)

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
    has_agent: bool = False
    backend: str = ""  # of masquerade and host ports, where it is not the default

    @property
    def plugin(self) -> str:
        """Return what joins a pod to a bridge."""
        return "podwire" if self.ours else "bridge"

    @property
    def manager(self) -> str:
        """Return what manages addresses."""
        return "podwire-ipam" if self.ours else "host-local"


def go_directories() -> list[Path]:
    """Return the Go plugins of this machine: what tests/go/build has made, newest first, and Debian's."""
    built = sorted(_CACHE.glob("plugins-*.*"), key=lambda path: _numbers(path.name), reverse=True)
    return [*built, DEBIAN]


def go_contenders(directories: list[Path]) -> list[Contender]:
    """Return a contender for every directory of Go plugins, by version, and one with nftables if it can."""
    found = []
    for number, directory in enumerate(directories):
        version = go_version(directory)
        found.append(Contender(name=f"Go {version}", key=f"go{number}", directory=directory, ours=False))
        if _numbers(version) >= _WITH_NFTABLES:
            name, key = f"Go {version}, nftables", f"go{number}nft"
            found.append(Contender(name=name, key=key, directory=directory, ours=False, backend="nftables"))
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


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
    """Return what was installed."""
    return [
        Contender(name=name, key=way[0], directory=work / way[0], has_agent=name != NO_AGENT)
        for name, way in _WAYS.items()
    ]


def _install(directory: Path, socket: Path, prefix: Path, options: list[str]) -> None:
    # An interpreter that has podwire is that of a checkout's environment; else scripts/install makes one.
    has_podwire = [sys.executable, "-I", "-c", "import cni_plugin, filelock, netaddr, pyroute2"]
    installed = subprocess.run(has_podwire, cwd="/", capture_output=True, check=False).returncode == 0
    place = ["--python", sys.executable] if installed else ["--prefix", str(prefix)]
    place += ["--record", f"{directory}.installed", "--link-dir", str(prefix)]
    command = [str(ROOT / "scripts/install"), "--bin-dir", str(directory), "--socket", str(socket)]
    subprocess.run([*command, *place, *options], check=True, stdout=subprocess.DEVNULL)
    for name in _CHAINED:
        if not (directory / name).exists():
            (directory / name).hardlink_to(directory / "podwire")
