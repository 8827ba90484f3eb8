"""The gateway of an access VLAN: a veth `<bridge>.<vlan>` with its other end in the bridge.

The kernel of the tests filters no VLANs (tests/known_absences.py), so the plan here names the
VLAN but asks for no port to be put in it: everything but the membership is real.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from cni_plugin.addresses.delegate import find_delegate
from cni_plugin.attach import bridge
from cni_plugin.contract.errors import CNIError
from cni_plugin.features.attachment import bare_site
from cni_plugin.kernel.netns import open_host, open_pod
from tests.harness.networks import dual_stack, planned, ports

if TYPE_CHECKING:
    from cni_plugin.contract.result import Result
    from tests.harness.node import Node, Pod


def attach(node: Node, pod: Pod) -> dict[str, Any]:
    """Do what ADD does, with the plan's VLAN memberships left out."""
    with (
        planned(node, dual_stack(node, vlan=100), pod) as (request, asked),
        open_host() as host,
        open_pod(pod.path) as space,
        ExitStack() as undo,
    ):
        assert [str(vlan) for vlan in asked.port.vlans] == ["vid 100 pvid untagged"]
        plan = replace(asked, port=replace(asked.port, vlans=()))
        site = bare_site(request, host, space, lambda: True)
        connection = bridge.connect(plan, 0, site, undo)
        result: Result = bridge.configure(plan, connection, site, find_delegate(request).allocate(undo, ""))
        undo.pop_all()
        bridge.check(plan, site, result)
    return result.render("1.1.0")


def test_gateway_address_is_on_a_veth_named_after_bridge_and_vlan(node: Node) -> None:
    pod = node.pod()
    result = attach(node, pod)
    assert set(node.addresses("cni0.100")) == {"10.22.0.1/24", "fd00:22::1/64"}
    assert node.addresses("cni0") == []
    assert result["interfaces"][3] == {
        "name": "cni0.100",
        "mac": node.links()["cni0.100"]["address"],
        "mtu": 1500,
    }
    assert [ip["interface"] for ip in result["ips"]] == [2, 2]
    assert pod.ping("10.22.0.1")
    assert pod.ping("fd00:22::1")


def test_gateway_veth_is_made_once_for_all_pods(node: Node) -> None:
    first, second = node.pod(), node.pod()
    attach(node, first)
    before = set(node.links())
    result = attach(node, second)
    assert set(node.links()) - before == {result["interfaces"][1]["name"]}
    assert len(ports(node)) == 3


def test_gateway_veth_that_the_go_plugin_made_is_adopted(node: Node) -> None:
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    node.run("ip", "link", "add", "cni0.100", "type", "veth", "peer", "name", "veth1a2b3c4d")
    node.run("ip", "link", "set", "veth1a2b3c4d", "master", "cni0", "up")
    pod = node.pod()
    attach(node, pod)
    assert pod.ping("10.22.0.1")
    assert len(ports(node)) == 2


@pytest.mark.parametrize("words", [["type", "bridge"], ["type", "veth", "peer", "name", "far0"]])
def test_another_link_of_the_gateways_name_is_refused(node: Node, words: list[str]) -> None:
    node.run("ip", "link", "add", "cni0.100", *words)
    with pytest.raises(CNIError, match=r"cni0\.100: wanted"):
        attach(node, node.pod())
    assert node.addresses("cni0.100") == []
    assert node.held() == {}


def test_gateway_veth_takes_no_router_from_the_pods(node: Node) -> None:
    """A node that gets its own addresses from routers has 2 by default, which counts although it forwards."""
    node.run("sysctl", "-qw", "net.ipv6.conf.default.accept_ra=2")
    attach(node, node.pod())
    assert node.run("sysctl", "-n", "net/ipv6/conf/cni0.100/accept_ra").stdout.strip() == "0"
