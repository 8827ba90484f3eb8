"""A containerd per lane, and the time that it takes to start and stop a pod.

The containerd and its CRI client are those of tests/runtime, so this needs what scripts/test installs.
"""

from __future__ import annotations

import itertools
import json
import time
from typing import TYPE_CHECKING, Any

from bench.contenders import DEBIAN
from bench.figures import Call

if TYPE_CHECKING:
    from contextlib import ExitStack

    from bench.lanes import Lane

_runtimes: dict[str, Any] = {}
_numbers = itertools.count()


class MissingError(Exception):
    """What containerd's CRI cannot be measured without."""


def start(lane: Lane, stack: ExitStack) -> None:
    """Start a containerd on the lane's node; MissingError when something is not installed."""
    try:
        from tests.harness.runtime.containerd import Containerd
    except ImportError as error:
        raise MissingError(f"{error}; scripts/test makes .venv, which has it") from error
    directory = lane.store.with_name(f"{lane.name}-containerd")
    bin_dir = directory / "bin"
    bin_dir.mkdir(parents=True)
    # containerd calls `loopback` for every pod; ours win over the reference's.
    plugins = {path.name: path for source in (DEBIAN, lane.contender.directory) for path in source.iterdir()}
    for name, path in plugins.items():
        (bin_dir / name).symlink_to(path)
    network = {"cniVersion": "1.0.0", "name": "bench", "plugins": lane.configuration(0)}
    containerd = Containerd(
        netns=lane.node_name, directory=directory, bin_dir=bin_dir, conflist=json.dumps(network)
    )
    try:
        _runtimes[lane.name] = stack.enter_context(containerd).runtime
    except (AssertionError, OSError) as error:
        raise MissingError(str(error).splitlines()[0]) from error


def run_and_stop(lane: Lane, _turn: int) -> dict[str, Call]:
    """Run a pod and stop it; what the plugins had of the processors is not told apart from containerd's."""
    lane.enter()
    runtime = _runtimes[lane.name]
    name = f"pod-{next(_numbers)}"
    begun = time.perf_counter()
    sandbox = runtime.run_pod_sandbox(name)
    running = time.perf_counter()
    runtime.stop_pod_sandbox(sandbox)
    stopped = time.perf_counter()
    runtime.remove_pod_sandbox(sandbox)
    return {
        "RunPodSandbox": Call(wall=running - begun, cpu=0.0),
        "StopPodSandbox": Call(wall=stopped - running, cpu=0.0),
    }
