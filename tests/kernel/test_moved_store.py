"""A network's directory that somebody moved aside while pods live: nobody is given their addresses."""

from __future__ import annotations

import shutil
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.networks import V4, V6, dual_stack, network
from tests.harness.storm.invariants import find_violations

if TYPE_CHECKING:
    from tests.harness.node import Node, Pod


@pytest.fixture(params=["bridge", "routed"])
def config(node: Node, request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "bridge":
        return dual_stack(node)
    made = network(node, V4, V6, mode="routed")
    del made["bridge"]
    return made


def added(node: Node, config: dict[str, Any], pod: Pod) -> list[str]:
    return [ip["address"].partition("/")[0] for ip in node.add(config, pod)["ips"]]


def attached(pods: dict[str, list[str]]) -> dict[tuple[str, str], list[str]]:
    return {(container_id, "eth0"): addresses for container_id, addresses in pods.items()}


def test_the_addresses_of_living_pods_are_held_again(node: Node, config: dict[str, Any]) -> None:
    pods = [node.pod() for _ in range(4)]
    told = {pod.container_id: added(node, config, pod) for pod in pods[:3]}
    node.delete(config, pods[0])
    del told[pods[0].container_id]
    (node.data_dir / "test").rename(node.data_dir / "aside")
    told[pods[3].container_id] = added(node, config, pods[3])
    assert find_violations(node.data_dir, "test", attached(told)) == []
    assert list((node.data_dir / ".podwire").glob("*.rebuild")) == []
    for pod in pods[1:]:
        node.delete(config, pod)
    assert node.held() == {}


def test_many_adds_at_once_after_the_directory_is_gone_share_one_that_is_whole(node: Node) -> None:
    config = dual_stack(node)
    pods = [node.pod() for _ in range(8)]
    told = {pod.container_id: added(node, config, pod) for pod in pods[:3]}
    shutil.rmtree(node.data_dir / "test")

    def add(pod: Pod) -> None:
        told[pod.container_id] = added(node, config, pod)

    threads = [threading.Thread(target=add, args=(pod,)) for pod in pods[3:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list((node.data_dir / ".podwire").glob("*.rebuild")) == []
    assert find_violations(node.data_dir, "test", attached(told)) == []


def test_what_a_killed_rebuild_left_is_no_reservation(node: Node) -> None:
    config, pods = dual_stack(node), [node.pod() for _ in range(2)]
    told = {pods[0].container_id: added(node, config, pods[0])}
    (node.data_dir / "test").rename(node.data_dir / "aside")
    left = node.data_dir / ".podwire" / "test.rebuild"
    left.mkdir()
    (left / "10.22.0.99").write_text("dead\r\neth0")
    (left / "lock").touch()
    told[pods[1].container_id] = added(node, config, pods[1])
    assert find_violations(node.data_dir, "test", attached(told)) == []
