"""Pods that the Go plugins attached, and that are deleted by our executables under their names."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import in_process
from tests.harness.answers import assert_ok
from tests.harness.chain import REFERENCE, Chain, install_as
from tests.harness.networks import dual_stack, reference

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Node, Pod

RATES = dict.fromkeys(("ingressRate", "ingressBurst", "egressRate", "egressBurst"), 10**7)
PORTS = [
    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
    {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
]
NAMES = ("bridge", "host-local", "portmap", "firewall", "bandwidth")


def go_chain(node: Node) -> Chain:
    """Return the reference's chain with all that it makes for a pod."""
    plugins: list[dict[str, Any]] = [
        reference(node, ipMasq=True),
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall"},
        {"type": "bandwidth", **RATES},
    ]
    return Chain(node, plugins, [REFERENCE], {"portMappings": PORTS})


@pytest.fixture
def old_iptables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `iptables` be the one that knows nothing of nftables."""
    directory = tmp_path / "old"
    directory.mkdir()
    for name in ("iptables", "iptables-save", "ip6tables", "ip6tables-save"):
        (directory / name).symlink_to("/usr/sbin/xtables-legacy-multi")
    monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)


def rules(node: Node) -> list[str]:
    """Return the chains and rules of iptables in both families; what counts packets left out."""
    saved = [node.run(f"{program}-save").stdout for program in ("iptables", "ip6tables")]
    return [line.partition(" [")[0] for text in saved for line in text.splitlines() if line[0] != "#"]


def left(node: Node) -> tuple[list[str], set[str]]:
    return rules(node), {name for name in node.links() if name.startswith(("bwp", "veth"))}


@pytest.fixture
def neighbour(node: Node) -> Pod:
    """Return a pod of the Go plugins that stays."""
    pod = node.pod()
    chain = go_chain(node)
    chain.runtime = {"portMappings": [PORTS[0] | {"hostPort": 8081}]}
    chain.add(pod)
    return pod


def delete_listed(node: Node, chain: Chain, pod: Pod, result: dict[str, Any]) -> None:
    """DEL of each of our plugins under the reference's names."""
    chain.path = [install_as(node, *NAMES)]
    chain.delete(pod, result)


def delete_as_one(node: Node, chain: Chain, pod: Pod, result: dict[str, Any]) -> None:
    """DEL of a network that is `podwire` alone by now."""
    del chain
    node.delete(dual_stack(node, version="1.0.0") | {"prevResult": result}, pod)


@pytest.mark.parametrize("delete", [delete_listed, delete_as_one])
def test_what_the_go_plugins_made_for_a_pod_goes_with_it(node: Node, neighbour: Pod, delete: Any) -> None:
    before = left(node)
    chain, pod = go_chain(node), node.pod()
    result = chain.add(pod)
    assert len(rules(node)) > len(before[0]) + 20
    delete(node, chain, pod, result)
    assert left(node) == before
    assert neighbour.container_id in str(before)
    delete(node, chain, pod, result)
    assert left(node) == before


@pytest.mark.usefixtures("old_iptables")
@in_process
def test_what_is_in_the_old_iptables_goes_too(node: Node) -> None:
    before = left(node)
    chain, pod = go_chain(node), node.pod()
    result = chain.add(pod)
    assert node.run("nft", "list", "ruleset").stdout == ""
    assert "CNI-DN-" in str(rules(node))
    delete_listed(node, chain, pod, result)
    assert pod.container_id not in str(rules(node))
    assert "-j ACCEPT" not in str(rules(node))
    assert before[1] == left(node)[1]


@pytest.mark.parametrize("kind", ["portmap", "firewall", "bandwidth"])
@in_process
def test_each_plugin_takes_what_the_go_plugin_of_its_name_has_made(
    node: Node, neighbour: Pod, kind: str
) -> None:
    """The main plugin may be one that podwire does not replace."""
    chain, pod = go_chain(node), node.pod()
    main, *others = chain.plugins
    chain.plugins = [main]
    previous = chain.add(pod)
    before = left(node)
    plugin = next(each for each in others if each["type"] == kind)
    answer = chain.call("ADD", plugin, pod, previous)
    assert answer.status == 0, answer.stdout
    assert left(node) != before
    chain.path = [install_as(node, *NAMES)]
    assert_ok(chain.call("DEL", plugin, pod, answer.json))
    assert left(node) == before
    assert neighbour.container_id in str(before)


@in_process
def test_a_del_of_our_own_pod_starts_no_program(node: Node, neighbour: Pod, tmp_path: Path) -> None:
    for name in ("iptables", "ip6tables"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "nsenter").symlink_to(shutil.which("nsenter"))
    chain, pod = go_chain(node), node.pod()
    chain.path = [install_as(node, *NAMES)]
    result = chain.add(pod)
    chain.environ = {"PATH": str(tmp_path)}
    chain.delete(pod, result)
    assert not (tmp_path / "started").exists()
    assert neighbour.container_id in str(rules(node))
