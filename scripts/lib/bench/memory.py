"""Memory: the peak of a single call, and what the agent holds after many."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from bench.calls import PluginError, environment, measure_crowd
from bench.contenders import C_SHIM
from bench.figures import Memory
from bench.lanes import Lane
from bench.networks import DUAL, Bridge

if TYPE_CHECKING:
    from bench.calls import Steps
    from bench.contenders import Contender
    from bench.works import Sizes

_WIDTH = 16


def measure_peaks(work: Path, contenders: list[Contender]) -> list[Memory]:
    """Return the peak memory of ADD and DEL, the largest of all processes that a plugin starts and awaits."""
    launcher = work / "peak"
    source = Path(__file__).with_name("peak.c")
    subprocess.run(["musl-gcc", "-static", "-Os", "-s", source, "-o", launcher], check=True)
    found = []
    for contender in contenders:
        lane = Lane(contender, f"peak-{contender.key}", work, Bridge(DUAL))
        lane.make_pods(1)
        for verb, operation in (("ADD", lane.add), ("DEL", lane.delete)):
            kib = _peak(launcher, lane, operation(0))
            found.append(Memory(contender=contender.name, when=f"peak of {verb}", kib=kib))
        lane.close()
    return found


def _peak(launcher: Path, lane: Lane, steps: Steps) -> int:
    highest, step = 0, next(steps, None)
    while step is not None:
        lane.enter()
        command = [launcher, lane.contender.directory / step.program]
        variables = environment(lane, step)
        done = subprocess.run(command, input=step.stdin, env=variables, capture_output=True, check=False)
        if done.returncode != 0:
            raise PluginError(done.stdout.decode())
        highest = max(highest, int(done.stderr.split()[-1]))
        try:
            step = steps.send(done.stdout)
        except StopIteration:
            step = None
    return highest


def measure_agent(work: Path, contenders: list[Contender], sizes: Sizes) -> list[Memory]:
    """Return what an agent holds at its start and after many calls."""
    shim = next(contender for contender in contenders if contender.name == C_SHIM)
    lane = Lane(shim, "agent", work, Bridge(DUAL))
    lane.make_pods(sizes.pods)
    found = [Memory(contender="agent", when="at its start", kib=lane.agent_resident())]
    for done in range(sizes.pods, max(sizes.cycles) + 1, sizes.pods):
        for operation in (lane.add, lane.delete):
            measure_crowd(lane, map(operation, range(sizes.pods)), _WIDTH)
        if done in sizes.cycles:
            found.append(
                Memory(contender="agent", when=f"after {done:,} ADD and DEL", kib=lane.agent_resident())
            )
    lane.close()
    return found
