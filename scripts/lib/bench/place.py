"""The machine that is measured on, and the namespaces of its own that the measuring happens in.

Mounts, processes and network are the run's own, /run is a tmpfs, and the kernel ends all of it with the first
process, whatever happens to that. What is on disk, the address stores, is a temporary directory that the
process outside removes.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_UNSHARE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
_ENTER = 'mount -t tmpfs -o mode=0755 podwire /run && mkdir /run/netns && exec "$@"'
_PATIENCE = 60  # seconds


def describe_machine() -> dict[str, str]:
    """Return what a reader of the figures must know."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": f"{os.cpu_count()} cores, {models[0] if models else platform.machine()}",
        "kernel": f"Linux {platform.release()}",
        "python": f"Python {platform.python_version()}",
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def is_busy(machine: dict[str, str]) -> bool:
    """Tell whether other work disturbed the figures."""
    return float(machine["load"]) > 1


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the block as an exception, so that everything is taken back."""

    def leave(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_inside(command: list[str], prepare: Callable[[Path], None]) -> str:
    """Run the command in namespaces with a directory as its last argument; return its file `report` there.

    `prepare` fills the directory before, on the machine itself.
    """
    with tempfile.TemporaryDirectory(prefix="podwire-bench.") as directory:
        prepare(Path(directory))
        # Should this process be killed, the kernel kills unshare, and unshare what is inside.
        words = ["setpriv", "--pdeathsig", "KILL", *_UNSHARE, "sh", "-ec", _ENTER, "bench", *command]
        inside = subprocess.Popen([*words, directory], start_new_session=True)
        try:
            status = inside.wait()
        finally:
            _end(inside)
        if status != 0:
            raise SystemExit(status)
        return (Path(directory) / "report").read_text()


def _end(inside: subprocess.Popen[bytes]) -> None:
    """Ask the first process inside to end; unshare itself takes no signal but the last."""
    if inside.poll() is not None:
        return
    with suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{inside.pid}/task/{inside.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGTERM)
    try:
        inside.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        inside.kill()
        inside.wait()


def warn_when_busy(machine: dict[str, str]) -> None:
    """Say that the figures will be disturbed."""
    if is_busy(machine):
        load = machine["load"]
        sys.stderr.write(f"scripts/bench: the load is {load}: other work disturbs the figures, ratios less\n")
