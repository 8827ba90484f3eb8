"""A node that has its own IPv6 by router advertisement keeps it when it begins to forward for its pods."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.clinic import examine, mend, the_only
from tests.harness.cluster import write_conflist
from tests.harness.followers import following
from tests.harness.frames import IP6, ether
from tests.harness.hostile import advertisement, raw
from tests.harness.networks import V4, V6, dual_stack, network
from tests.harness.read_only import write_program

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Node, Space

FORWARDING = "net.ipv6.conf.all.forwarding"


def sysctl(space: Space, key: str) -> str:
    return space.run("sysctl", "-n", key).stdout.strip()


class Router:
    """A neighbour of the node on a link of its own that says that it is a router."""

    def __init__(self, node: Node, link: str = "up0.7") -> None:
        self.node, self.link, self.space = node, link, node.pod()
        far = ("name", "far0", "netns", self.space.name)
        node.run("ip", "link", "add", link, "type", "veth", "peer", *far)
        for space, name in ((node, link), (self.space, "far0")):
            space.run("sysctl", "-qw", f"net/ipv6/conf/{name}/accept_dad=0")
            space.run("ip", "link", "set", name, "up")
        self.mac = self.space.links()["far0"]["address"]

    def routes(self) -> list[str]:
        """Return the default routes of the node that came by advertisement."""
        return [route["dev"] for route in self.node.ip("-6", "route", "show", "default", "proto", "ra")]

    def advertise(self, *, within: float = 10) -> bool:
        """Tell whether the node takes the router."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            (local,) = (
                each["local"]
                for link in self.space.ip("-6", "addr", "show", "dev", "far0")
                for each in link["addr_info"]
                if each["scope"] == "link"
            )
            with raw(self.space, "far0") as socket:
                socket.send(ether(self.mac, IP6, advertisement(local, self.mac)))
            time.sleep(0.1)
            if self.link in self.routes():
                return True
        return False

    def accept_ra(self) -> str:
        return sysctl(self.node, f"net/ipv6/conf/{self.link}/accept_ra")


@pytest.mark.parametrize("mode", ["bridge", "routed"])
@pytest.mark.parametrize("ranges", [(V4, V6), (V6,)], ids=["dual-stack", "v6"])
def test_the_nodes_default_route_stays_and_is_renewed(node: Node, ranges: Any, mode: str) -> None:
    router = Router(node)
    assert router.advertise()
    node.add(network(node, *ranges, isDefaultGateway=True, mode=mode), node.pod())
    assert (sysctl(node, FORWARDING), router.routes(), router.accept_ra()) == ("1", ["up0.7"], "2")
    node.run("ip", "-6", "route", "del", "default", "dev", "up0.7")
    assert router.advertise()


def test_a_network_without_ipv6_leaves_the_switch_alone(node: Node) -> None:
    router = Router(node)
    assert router.advertise()
    node.add(network(node, V4, isDefaultGateway=True), node.pod())
    assert (sysctl(node, FORWARDING), router.routes(), router.accept_ra()) == ("0", ["up0.7"], "1")


def test_where_a_program_takes_the_advertisements_the_kernel_still_does_not(node: Node) -> None:
    """systemd-networkd and NetworkManager set `accept_ra` 0 and the routes themselves, which stay."""
    router = Router(node)
    node.run("sysctl", "-qw", "net/ipv6/conf/up0.7/accept_ra=0")
    node.run("ip", "-6", "route", "add", "default", "via", "fe80::7", "dev", "up0.7", "proto", "ra")
    node.add(dual_stack(node), node.pod())
    assert (router.routes(), router.accept_ra()) == (["up0.7"], "0")


def test_where_it_cannot_be_add_goes_on_and_doctor_names_it(plain_node: Node, tmp_path: Path) -> None:
    node, config = plain_node, dual_stack(plain_node)
    router = Router(node)
    assert router.advertise()
    write_conflist(node, config)
    assert examine(node) == []
    program = write_program(node, tmp_path, "/proc/sys/net/ipv6/conf/up0.7")
    answer = node.call("ADD", config, node.pod(), program=program)
    assert answer.status == 0, answer.stdout
    assert (
        "sysctl -w net/ipv6/conf/up0.7/accept_ra=2: Read-only file system; it stays 1: "
        "the node loses its routes that a router advertised"
    ) in answer.stderr
    assert router.routes() == []
    found = the_only(examine(node))
    assert (found["object"], found["severity"]) == ("sysctl net/ipv6/conf/up0.7/accept_ra", "error")
    mend(node, found["remedy"])
    assert examine(node) == []
    assert router.advertise()


@pytest.mark.parametrize("mode", ["vxlan", "hostGateway"])
def test_the_agent_of_a_cluster_keeps_it_too(tmp_path: Path, bin_dir: Path, mode: str) -> None:
    with following(tmp_path, bin_dir, 2, mode=mode) as made:
        made.api.put(made.render(1), made.render(2))
        one = made.nodes[1]
        router = Router(one.node)
        assert router.advertise()
        one.start()
        one.wait_ready(1)
        one.start_pod()
        found = (sysctl(one.node, FORWARDING), router.routes(), router.accept_ra())
        assert found == ("1", ["up0.7"], "2")
