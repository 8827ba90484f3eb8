"""A real containerd starts and stops pods through our executable, with the configurations as shipped."""

from __future__ import annotations

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.conftest import in_process
from tests.harness.runtime import conflists, image, state, tools
from tests.harness.runtime.containerd import Containerd
from tests.harness.runtime.cri import RuntimeServiceError
from tests.harness.runtime.drop_in import PathSpace
from tests.harness.services import REFUSED, ask, offering

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.harness.node import Node
    from tests.harness.runtime.cri import Sandbox

AT_ONCE = 8
every_age = pytest.mark.parametrize("age", tools.AGES)


class SandboxNetwork:
    """Runs commands in the network of a pod of containerd."""

    def __init__(self, containerd: Containerd, sandbox: Sandbox) -> None:
        self._containerd = containerd
        self.addresses = sandbox.addresses
        self._sandbox = sandbox

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return self._containerd.run_in_pod(self._sandbox, *argv)


@contextmanager
def containerd_on(node: Node, conflist: Path, age: tools.Age = "new") -> Iterator[Containerd]:
    with Containerd(
        netns=node.name,
        directory=node.tmp / "containerd",
        bin_dir=bin_dir_beside_reference_plugins(node),
        conflist=conflists.moved(conflist, node),
        age=age,
    ) as containerd:
        yield containerd


def bin_dir_beside_reference_plugins(node: Node) -> Path:
    """Containerd takes plugins from one directory, and calls `loopback` for every pod."""
    directory = node.tmp / "bin"
    directory.mkdir()
    reference = tools.reference_plugins(tools.NEW_PLUGINS)
    plugins = {path.name: path for source in (reference, node.bin_dir) for path in source.iterdir()}
    plugins["portmap"] = plugins["podwire"]
    for name, path in plugins.items():
        (directory / name).symlink_to(path)
    return directory


def start_pods(containerd: Containerd, count: int) -> list[Sandbox]:
    names = [f"pod-{number}" for number in range(count)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ids = list(pool.map(containerd.runtime.run_pod_sandbox, names))
        return list(pool.map(containerd.runtime.pod_sandbox_status, ids))


def stop_pods(containerd: Containerd, pods: Iterable[Sandbox]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda pod: containerd.runtime.stop_pod_sandbox(pod.sandbox_id), pods))
        list(pool.map(lambda pod: containerd.runtime.remove_pod_sandbox(pod.sandbox_id), pods))


def ping_all(pairs: Iterable[tuple[state.Runs, str]]) -> None:
    """Send one packet each, with no second try: the first must arrive."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda pair: pair[0].run("ping", "-c1", "-W2", pair[1]), pairs))


def assert_nothing_left(containerd: Containerd, node: Node) -> None:
    assert state.veths(node) == []
    assert state.reserved(node.data_dir) == []
    assert containerd.runtime.list_pod_sandbox() == []
    assert containerd.named_namespaces() == []
    # A shim answers before it ends.
    deadline = time.monotonic() + 10
    while (left := containerd.machine.processes()) != ["containerd"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == ["containerd"]


@every_age
def test_twenty_dual_stack_pods_reach_each_other_and_the_node_and_leave_nothing(
    node: Node, age: tools.Age
) -> None:
    with containerd_on(node, conflists.with_families(4, 6), age) as containerd:
        pods = start_pods(containerd, 20)
        places = [SandboxNetwork(containerd, pod) for pod in pods]
        assert [sorted(pod.addresses) for pod in pods] == [
            sorted(state.addresses(place, "eth0")) for place in places
        ]
        assert len({address for pod in pods for address in pod.addresses}) == 40
        gateways = state.addresses(node)
        assert len(gateways) == 2
        # Each pod to its next two, so that every port of the bridge both asks and answers.
        ring = zip(places, places[1:] + places[:1], places[2:] + places[:2], strict=True)
        targets = [(one, [*second.addresses, *third.addresses, *gateways]) for one, second, third in ring]
        for switch in (0, 1):
            node.set_filtering(switch)
            ping_all((place, address) for place, addresses in targets for address in addresses)
        ping_all(zip(itertools.repeat(node), (address for pod in pods for address in pod.addresses)))
        stop_pods(containerd, pods)
        assert_nothing_left(containerd, node)


@pytest.mark.parametrize("conflist", conflists.shipped(), ids=lambda path: path.stem)
def test_a_container_reaches_its_gateways_with_every_shipped_conflist(node: Node, conflist: Path) -> None:
    with containerd_on(node, conflist) as containerd:
        [pod] = start_pods(containerd, 1)
        assert sorted(pod.addresses) == sorted(state.addresses(SandboxNetwork(containerd, pod), "eth0"))
        container = containerd.runtime.start_container("ping", sandbox_id=pod.sandbox_id, image=image.NAME)
        for gateway in state.addresses(node):
            output = containerd.runtime.exec_sync(container, "ping", "-c1", "-W2", gateway)
            assert output.exit_code == 0, output
        stop_pods(containerd, [pod])
        assert_nothing_left(containerd, node)


@in_process
@every_age
def test_a_pod_is_as_fast_as_its_annotations_say(node: Node, age: tools.Age) -> None:
    """The runtime's words as it says them: capitals, and a burst of 2^32 - 1."""
    annotations = {f"kubernetes.io/{way}-bandwidth": "10M" for way in ("ingress", "egress")}
    with containerd_on(node, conflists.with_families(4, 6), age) as containerd:
        sandbox = containerd.runtime.run_pod_sandbox("slow", annotations=annotations)
        pod = containerd.runtime.pod_sandbox_status(sandbox)
        found = node.run("tc", "qdisc", "show").stdout.splitlines()
        buckets = [line for line in found if line.startswith("qdisc tbf")]
        assert ["rate 10Mbit burst 64Kb" in line for line in buckets] == [True, True], found
        stop_pods(containerd, [pod])
        assert [name for name in node.links() if name.startswith("bwp")] == []
        assert_nothing_left(containerd, node)


@pytest.mark.parametrize("family", [4, 6])
def test_two_pods_of_one_family_have_no_address_of_the_other_and_reach_each_other(
    node: Node, family: int
) -> None:
    with containerd_on(node, conflists.with_families(family)) as containerd:
        pods = start_pods(containerd, 2)
        assert [len(pod.addresses) for pod in pods] == [1, 1]
        first, second = (SandboxNetwork(containerd, pod) for pod in pods)
        for switch in (0, 1):
            node.set_filtering(switch)
            ping_all([(first, second.addresses[0]), (second, first.addresses[0])])
        stop_pods(containerd, pods)
        assert_nothing_left(containerd, node)


@pytest.mark.parametrize(("plugin", "age"), [("podwire", "new"), ("portmap", "new"), ("podwire", "old")])
def test_a_pod_with_host_ports_is_reached_by_them_until_it_stops(
    node: Node, plugin: str, age: tools.Age
) -> None:
    web = {"protocol": "TCP", "container_port": 80, "host_port": 8080}
    dns = {"protocol": "UDP", "container_port": 53, "host_port": 5353, "host_ip": "127.0.0.1"}
    with containerd_on(node, conflists.with_host_ports(node, plugin), age) as containerd:
        pod = containerd.runtime.run_pod_sandbox("served", web, dns, {"container_port": 81})
        sandbox = containerd.runtime.pod_sandbox_status(pod)
        inside = PathSpace(name=f"{containerd.machine.root}/run/netns/{sandbox.netns.rpartition('/')[2]}")
        with offering(inside, 80, name="web "), offering(inside, 53, name="dns "):
            assert ask(node, "127.0.0.1", 8080).startswith("web ")
            assert ask(node, "127.0.0.1", 5353, "udp").startswith("dns ")
            for address in state.addresses(node):
                assert ask(node, address, 8080) == f"web {address}"
        with pytest.raises(RuntimeServiceError, match=r"host port 8080/tcp .*default/served"):
            containerd.runtime.run_pod_sandbox("second", web)
        stop_pods(containerd, [sandbox])
        assert ask(node, "127.0.0.1", 8080) == REFUSED
        assert " default/" not in node.run("nft", "list", "ruleset").stdout


@in_process
@every_age
def test_crictl_shows_a_pods_addresses_and_stops_it(node: Node, age: tools.Age) -> None:
    with containerd_on(node, conflists.with_families(4, 6), age) as containerd:
        [pod] = start_pods(containerd, 1)
        endpoint = "--runtime-endpoint=unix:///run/containerd/containerd.sock"

        def crictl(*words: str) -> str:
            return containerd.machine.run(str(tools.built("cri-tools") / "crictl"), endpoint, *words).stdout

        shown = json.loads(crictl("inspectp", pod.sandbox_id))["status"]["network"]
        assert (shown["ip"], *(each["ip"] for each in shown["additionalIps"])) == pod.addresses
        crictl("stopp", pod.sandbox_id)
        crictl("rmp", pod.sandbox_id)
        assert_nothing_left(containerd, node)
