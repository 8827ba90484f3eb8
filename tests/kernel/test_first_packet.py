"""The first packet after ADD is not lost: from the pod, to the pod, on a new bridge and an old one.

A neighbour lookup whose first packet is dropped is repeated by the kernel after a second, so
that an answer within 300 ms says that nothing was lost. Each pod is a fresh namespace and its
sockets are made before ADD, so that they send as soon as the answer is there.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from cni_plugin.attach import bridge
from cni_plugin.attach.veth import BridgeConnection
from cni_plugin.contract.dispatch import answer
from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.kernel.link import get_link
from cni_plugin.kernel.netns import open_host
from cni_plugin.plugins import PLUGINS
from tests.harness.networks import address_of, environment, gateway_of, inside, network, planned, ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.node import Node, Pod, Space

    Add = Callable[[Node, dict[str, Any], Pod], dict[str, Any]]

PODS, PODS_PER_BRIDGE = 25, 5
LIMIT = 0.3  # seconds
PORT = 9999
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass
class Mailbox:
    """A UDP socket on every address of a namespace."""

    socket: socket.socket

    def send(self, address: str, text: str) -> None:
        self.socket.sendto(text.encode(), (address, PORT))

    def receives(self, wanted: str, within: float = LIMIT) -> bool:
        """Tell whether `wanted` is among what arrives in time."""
        while select.select([self.socket], [], [], within)[0]:
            if self.socket.recv(100) == wanted.encode():
                return True
        return False


def open_mailbox(space: Space, family: int) -> Mailbox:
    with inside(space):
        made = socket.socket(FAMILY[family], socket.SOCK_DGRAM)
    made.bind(("", PORT))
    return Mailbox(made)


def add_in_process(node: Node, config: dict[str, Any], pod: Pod) -> dict[str, Any]:
    """ADD with no process around it, as the agent will: the answer is there at once."""
    with inside(node):
        reply = answer(environment(node, "ADD", pod), json.dumps(config).encode(), PLUGINS["podwire"])
    assert reply.status == 0, reply.stdout
    return json.loads(reply.stdout)


def add_by_executable(node: Node, config: dict[str, Any], pod: Pod) -> dict[str, Any]:
    """ADD by the executable, its answer read without waiting for the process to end."""
    argv = ["nsenter", f"--net={node.path}", str(node.bin_dir / "podwire")]
    pipe = subprocess.PIPE
    process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, env=environment(node, "ADD", pod))
    with process.stdin as stdin:
        stdin.write(json.dumps(config).encode())
    said = b""
    while not said.endswith(b"\n}\n") and (piece := os.read(process.stdout.fileno(), 65536)):
        said += piece
    processes.append(process)
    return json.loads(said)


processes: list[subprocess.Popen[bytes]] = []


@contextmanager
def until_processes_end() -> Iterator[None]:
    """Wait for the processes behind the answers when these have been used."""
    try:
        yield
    finally:
        while processes:
            with processes.pop() as process:
                process.wait(timeout=10)


def config_of(node: Node, family: int, bridge: int, **more: Any) -> dict[str, Any]:
    subnet = {4: f"10.22.{bridge}.0/24", 6: f"fd00:22:{bridge}::/64"}[family]
    keys = {"name": f"net{bridge}", "bridge": f"cni{bridge}", "isDefaultGateway": True}
    return network(node, [{"subnet": subnet}], **keys, **more)


@until_processes_end()
def lost_packets(node: Node, family: int, add: Add, **keys: Any) -> list[str]:
    """Return what did not arrive of: pod to gateway, gateway to pod, pod to the pod before it.

    The pod before is on the same bridge, or behind the node on another one.
    """
    lost = []
    pods = [node.pod() for _ in range(PODS)]
    here, boxes = open_mailbox(node, family), [open_mailbox(pod, family) for pod in pods]
    before: str | None = None
    for number, (pod, box) in enumerate(zip(pods, boxes, strict=True)):
        # Every other bridge is filled while br_netfilter is off.
        node.set_filtering(number // PODS_PER_BRIDGE % 2)
        result = add(node, config_of(node, family, number // PODS_PER_BRIDGE, **keys), pod)
        box.send(gateway_of(result, family), f"{number} up")
        here.send(address_of(result, family), f"{number} down")
        if before:
            box.send(before, f"{number} across")
        before = address_of(result, family)
        found = {
            "to the gateway": here.receives(f"{number} up"),
            "from the gateway": box.receives(f"{number} down"),
            "to another pod": number == 0 or boxes[number - 1].receives(f"{number} across"),
        }
        lost += [f"pod {number} {way}" for way, arrived in found.items() if not arrived]
    for mailbox in (here, *boxes):
        mailbox.socket.close()
    return lost


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("add", [add_in_process, add_by_executable], ids=["in-process", "executable"])
def test_first_packet_is_not_lost(node: Node, family: int, add: Add) -> None:
    assert lost_packets(node, family, add) == []


@contextmanager
def busy_kernel() -> Iterator[None]:
    """Make and delete links in a namespace of its own, so that the kernel's work queues come late."""
    loop = "while ip link add veth0 type veth peer veth1 && ip link del veth0; do :; done"
    with subprocess.Popen(["unshare", "--net", "sh", "-c", loop]) as process:
        yield
        process.kill()


@pytest.mark.parametrize("family", [4, 6])
def test_first_packet_to_a_routed_pod_is_not_lost(node: Node, family: int) -> None:
    own, subnet = {4: ("192.0.2.1/32", "10.22.0.0/24"), 6: ("2001:db8::1/128", "fd00:22::/64")}[family]
    node.run("ip", "addr", "add", own, "dev", "lo")
    config = network(node, [{"subnet": subnet}], mode="routed")
    here, lost = open_mailbox(node, family), []
    with busy_kernel(), here.socket:
        for pod in [node.pod() for _ in range(PODS)]:
            box = open_mailbox(pod, family)
            with box.socket:
                here.send(address_of(add_in_process(node, config, pod), family), pod.name)
                if not box.receives(pod.name):
                    lost.append(pod.name)
    assert lost == []


def attach_with_interface_down(node: Node, pod: Pod) -> dict[str, Any]:
    """Make an attachment whose port cannot forward yet, and return its configuration."""
    config = network(node, disableContainerInterface=True)
    node.add(config, pod)
    return config


def wait_for_port(node: Node, config: dict[str, Any], pod: Pod) -> str:
    """Do what ADD does before it announces and answers; return the state of the port afterwards."""
    with planned(node, config, pod) as (_, plan), open_host() as host:
        connection = BridgeConnection(bridge=get_link(host.netlink, plan.bridge), mtu=1500)
        bridge._wait_until_forwarding(plan, connection, host)
    return ports(node)[plan.pod.attachment.host_ifname]["state"]


def test_add_waits_for_the_port_and_not_for_time(node: Node) -> None:
    # On most machines the port forwards before ADD looks the first time: here it is made late.
    pod = node.pod()
    config = attach_with_interface_down(node, pod)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for_port, node, config, pod)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.5)
        pod.run("ip", "link", "set", "eth0", "up")
        assert waiting.result(timeout=5) == "forwarding"


def test_add_gives_up_on_a_port_that_never_forwards(node: Node) -> None:
    pod = node.pod()
    config = attach_with_interface_down(node, pod)
    with pytest.raises(CNIError, match=r"wanted port veth.* forwarding") as raised:
        wait_for_port(node, config, pod)
    assert raised.value.code == Code.TRY_AGAIN_LATER
