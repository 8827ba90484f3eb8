"""`podwire gc` beside a real containerd: what a lost runtime has left goes, what it runs stays."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import in_process
from tests.harness.garbage import GC, counts
from tests.harness.networks import eventually, reference
from tests.harness.runtime import conflists, state
from tests.harness.runtime.containerd import Containerd
from tests.runtime.test_containerd import (
    SandboxNetwork,
    assert_nothing_left,
    bin_dir_beside_reference_plugins,
    start_pods,
    stop_pods,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node
    from tests.harness.runtime.cri import Sandbox

pytestmark = in_process


@pytest.fixture
def bin_dir_of(node: Node) -> Path:
    return bin_dir_beside_reference_plugins(node)


def go_conflist(node: Node) -> str:
    """Return a network of the reference plugins alone, in the node's store."""
    config = reference(node)
    plugin = {key: value for key, value in config.items() if key not in {"name", "cniVersion"}}
    return json.dumps({"cniVersion": "1.0.0", "name": "test", "plugins": [plugin]})


@contextmanager
def containerd_on(node: Node, bin_dir: Path, conflist: str, name: str = "one") -> Iterator[Containerd]:
    directory = node.tmp / name
    with Containerd(netns=node.name, directory=directory, bin_dir=bin_dir, conflist=conflist) as containerd:
        yield containerd


def shims_of(containerd: Containerd, pod: Sandbox) -> list[str]:
    """Return the processes that hold a pod, without which it is dead."""
    lines = {
        path.parent.name: path.read_text() for path in containerd.machine.root.glob("proc/[0-9]*/cmdline")
    }
    return [pid for pid, line in lines.items() if pod.sandbox_id in line]


def gc(node: Node, containerd: Containerd, directory: str = "one") -> dict[str, Any]:
    socket = containerd.machine.root / "run/containerd/containerd.sock"
    words = ["--json", "--grace", "0", "--conf-dir", str(node.tmp / directory / "net.d")]
    done = node.run(*GC, *words, "--runtime-endpoint", f"unix://{socket}", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("form", ["podwire", "go"])
def test_what_a_lost_runtime_has_left_is_reclaimed_and_what_the_next_one_runs_is_not(
    node: Node, bin_dir_of: Path, form: str
) -> None:
    """The machine of the first one ends, with its processes, its state, and the named namespaces."""
    conflist = go_conflist(node)
    if form == "podwire":
        conflist = conflists.moved(conflists.with_families(4, 6), node)
    with containerd_on(node, bin_dir_of, conflist) as containerd:
        start_pods(containerd, 3)
        assert gc(node, containerd)["items"] == []
        lost = state.reserved(node.data_dir)
    assert len(lost) == 6
    assert eventually(lambda: state.veths(node), [], within=20) == []
    with containerd_on(node, bin_dir_of, conflist, "two") as containerd:
        pods = start_pods(containerd, 2)
        report = gc(node, containerd, "two")
        assert counts(report) == (3, 3, 0)
        assert {item["kind"] for item in report["items"]} == {"kernel" if form == "podwire" else "runtime"}
        assert state.reserved(node.data_dir) == sorted(a for pod in pods for a in pod.addresses)
        for pod, other in (pods, pods[::-1]):
            for address in other.addresses:
                SandboxNetwork(containerd, pod).run("ping", "-c1", "-W2", address)
        assert gc(node, containerd, "two")["items"] == []
        stop_pods(containerd, pods)
        assert_nothing_left(containerd, node)


def test_a_sandbox_that_died_behind_the_runtimes_back_is_its_affair_until_it_forgets_it(
    node: Node, bin_dir_of: Path
) -> None:
    conflist = conflists.moved(conflists.with_families(4, 6), node)
    with containerd_on(node, bin_dir_of, conflist) as containerd:
        dead, living = start_pods(containerd, 2)
        containerd.machine.run("kill", "-KILL", *shims_of(containerd, dead))
        containerd.machine.run("umount", dead.netns)
        assert eventually(lambda: len(state.veths(node)), 1, within=20) == 1
        assert gc(node, containerd)["items"] == []
        assert len(state.reserved(node.data_dir)) == 4
        stop_pods(containerd, [dead])
        assert state.reserved(node.data_dir) == sorted(living.addresses)
        stop_pods(containerd, [living])


def test_pods_that_start_and_stop_while_it_collects_all_the_time_lose_nothing(
    node: Node, bin_dir_of: Path
) -> None:
    conflist = conflists.moved(conflists.with_families(4, 6), node)
    with containerd_on(node, bin_dir_of, conflist) as containerd:
        sandbox = containerd.runtime.run_pod_sandbox("staying")
        staying = containerd.runtime.pod_sandbox_status(sandbox)
        done, reports = threading.Event(), []

        def collect() -> None:
            while not done.is_set():
                reports.append(gc(node, containerd))

        collector = threading.Thread(target=collect)
        collector.start()
        try:
            for _ in range(3):
                pods = start_pods(containerd, 3)
                for pod in (staying, *pods):
                    place = SandboxNetwork(containerd, pod)
                    assert sorted(pod.addresses) == sorted(state.addresses(place, "eth0"))
                held = set(state.reserved(node.data_dir))
                assert {address for pod in (staying, *pods) for address in pod.addresses} <= held
                stop_pods(containerd, pods)
        finally:
            done.set()
            collector.join()
        assert len(reports) > 3
        stop_pods(containerd, [staying])
        assert_nothing_left(containerd, node)
