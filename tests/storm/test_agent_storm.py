"""Many calls at once through an agent that is killed in the middle: afterwards nothing is left."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.conftest import install
from tests.harness.agents import start_agent
from tests.harness.networks import dual_stack

if TYPE_CHECKING:
    from tests.harness.node import Node, Pod

CALLS, CLIENTS, PODS = 500, 50, 50


@pytest.fixture(params=["python", "c"])
def shim_node(request: pytest.FixtureRequest, plain_node: Node) -> Node:
    plain_node.bin_dir = plain_node.tmp / "bin"
    options = ["--shim"] if request.param == "c" else []
    install(plain_node.bin_dir, plain_node.tmp / "a.sock", *options)
    return plain_node


def test_500_calls_and_an_agent_killed_in_the_middle_leave_nothing(shim_node: Node) -> None:
    """Each pod's calls come one after another, as the specification has it; the pods' interleave."""
    node, config = shim_node, dual_stack(shim_node)
    pods = [node.pod() for _ in range(PODS)]
    done = threading.Semaphore(0)

    def client(pod: Pod) -> list[tuple[int, str]]:
        answers = []
        for _ in range(CALLS // CLIENTS):
            answer = node.call(random.choice(["ADD", "DEL"]), config, pod)
            answers.append((answer.json["code"], answer.json["msg"]) if answer.status else (0, ""))
            done.release()
        return answers

    with ThreadPoolExecutor(CLIENTS) as pool:
        with start_agent(node.tmp / "a.sock") as agent:
            clients = [pool.submit(client, pod) for pod in pods]
            for _ in range(CALLS // 2):
                done.acquire()
            agent.kill()
        with start_agent(node.tmp / "a.sock") as agent:
            answers = [answer for each in clients for answer in each.result()]
            # 4: an ADD of what is attached or still holds its address; 11: the agent was gone or killed.
            assert [answer for answer in answers if answer[0] not in {0, 4, 11}] == []
            assert [code for code, _ in answers].count(0) > CALLS // 3
            list(pool.map(lambda pod: node.delete(config, pod), pods))
            assert agent.stop() == 0
    assert node.held() == {}
    assert [name for name in node.links() if name.startswith("veth")] == []
    assert [pod.name for pod in pods if "eth0" in pod.links()] == []


def test_a_restart_loses_no_packet_of_a_running_pod(shim_node: Node) -> None:
    node, config = shim_node, dual_stack(shim_node)
    pods = [node.pod(), node.pod()]
    with start_agent(node.tmp / "a.sock") as agent, ThreadPoolExecutor() as pool:
        results = [node.add(config, pod) for pod in pods]
        address = results[1]["ips"][0]["address"].split("/")[0]
        flood = pool.submit(pods[0].run, "ping", "-n", "-q", "-i", "0.002", "-c", "1000", address)
        time.sleep(0.5)
        assert agent.stop() == 0
        with start_agent(node.tmp / "a.sock"):
            said = flood.result().stdout
            assert "1000 packets transmitted, 1000 received, 0% packet loss" in said
            for pod in pods:
                node.delete(config, pod)
    assert node.held() == {}
