"""A machine that was started anew: what its dead boot holds stops nobody, with and without Go beside us."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipam import boot_mark
from tests.harness.answers import assert_ok, assert_refused, refusal
from tests.harness.networks import network

if TYPE_CHECKING:
    from tests.harness.node import Node, Pod

ANOTHER = b"1b4e28ba-2fa1-11d2-883f-b9a761bde3fb"
ROOT = Path(__file__).parents[2]
DEBIAN = Path("/usr/lib/cni")
# Three addresses, 10.22.0.2 to .4.
SMALL = [{"subnet": "10.22.0.0/24", "rangeEnd": "10.22.0.4"}]


def reboot(node: Node, *pods: Pod) -> None:
    """Leave of these pods what a power cut leaves: their files, which say in which boot they were made."""
    for pod in pods:
        pod.run("ip", "link", "del", "eth0")
        pod.remove()
    dead = {pod.container_id for pod in pods}
    for name, content in node.held().items():
        if content.split()[0] in dead:
            os.setxattr(node.data_dir / "test" / name, boot_mark.BOOT_MARK, ANOTHER)


def go(node: Node, command: str, config: dict[str, Any], pod: Pod) -> list[str]:
    """Run the reference host-local on the same directory."""
    plugin = {**config, "cniVersion": "1.0.0", "ipam": {**config["ipam"], "type": "host-local"}}
    answer = node.call(command, plugin, pod, program=str(DEBIAN / "host-local"))
    assert answer.status == 0, answer.stdout
    return [ip["address"] for ip in answer.json["ips"]] if answer.stdout else []


def test_a_pool_that_the_dead_boot_has_filled_serves_the_pods_of_this_one(node: Node) -> None:
    config = network(node, SMALL)
    dead, pods = ([node.pod() for _ in range(3)] for _ in range(2))
    for pod in dead:
        node.add(config, pod)
    assert refusal(node.call("STATUS", config))[0] == 50
    reboot(node, *dead)
    assert_ok(node.call("STATUS", config))
    for pod in pods:
        node.add(config, pod)
    taken = node.held()
    assert sorted(taken) == ["10.22.0.2", "10.22.0.3", "10.22.0.4"]
    for pod in dead:  # the runtime comes round to its dead sandboxes late
        node.delete(config, pod, environ={"CNI_NETNS": ""})
    assert node.held() == taken
    assert_refused(node.call("ADD", config, node.pod()), 11, "no IP addresses available")


def test_a_living_pod_beside_those_of_the_dead_boot_keeps_its_address(node: Node) -> None:
    config, dead, living, pods = network(node, SMALL), node.pod(), node.pod(), [node.pod() for _ in range(2)]
    for pod in (dead, living):
        node.add(config, pod)
    (held,) = [name for name, content in node.held().items() if living.container_id in content]
    reboot(node, dead)
    for pod in pods:
        node.add(config, pod)
    assert living.container_id in node.held()[held]
    assert living.addresses("eth0") == [f"{held}/24"]
    assert not any(dead.container_id in content for content in node.held().values())


def test_go_and_we_share_a_directory_across_a_boot(node: Node) -> None:
    config, pods = network(node, SMALL), [node.pod() for _ in range(5)]
    node.add(config, pods[0])
    go(node, "ADD", config, pods[1])
    node.add(config, pods[2])
    held = node.held()
    # What Go has written bears no mark, so nothing proves it dead until somebody has marked it.
    assert refusal(node.call("ADD", config, pods[3]))[0] == 11
    files = [node.data_dir / "test" / name for name in held]
    assert {os.getxattr(file, boot_mark.BOOT_MARK) for file in files} == {boot_mark.current()}
    for file in files:
        os.setxattr(file, boot_mark.BOOT_MARK, ANOTHER)
    # Go reads and releases a file with a mark as any other.
    go(node, "DEL", config, pods[0])
    (gos,) = go(node, "ADD", config, pods[3])
    result = node.add(config, pods[4])
    owners = {gos: pods[3], result["ips"][0]["address"]: pods[4]}
    assert node.held() == {
        each.removesuffix("/24"): f"{pod.container_id}\neth0" for each, pod in owners.items()
    }


def test_a_boot_id_that_somebody_put_over_the_kernels_proves_nothing(tmp_path: Path) -> None:
    fake = tmp_path / "boot_id"
    fake.write_text("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb\n")
    script = f'mount --bind {fake} {boot_mark._BOOT_ID} && exec {sys.executable} -c "$0"'
    asked = "from ipam import boot_mark; assert boot_mark.current() == b'', boot_mark.current()"
    subprocess.run(["unshare", "--mount", "sh", "-c", script, asked], check=True, cwd=ROOT)
