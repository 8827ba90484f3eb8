"""CHECK finds each thing that is no longer as ADD left it, and says object, wanted and found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.networks import dual_stack, host_end, routed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.node import Node, Pod


@dataclass(frozen=True)
class Attached:
    """A pod that was attached, and the host's end of its veth."""

    node: Node
    pod: Pod
    veth: str

    def on_node(self, *words: str) -> None:
        self.node.run(*words)

    def in_pod(self, *words: str) -> None:
        self.pod.run(*words)


def rename(name: str) -> Callable[[Attached], None]:
    def change(at: Attached) -> None:
        at.in_pod("ip", "link", "set", name, "down")
        at.in_pod("ip", "link", "set", name, "name", "renamed0")

    return change


def swap_pod_end(at: Attached) -> None:
    at.in_pod("ip", "link", "set", "eth0", "down")
    at.in_pod("ip", "link", "set", "eth0", "name", "old0")
    at.in_pod("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0-far")


def lose_address_file(at: Attached) -> None:
    (at.node.data_dir / "test" / "10.22.0.2").unlink()


def replace_address(run: Callable[..., None], dev: str, wanted: str, found: str) -> None:
    run("ip", "addr", "del", wanted, "dev", dev)
    run("ip", "addr", "add", found, "dev", dev, "nodad")


def bridge_with_another_mac(at: Attached) -> None:
    at.on_node("ip", "link", "set", "cni0", "address", "02:00:00:00:00:01")


MAC = "02:00:00:00:00:01"
# What was broken: how, and the words for the object, what was wanted and what was found.
BROKEN: dict[str, tuple[Callable[[Attached], None], tuple[str, ...]]] = {
    "bridge gone": (lambda at: at.on_node("ip", "link", "del", "cni0"), ("link cni0", "wanted it", "none")),
    "bridge mac": (bridge_with_another_mac, ("link cni0", "wanted MAC", f"found {MAC}")),
    "promisc off": (
        lambda at: at.on_node("ip", "link", "set", "cni0", "promisc", "off"),
        ("bridge cni0", "wanted promiscuous", "found it off"),
    ),
    "host end gone": (
        lambda at: at.on_node("ip", "link", "del", at.veth),
        ("link VETH", "wanted it", "none"),
    ),
    "out of the bridge": (
        lambda at: at.on_node("ip", "link", "set", at.veth, "nomaster"),
        ("link VETH", "wanted it in bridge cni0", "found"),
    ),
    "host end mac": (
        lambda at: at.on_node("ip", "link", "set", at.veth, "address", MAC),
        ("link VETH", "wanted MAC", f"found {MAC}"),
    ),
    "host end mtu": (
        lambda at: at.on_node("ip", "link", "set", at.veth, "mtu", "1499"),
        ("link VETH", "wanted MTU 1500", "found 1499"),
    ),
    "host end down": (
        lambda at: at.on_node("ip", "link", "set", at.veth, "down"),
        ("bridge port VETH", "wanted it forwarding", "found it disabled"),
    ),
    "alias of another": (
        lambda at: at.on_node("ip", "link", "set", at.veth, "alias", "podwire:0000000000000000 test x eth0"),
        ("link VETH", "wanted our veth with alias 'podwire:", "podwire:0000000000000000"),
    ),
    "isolation": (
        lambda at: at.on_node("ip", "link", "set", at.veth, "type", "bridge_slave", "isolated", "off"),
        ("bridge port VETH", "wanted isolated True", "found False"),
    ),
    "pod end gone by name": (rename("eth0"), ("interface eth0", "wanted it", "found none")),
    "pod end is another link": (swap_pod_end, ("interface eth0", "wanted the peer of VETH", "found another")),
    "pod end mac": (
        lambda at: at.in_pod("ip", "link", "set", "eth0", "address", MAC),
        ("link eth0", "wanted MAC", f"found {MAC}"),
    ),
    "pod end mtu": (
        lambda at: at.in_pod("ip", "link", "set", "eth0", "mtu", "1499"),
        ("link eth0", "wanted MTU 1500", "found 1499"),
    ),
    "pod end down": (
        lambda at: at.in_pod("ip", "link", "set", "eth0", "down"),
        ("interface eth0", "wanted it up", "found it down"),
    ),
    "ipv4 address": (
        lambda at: at.in_pod("ip", "addr", "del", "10.22.0.2/24", "dev", "eth0"),
        ("interface eth0", "wanted address 10.22.0.2/24", "found ['fd00:22::2/64']"),
    ),
    "ipv6 address": (
        lambda at: at.in_pod("ip", "addr", "del", "fd00:22::2/64", "dev", "eth0"),
        ("interface eth0", "wanted address fd00:22::2/64", "found ['10.22.0.2/24']"),
    ),
    "configured route": (
        lambda at: at.in_pod("ip", "route", "del", "192.0.2.0/24"),
        ("interface eth0", "wanted routes to ['192.0.2.0/24']", "found"),
    ),
    "default route": (
        lambda at: at.in_pod("ip", "-6", "route", "del", "default"),
        ("interface eth0", "wanted routes to ['::/0']", "found"),
    ),
    "another ipv4 address of the subnet": (
        lambda at: replace_address(at.in_pod, "eth0", "10.22.0.2/24", "10.22.0.9/24"),
        ("interface eth0", "wanted address 10.22.0.2/24", "found ['10.22.0.9/24', 'fd00:22::2/64']"),
    ),
    "another ipv6 address of the subnet": (
        lambda at: replace_address(at.in_pod, "eth0", "fd00:22::2/64", "fd00:22::9/64"),
        ("interface eth0", "wanted address fd00:22::2/64", "found ['10.22.0.2/24', 'fd00:22::9/64']"),
    ),
    "another gateway address of the subnet": (
        lambda at: replace_address(at.on_node, "cni0", "10.22.0.1/24", "10.22.0.9/24"),
        ("link cni0", "wanted gateway address 10.22.0.1/24", "found ['10.22.0.9/24', 'fd00:22::1/64']"),
    ),
    "ipv4 gateway address": (
        lambda at: at.on_node("ip", "addr", "del", "10.22.0.1/24", "dev", "cni0"),
        ("link cni0", "wanted gateway address 10.22.0.1/24", "found ['fd00:22::1/64']"),
    ),
    "ipv6 gateway address": (
        lambda at: at.on_node("ip", "addr", "del", "fd00:22::1/64", "dev", "cni0"),
        ("link cni0", "wanted gateway address fd00:22::1/64", "found ['10.22.0.1/24']"),
    ),
    "bridge down": (
        lambda at: at.on_node("ip", "link", "set", "cni0", "down"),
        ("bridge cni0", "wanted it up", "found it down"),
    ),
    "ipv4 forwarding": (
        lambda at: at.on_node("sysctl", "-qw", "net.ipv4.ip_forward=0"),
        ("sysctl net/ipv4/ip_forward", "wanted 1", "found 0"),
    ),
    "ipv6 forwarding": (
        lambda at: at.on_node("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0"),
        ("sysctl net/ipv6/conf/all/forwarding", "wanted 1", "found 0"),
    ),
    "address file": (
        lose_address_file,
        ("store of network test", "wanted ['10.22.0.2'", "found ['fd00:22::2']"),
    ),
}


def configure(node: Node) -> dict[str, Any]:
    keys = {"isDefaultGateway": True, "promiscMode": True, "portIsolation": True}
    return routed(node, {"dst": "192.0.2.0/24"}, **keys)


@pytest.mark.parametrize("what", BROKEN)
def test_check_finds(node: Node, what: str) -> None:
    pod, config = node.pod(), configure(node)
    result = node.add(config, pod)
    attached = Attached(node=node, pod=pod, veth=host_end(result))
    change, words = BROKEN[what]
    change(attached)
    answer = node.check(config, result, pod)
    assert (answer.status, answer.json["code"]) == (1, 100)
    for word in words:
        assert word.replace("VETH", attached.veth) in answer.json["msg"]


def test_check_finds_hairpin_off(node: Node) -> None:
    pod, config = node.pod(), dual_stack(node, hairpinMode=True)
    result = node.add(config, pod)
    node.run("ip", "link", "set", host_end(result), "type", "bridge_slave", "hairpin", "off")
    answer = node.check(config, result, pod)
    assert (answer.status, answer.json["code"]) == (1, 100)
    assert f"bridge port {host_end(result)}: wanted hairpin True, found False" in answer.json["msg"]


def test_check_finds_a_result_that_is_not_of_this_attachment(node: Node) -> None:
    first, second = node.pod(), node.pod()
    result = node.add(dual_stack(node), first)
    node.add(dual_stack(node), second)
    answer = node.check(dual_stack(node), result, second)
    assert (answer.status, answer.json["code"]) == (1, 100)
