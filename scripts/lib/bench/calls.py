"""Running plugins as a runtime does, and timing them: posix_spawn, environment, configuration on stdin.

An operation on an attachment is a generator of steps, one per plugin of the network; it is sent what each
step wrote to stdout. So the same generators serve a single pod and a crowd of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from bench.figures import Call

if TYPE_CHECKING:
    from collections.abc import Iterable
    from resource import struct_rusage

    from bench.lanes import Lane

_MOST = 1 << 16  # what a pipe holds; no result is longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One execution of one plugin."""

    verb: str
    program: str
    pod: int
    stdin: bytes


Steps = Generator[Step, bytes, None]


class PluginError(Exception):
    """A plugin answered with an error; its words."""


@dataclass(frozen=True, slots=True)
class _Running:
    steps: Steps
    step: Step
    stdout: int


def environment(lane: Lane, step: Step) -> dict[str, str]:
    """Return the variables of the contract."""
    return {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": step.verb,
        "CNI_CONTAINERID": lane.pod_name(step.pod),
        "CNI_NETNS": lane.pod_path(step.pod),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(lane.contender.directory),
    }


def measure_one(lane: Lane, steps: Steps) -> Call:
    """Run the steps one after the other; the time of each is that of its process alone."""
    lane.enter()
    before = lane.agent_cpu()
    wall = cpu = 0.0
    step = next(steps, None)
    while step is not None:
        start = time.perf_counter()
        pid, stdout = _spawn(lane, step)
        _, status, usage = os.wait4(pid, 0)
        wall += time.perf_counter() - start
        cpu += _seconds(usage)
        step = _advance(_Running(steps, step, stdout), status)
    return Call(wall=wall, cpu=cpu + lane.agent_cpu() - before)


def measure_crowd(lane: Lane, jobs: Iterable[Steps], width: int) -> Call:
    """Run all jobs, `width` of them at a time; the time is that of them all."""
    lane.enter()
    waiting, running = iter(jobs), dict[int, _Running]()
    before, start, cpu = lane.agent_cpu(), time.perf_counter(), 0.0
    for steps in islice(waiting, width):
        _begin(lane, steps, next(steps), running)
    while running:
        pid, status, usage = os.wait4(-1, 0)
        if pid not in running:
            continue  # somebody's orphan: this is the first process of its namespace
        cpu += _seconds(usage)
        ended = running.pop(pid)
        if (step := _advance(ended, status)) is not None:
            _begin(lane, ended.steps, step, running)
        else:
            for steps in islice(waiting, 1):
                _begin(lane, steps, next(steps), running)
    return Call(wall=time.perf_counter() - start, cpu=cpu + lane.agent_cpu() - before)


def _begin(lane: Lane, steps: Steps, step: Step, running: dict[int, _Running]) -> None:
    pid, stdout = _spawn(lane, step)
    running[pid] = _Running(steps, step, stdout)


def _spawn(lane: Lane, step: Step) -> tuple[int, int]:
    """Start a plugin; return its process id and the pipe that takes its stdout."""
    stdin, sender = os.pipe()
    os.write(sender, step.stdin)
    os.close(sender)
    stdout, receiver = os.pipe()
    path = f"{lane.contender.directory}/{step.program}"
    actions = [
        (os.POSIX_SPAWN_DUP2, stdin, 0),
        (os.POSIX_SPAWN_DUP2, receiver, 1),
        (os.POSIX_SPAWN_DUP2, lane.log, 2),
    ]
    pid = os.posix_spawn(path, [path], environment(lane, step), file_actions=actions)
    os.close(stdin)
    os.close(receiver)
    return pid, stdout


def _advance(ended: _Running, status: int) -> Step | None:
    """Take the answer of a step that ended, and return the next one."""
    answer = os.read(ended.stdout, _MOST)
    os.close(ended.stdout)
    if status != 0:
        raise PluginError(f"{ended.step.program} {ended.step.verb}: {answer.decode().strip()}")
    try:
        return ended.steps.send(answer)
    except StopIteration:
        return None


def _seconds(usage: struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime
