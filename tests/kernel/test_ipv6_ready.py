"""IPv6 is usable when ADD returns; with enabledad it is checked for duplicates first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import both_filterings, in_process
from tests.harness.answers import assert_ok, assert_refused
from tests.harness.networks import (
    V4,
    V6,
    add_foreign_port,
    address_of,
    calm,
    delegate_calls,
    dual_stack,
    network,
    print_result,
    scripted,
    write_delegate,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Node, Pod, Space


def sysctl(space: Space, key: str) -> str:
    return space.run("sysctl", "-n", key).stdout.strip()


def tentative(pod: Pod) -> list[str]:
    return [info["local"] for link in pod.ip("-6", "addr", "show", "tentative") for info in link["addr_info"]]


def test_no_address_is_tentative_when_add_returns_whatever_detection_would_take(node: Node) -> None:
    pod = node.pod()
    # With a hundred probes detection would take more than a minute and a half.
    pod.run("sysctl", "-qw", "net.ipv6.conf.default.dad_transmits=100")
    result = node.add(dual_stack(node), pod)
    assert tentative(pod) == []
    assert pod.ping(next(ip["gateway"] for ip in result["ips"] if ":" in ip["gateway"]))


def test_ipv6_is_switched_on_where_the_pod_has_it_off(node: Node) -> None:
    pod = node.pod()
    for scope in ("all", "default", "lo"):
        pod.run("sysctl", "-qw", f"net.ipv6.conf.{scope}.disable_ipv6=1")
    node.add(network(node, V6, isDefaultGateway=True), pod)
    assert pod.ping("fd00:22::1")
    assert pod.ping("::1")


@both_filterings
@pytest.mark.parametrize("mode", ["bridge", "routed"])
@pytest.mark.parametrize("scope", ["default", "all"])
def test_ipv6_is_switched_on_where_the_node_has_it_off_for_its_links(
    node: Node, mode: str, scope: str
) -> None:
    """Ours have it then; the others are as before."""
    node.run("sysctl", "-qw", f"net.ipv6.conf.{scope}.disable_ipv6=1")
    if scope == "all":
        node.run("sysctl", "-qw", "net.ipv6.conf.lo.disable_ipv6=0")
    node.run("ip", "addr", "add", "2001:db8::1/128", "dev", "lo")
    config, pods = dual_stack(node, mode=mode), [node.pod(), node.pod()]
    assert_ok(node.call("STATUS", config))
    results = [node.add(config, pod) for pod in pods]
    for target in ("2001:db8::1", address_of(results[1], 6), *(["fd00:22::1"] if mode == "bridge" else [])):
        assert pods[0].ping(target)
    assert_ok(node.check(config, results[0], pods[0]))
    node.run("ip", "link", "add", "other0", "type", "bridge")
    assert sysctl(node, "net.ipv6.conf.other0.disable_ipv6") == "1"


def test_ipv6_is_switched_on_for_a_bridge_of_before(node: Node) -> None:
    node.add(network(node, V4, isDefaultGateway=True), node.pod())
    node.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.lo.disable_ipv6=0")
    pod = node.pod()
    node.add(network(node, V6, name="six", isDefaultGateway=True), pod)
    assert pod.ping("fd00:22::1")


def test_ipv6_that_is_off_on_a_bridge_of_others_is_said_and_left_off(node: Node) -> None:
    node.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    node.run("ip", "link", "set", "cni0", "up")
    add_foreign_port(node, "cni0")
    config = network(node, V6, isDefaultGateway=True)
    words = ["cni0", "wanted IPv6", "disable_ipv6", "tap0"]
    assert_refused(node.call("ADD", config, node.pod()), 7, *words)
    assert sysctl(node, "net.ipv6.conf.cni0.disable_ipv6") == "1"


@in_process
@pytest.mark.parametrize("mode", ["bridge", "routed"])
def test_a_kernel_without_ipv6_is_no_internal_error(node: Node, tmp_path: Path, mode: str) -> None:
    script = tmp_path / "without"
    mount = "mount -t tmpfs none /proc/sys/net/ipv6"
    script.write_text(f"#!/bin/sh\nexec unshare --mount sh -ec '{mount}; exec {node.bin_dir}/podwire'\n")
    script.chmod(0o755)
    config = network(node, V6, mode=mode, isDefaultGateway=True)
    answer = node.call("ADD", config, node.pod(), program=str(script))
    assert_refused(answer, 50, "IPv6: wanted a kernel with it, found none")


def test_sysctls_of_the_pod_without_detection(node: Node) -> None:
    pod = node.pod()
    node.add(dual_stack(node), pod)
    assert sysctl(pod, "net.ipv6.conf.eth0.accept_dad") == "0"
    assert sysctl(pod, "net.ipv6.conf.eth0.keep_addr_on_down") == "1"
    assert sysctl(pod, "net.ipv6.conf.eth0.accept_ra") == "0"


def test_ipv6_address_survives_the_interface_going_down(node: Node) -> None:
    pod = node.pod()
    node.add(dual_stack(node), pod)
    pod.run("ip", "link", "set", "eth0", "down")
    pod.run("ip", "link", "set", "eth0", "up")
    assert set(pod.addresses("eth0")) == {"10.22.0.2/24", "fd00:22::2/64"}


def test_router_advertisements_do_not_configure_the_bridge(node: Node) -> None:
    node.add(dual_stack(node), node.pod())
    assert sysctl(node, "net.ipv6.conf.cni0.accept_ra") == "0"


def test_enabledad_probes_and_settles_before_add_returns(node: Node) -> None:
    pod = node.pod()
    result = node.add(dual_stack(node, enabledad=True), pod)
    assert sysctl(pod, "net.ipv6.conf.eth0.accept_dad") == "1"
    assert sysctl(pod, "net.ipv6.conf.eth0.enhanced_dad") == "1"
    assert tentative(pod) == []
    assert pod.ping("fd00:22::1")
    assert set(pod.addresses("eth0")) == {ip["address"] for ip in result["ips"]}


def test_enabledad_finds_a_duplicate_and_leaves_nothing(node: Node) -> None:
    environ = write_delegate(node, add=print_result("fd00:22::50/64"))
    config = scripted(node, enabledad=True)
    warm, holder, late = node.pod(), node.pod(), node.pod()
    node.add(config, warm, environ=environ)
    node.delete(config, warm, environ=environ)
    result = node.add(config, holder, environ=environ)
    before, inside = calm(node), late.run("ip", "-o", "addr").stdout
    answer = node.call("ADD", config, late, environ=environ)
    assert answer.status == 1
    assert "fd00:22::50" in answer.json["msg"]
    assert "in use" in answer.json["msg"]
    assert delegate_calls(node)[-2:] == ["ADD", "DEL"]
    assert calm(node) == before
    assert late.run("ip", "-o", "addr").stdout == inside
    assert address_of(result, 6) == "fd00:22::50"
