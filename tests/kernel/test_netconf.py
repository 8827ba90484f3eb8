"""Switches that are read over netlink: what is read is what the file says, and what is off is switched on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cni_plugin.kernel.netconf import ensure_forwarding, ensure_route_localnet, route_localnet
from cni_plugin.kernel.netns import Namespace, open_pod
from cni_plugin.kernel.sysctl import FORWARDING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import Node


@pytest.fixture
def host(plain_node: Node) -> Iterator[Namespace]:
    with open_pod(plain_node.path) as opened, opened.entered():
        yield opened


def value(node: Node, key: str) -> str:
    return node.run("cat", f"/proc/sys/{key}").stdout.strip()


@pytest.mark.parametrize("version", [4, 6])
def test_forwarding_that_is_off_is_switched_on_in_one_family_only(
    plain_node: Node, host: Namespace, version: int
) -> None:
    other = FORWARDING[10 - version]
    for key in FORWARDING.values():
        plain_node.run("sysctl", "-qw", f"{key}=0")
    ensure_forwarding(host.netlink, version)
    assert (value(plain_node, FORWARDING[version]), value(plain_node, other)) == ("1", "0")


def test_a_link_routes_localnet_and_its_neighbour_does_not(plain_node: Node, host: Namespace) -> None:
    plain_node.run("ip", "link", "add", "br.a", "type", "bridge")
    plain_node.run("ip", "link", "add", "br.b", "type", "bridge")
    ensure_route_localnet(host.netlink, "br.a")
    assert [value(plain_node, route_localnet(link)) for link in ("br.a", "br.b")] == ["1", "0"]


def test_of_what_is_on_no_file_is_asked(
    plain_node: Node, host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_node.run("ip", "link", "add", "br0", "type", "bridge")
    for key in (*FORWARDING.values(), route_localnet("br0")):
        plain_node.run("sysctl", "-qw", f"{key}=1")
    monkeypatch.delattr("cni_plugin.kernel.netconf.ensure_sysctl")
    for version in (4, 6):
        ensure_forwarding(host.netlink, version)
    ensure_route_localnet(host.netlink, "br0")
