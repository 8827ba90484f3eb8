"""STATUS: silent when a pod could be added, else code 50 with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import in_process
from tests.harness.answers import assert_ok, assert_refused, unchanged
from tests.harness.foreign import delegated, foreign
from tests.harness.networks import REFERENCE, V4, dual_stack, network

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Node

SMALL = [{"subnet": "10.22.0.0/24", "rangeStart": "10.22.0.5", "rangeEnd": "10.22.0.6"}]


def within(node: Node, tmp_path: Path, *mounts: str) -> str:
    """Return a program that runs podwire in a mount namespace of its own with these mounts."""
    script = tmp_path / "within"
    steps = "\n".join(f"mount {words}" for words in mounts)
    script.write_text(f"#!/bin/sh -e\n{steps}\nexec {node.bin_dir}/podwire\n")
    script.chmod(0o755)
    outer = tmp_path / "outer"
    outer.write_text(f"#!/bin/sh\nexec unshare --mount {script}\n")
    outer.chmod(0o755)
    return str(outer)


def test_a_node_that_is_ready_says_nothing_and_nothing_is_made(node: Node) -> None:
    with unchanged(node):
        assert_ok(node.call("STATUS", dual_stack(node)))
        assert_ok(node.call("STATUS", network(node)))
        assert_ok(node.call("STATUS", dual_stack(node), program="podwire-ipam"))
    assert not node.data_dir.exists()


def test_an_exhausted_pool_is_50_that_names_it(node: Node) -> None:
    config = network(node, SMALL)
    pods = [node.pod(), node.pod()]
    for pod in pods:
        assert_ok(node.call("STATUS", config))
        node.add(config, pod)
    for program in ("podwire", "podwire-ipam"):
        answer = node.call("STATUS", config, program=program)
        assert_refused(answer, 50, "no IP addresses available", "10.22.0.5-10.22.0.6")
    node.delete(config, pods[0])
    assert_ok(node.call("STATUS", config))


@in_process
def test_a_store_that_cannot_be_written_is_50(node: Node, tmp_path: Path) -> None:
    config = dual_stack(node)
    node.add(config, node.pod())
    read_only = within(node, tmp_path, f"--bind {node.data_dir} {node.data_dir} -o ro")
    answer = node.call("STATUS", config, program=read_only)
    assert_refused(answer, 50, str(node.data_dir), "Read-only file system")
    full = within(node, tmp_path, f"-t tmpfs -o nr_inodes=1 none {node.data_dir}")
    assert_refused(node.call("STATUS", config, program=full), 50, str(node.data_dir), "No space left")


@in_process
def test_a_kernel_without_ipv6_is_50_when_the_network_needs_it(node: Node, tmp_path: Path) -> None:
    without = within(node, tmp_path, "-t tmpfs none /proc/sys/net/ipv6")
    assert_refused(node.call("STATUS", dual_stack(node), program=without), 50, "IPv6")
    v4 = network(node, [{"subnet": "10.22.0.0/24"}], isGateway=True)
    assert_ok(node.call("STATUS", v4, program=without))


def test_a_bridge_name_that_is_no_bridge_is_50(node: Node) -> None:
    node.run("ip", "link", "add", "cni0", "type", "veth", "peer", "name", "other")
    assert_refused(node.call("STATUS", dual_stack(node)), 50, "cni0", "bridge")


def test_the_ipam_plugins_status_is_ours(node: Node) -> None:
    plugin = foreign(node, status='echo \'{"code": 51, "msg": "no lease"}\'; exit 1')
    answer = node.call("STATUS", delegated(), environ=plugin.environ)
    assert_refused(answer, 51, "elsewhere", "no lease")
    assert plugin.calls == ["VERSION", "STATUS"]
    absent = node.call("STATUS", delegated("nobody"))
    assert_refused(absent, 7, "nobody", "CNI_PATH")


@pytest.mark.parametrize("mode", ["bridge", "routed"])
def test_an_ipam_plugin_that_does_not_speak_the_configurations_version_is_50(node: Node, mode: str) -> None:
    """It would refuse every ADD; what it says to STATUS, which it does not know, is of no use."""
    environ = {"CNI_PATH": REFERENCE}
    config = network(node, V4, mode=mode)
    config["ipam"]["type"] = "host-local"
    answer = node.call("STATUS", config, environ=environ)
    assert_refused(answer, 50, f"{REFERENCE}/host-local", "1.1.0", "'1.0.0']")
    assert_refused(node.call("ADD", config, node.pod(), environ=environ), 1, "incompatible CNI versions")


def test_a_configuration_that_add_would_refuse_is_refused(node: Node) -> None:
    config = dual_stack(node)
    for keys in ({"mtu": "big"}, {"hairpinMode": True, "promiscMode": True}):
        assert_refused(node.call("STATUS", config | keys), 7, next(iter(keys)))
    assert_refused(node.call("STATUS", config | {"spoofCheck": "all"}), 7, "spoofCheck")
