"""/proc/sys is read-only, as in nested containers: what is set already is enough, what is not is said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import install
from tests.harness.agents import start_agent
from tests.harness.answers import assert_ok, assert_refused
from tests.harness.cluster import FORMS, address_of, make_cluster
from tests.harness.networks import FAMILIES, V4, V6, dual_stack, network
from tests.harness.read_only import read_only, write_program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node

SYSCTLS = "/proc/sys"
FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
MODES = ("bridge", "routed")
PORTS = {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}}


@pytest.fixture(params=["process", "agent"])
def confined(request: pytest.FixtureRequest, plain_node: Node, tmp_path: Path) -> Iterator[Node]:
    """Return a node whose podwire cannot write to /proc/sys."""
    install(plain_node.tmp / "real", plain_node.tmp / "a.sock")
    plain_node.bin_dir = plain_node.tmp / "real"
    if request.param == "process":
        program = write_program(plain_node, tmp_path, SYSCTLS)
        plain_node.bin_dir = plain_node.tmp / "confined"
        plain_node.bin_dir.mkdir()
        (plain_node.bin_dir / "podwire").symlink_to(program)
        yield plain_node
        return
    with start_agent(plain_node.tmp / "a.sock", inside=plain_node, before=read_only(SYSCTLS)):
        yield plain_node


def forward(node: Node, *versions: int) -> None:
    node.run("sysctl", "-qw", *(f"{FORWARDING[version]}=1" for version in versions))


@pytest.mark.parametrize("mode", MODES)
def test_a_pod_is_added_where_all_that_is_needed_is_set(confined: Node, mode: str) -> None:
    node, pod = confined, confined.pod()
    forward(node, 4, 6)
    config = dual_stack(node, mode=mode, ipMasq=True, spoofCheck="ip", **PORTS)
    assert_ok(node.call("STATUS", config))
    answer = node.call("ADD", config, pod)
    assert answer.status == 0, answer.stdout
    assert "accept_dad=0: Read-only file system; it stays 1: " in answer.stderr
    # In mode routed the node speaks from an address of its own.
    for address in ("192.0.2.1/32", "2001:db8::1/128"):
        node.run("ip", "addr", "add", address, "dev", "lo")
        assert pod.ping(address.partition("/")[0], within=3)
    assert_ok(node.check(config, answer.json, pod))
    node.delete(config, pod)
    assert node.held() == {}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("version", [4, 6])
def test_a_family_that_is_not_forwarded_is_said_by_status_and_add_alike(
    confined: Node, mode: str, version: int
) -> None:
    node, pod = confined, confined.pod()
    forward(node, 10 - version)
    config = network(node, {4: V4, 6: V6}[version], mode=mode, isDefaultGateway=True)
    key = FORWARDING[version].replace(".", "/")
    assert_refused(node.call("STATUS", config), 50, key, "wanted 1, found 0")
    assert_refused(node.call("ADD", config, pod), 50, key, "Read-only file system")
    assert (node.held(), set(pod.links())) == ({}, {"lo"})
    # The other family alone is fine.
    other = network(node, {4: V6, 6: V4}[version], mode=mode, isDefaultGateway=True)
    assert_ok(node.call("STATUS", other))
    node.add(other, pod)


@pytest.mark.parametrize("mode", MODES)
def test_ipv6_that_new_links_are_without_is_said_by_status_and_add_alike(confined: Node, mode: str) -> None:
    node = confined
    forward(node, 4, 6)
    node.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    config = network(node, V6, mode=mode, isDefaultGateway=True)
    assert_refused(node.call("STATUS", config), 50, "disable_ipv6", "wanted 0, found 1")
    assert_refused(node.call("ADD", config, node.pod()), 50, "disable_ipv6", "Read-only file system")
    assert_ok(node.call("STATUS", network(node, V4, mode=mode, isDefaultGateway=True)))


def test_a_layer_2_network_needs_nothing(confined: Node) -> None:
    config = network(confined, *FAMILIES["dual-stack"])
    assert_ok(confined.call("STATUS", config))
    confined.add(config, confined.pod())


def test_a_sysctl_that_was_asked_for_is_no_internal_error(confined: Node) -> None:
    forward(confined, 4, 6)
    config = dual_stack(confined, sysctl={"net.core.somaxconn": "77"})
    answer = confined.call("ADD", config, confined.pod())
    assert_refused(answer, 50, "net/core/somaxconn=77", "Read-only file system")


@pytest.mark.parametrize("form", FORMS)
def test_pods_of_other_nodes_are_reached(tmp_path: Path, bin_dir: Path, form: str) -> None:
    """The nodes of a cluster have strict rp_filter, which a routed tunnel loosens for its device."""
    cluster = make_cluster(tmp_path, bin_dir, 2)
    try:
        pods = {}
        for i, node in cluster.nodes.items():
            forward(node, 4, 6)
            config: dict[str, Any] = cluster.config(form, i)
            program = write_program(node, node.tmp, SYSCTLS)
            assert_ok(node.call("STATUS", config, program=program))
            pods[i] = node.pod()
            node.add(config, pods[i], program=program)
        for version in (4, 6):
            assert pods[1].ping(address_of(pods[2], version), within=5)
            assert form == "flat" or pods[2].ping(cluster.address(1, version), within=5)
    finally:
        cluster.remove()
