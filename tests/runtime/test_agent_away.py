"""A real containerd asks and makes pods while the agent behind the C shim is replaced, stopped or killed."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import install
from tests.harness.agents import start_agent
from tests.harness.networks import eventually
from tests.harness.runtime import conflists, state
from tests.harness.runtime.cri import RuntimeServiceError
from tests.runtime.test_cnitool import cnitool_on
from tests.runtime.test_containerd import (
    AT_ONCE,
    assert_nothing_left,
    containerd_on,
    stop_pods,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.agents import Agent
    from tests.harness.node import Node
    from tests.harness.runtime.containerd import Containerd
    from tests.harness.runtime.tools import Age


@pytest.fixture
def shim_node(plain_node: Node) -> Node:
    """Return a node whose executables are the C shim, for an agent at `a.sock` in its directory."""
    plain_node.bin_dir = plain_node.tmp / "shim"
    install(plain_node.bin_dir, plain_node.tmp / "a.sock", "--shim")
    return plain_node


def agent_on(node: Node, *options: object) -> Agent:
    return start_agent(node.tmp / "a.sock", *options, inside=node)


@contextmanager
def asked_all_the_time(containerd: Containerd) -> Iterator[list[list[str]]]:
    """Ask for the runtime's status, as a kubelet does, but without a pause; yield the answers."""
    answers: list[list[str]] = []
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.1):
            answers.append(containerd.runtime.unready())

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield answers
        finally:
            done.set()
        asking.result()


def make_pods(containerd: Containerd, pool: ThreadPoolExecutor, count: int) -> Callable[[], float]:
    """Begin to make pods; return what waits for them and returns the seconds that all took."""
    begun = time.monotonic()
    ended: list[float] = []

    def make(number: int) -> None:
        containerd.runtime.run_pod_sandbox(f"pod-{number}")
        ended.append(time.monotonic())

    making = [pool.submit(make, number) for number in range(count)]

    def wait() -> float:
        for each in making:
            each.result()
        return max(ended) - begun

    return wait


def stop_all(containerd: Containerd) -> None:
    stop_pods(
        containerd,
        [containerd.runtime.pod_sandbox_status(each) for each in containerd.runtime.list_pod_sandbox()],
    )


def test_forty_pods_and_every_status_are_well_while_one_agent_takes_over_from_another(
    shim_node: Node, record_property: Callable[[str, object], None]
) -> None:
    node, count = shim_node, 40
    with (
        ExitStack() as stack,
        ThreadPoolExecutor(AT_ONCE) as pool,
        agent_on(node) as agent,
        containerd_on(node, conflists.with_families(4, 6)) as containerd,
        asked_all_the_time(containerd) as answers,
    ):
        quiet = make_pods(containerd, pool, count)()
        stop_all(containerd)
        wait = make_pods(containerd, pool, count)
        for _ in range(2):
            ready = agent.count("ready")
            taking = stack.enter_context(agent_on(node, "--take-over"))
            assert eventually(lambda: agent.count("ready"), ready + 1, within=30) == ready + 1  # noqa: B023
            assert agent.stop() == 0
            agent = taking  # noqa: PLW2901
        busy = wait()
        assert {tuple(each) for each in answers} == {()}
        refused = [line for line in agent.lines() if "verb=" in line and not line.endswith("outcome=done")]
        assert refused == []
        stop_all(containerd)
        assert_nothing_left(containerd, node)
        record_property(
            "figures",
            f"{count} pods through containerd 2: {quiet:.1f} s, while two agents take over: {busy:.1f} s; "
            f"{len(answers)} of {len(answers)} statuses well",
        )


@pytest.mark.parametrize("age", ["old", "new"])
def test_pods_wait_for_an_agent_that_was_stopped_and_none_is_refused(shim_node: Node, age: Age) -> None:
    node, count = shim_node, 20
    with (
        ThreadPoolExecutor(AT_ONCE) as pool,
        agent_on(node) as agent,
        containerd_on(node, conflists.with_families(4, 6), age) as containerd,
        asked_all_the_time(containerd) as answers,
    ):
        wait = make_pods(containerd, pool, count)
        assert eventually(lambda: len(state.reserved(node.data_dir)) > 4, wanted=True, within=30)
        assert agent.stop() == 0
        asked = len(answers)
        assert eventually(lambda: len(answers) > asked + 10, wanted=True, within=30)
        with agent_on(node):
            wait()
            assert {tuple(each) for each in answers} == {()}
            stop_all(containerd)
            assert_nothing_left(containerd, node)


@pytest.mark.parametrize("age", ["old", "new"])
def test_an_agent_that_is_killed_loses_the_calls_that_it_had_begun_and_no_other(
    shim_node: Node, age: Age, record_property: Callable[[str, object], None]
) -> None:
    """A runtime tries those again, as a kubelet has it do, once it has taken back what there was."""
    node, count, lost = shim_node, 30, list[str]()

    def make(number: int) -> None:
        try:
            containerd.runtime.run_pod_sandbox(f"pod-{number}")
        except RuntimeServiceError as error:
            lost.append(str(error))
            containerd.runtime.run_pod_sandbox(f"pod-{number}-again")

    with (
        ThreadPoolExecutor(AT_ONCE) as pool,
        agent_on(node) as agent,
        containerd_on(node, conflists.with_families(4, 6), age) as containerd,
    ):
        begun = time.monotonic()
        making = [pool.submit(make, number) for number in range(count)]
        assert eventually(lambda: len(state.reserved(node.data_dir)) > 4, wanted=True, within=30)
        agent.kill()
        with agent_on(node):
            for each in making:
                each.result()
            seconds = time.monotonic() - begun
            assert len(lost) <= AT_ONCE
            assert all("it may have been killed" in each for each in lost)
            stop_all(containerd)
            assert_nothing_left(containerd, node)
    record_property(
        "figures",
        f"{count} pods through containerd ({age}), agent killed meanwhile: {seconds:.1f} s, {len(lost)} lost",
    )


def test_a_node_is_ready_when_its_configuration_is_there_and_as_long_as_status_is_well(
    shim_node: Node,
) -> None:
    node, conflist = shim_node, conflists.with_families(4, 6)
    bridge = json.loads(conflist.read_text())["plugins"][0]["bridge"]
    with agent_on(node) as agent, containerd_on(node, conflist) as containerd:
        runtime = containerd.runtime
        written = node.tmp / "containerd/net.d/10-test.conflist"
        # containerd looks again when a file leaves a name in its directory, not when one comes from another.
        kept = written.rename(written.with_name(".kept"))
        assert eventually(lambda: "not initialized" in str(runtime.unready()), wanted=True, within=10)
        kept.rename(written)
        assert eventually(runtime.unready, [], within=10) == []
        node.run("ip", "link", "add", bridge, "type", "veth", "peer", "name", "other")
        [lacking] = runtime.unready()
        assert lacking.startswith("NetworkReady: ")
        assert f'"bridge" {bridge}: wanted a bridge' in lacking
        assert "error 50" in agent.lines()[-1]
        node.run("ip", "link", "delete", bridge)
        assert runtime.unready() == []
        agent.kill()
        assert runtime.unready() == []
        forget(node)
        [lacking] = runtime.unready()
        assert f"podwire agent at {node.tmp}/a.sock: wanted an answer" in lacking
        with agent_on(node):
            assert runtime.unready() == []


def forget(node: Node) -> None:
    """Let the agent have been away for more than two minutes."""
    seen = node.tmp / "a.sock.seen"
    boot, seconds = seen.read_text().split()
    seen.write_text(f"{boot} {int(seconds) - 130}\n")


def test_a_pods_whole_life_in_cni_1_1_with_a_collection(shim_node: Node) -> None:
    """By libcni, which has every verb of it; its own collection keeps nothing."""
    node, pod = shim_node, shim_node.pod()
    conflist: Path = conflists.with_families(4, 6)
    with agent_on(node) as agent, cnitool_on(node, pod, conflist) as cnitool:
        cnitool("status")
        result = json.loads(cnitool("add").stdout)
        assert result["cniVersion"] == "1.1.0"
        cnitool("check")
        collect_all_but_one(node, json.loads(conflists.moved(conflist, node)))
        assert sorted(state.addresses(pod, "eth0")) == state.reserved(node.data_dir)
        cnitool("gc")
        verbs = [line.partition("verb=")[2].split()[0] for line in agent.lines() if "verb=" in line]
        assert verbs == ["ADD", "CHECK", "GC", "DEL", "GC"]
        assert cnitool("del").stdout == ""
    assert state.veths(node) == []
    assert state.reserved(node.data_dir) == []


def collect_all_but_one(node: Node, conflist: dict[str, Any]) -> None:
    """Send the GC of a runtime that has the one pod there is, where another has left an address."""
    store = node.data_dir / conflist["name"]
    [owner] = {path.read_text().splitlines()[0] for path in store.iterdir() if ":" in path.name}
    (store / "10.22.0.77").write_text("dead\r\neth0")
    config = conflist["plugins"][0] | {"name": conflist["name"], "cniVersion": "1.1.0"}
    kept = [{"containerID": owner, "ifname": "eth0"}]
    answer = node.call("GC", config | {"cni.dev/valid-attachments": kept})
    assert (answer.status, answer.stdout) == (0, "")
    assert not (store / "10.22.0.77").exists()
