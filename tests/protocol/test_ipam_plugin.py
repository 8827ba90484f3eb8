"""`podwire-ipam` as an IPAM plugin of its own, as another main plugin would run it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.answers import VERSIONS, assert_ok, assert_refused, unchanged
from tests.harness.networks import V4, V6, network

if TYPE_CHECKING:
    from tests.harness.node import Node

PROGRAM = {"program": "podwire-ipam"}


def addresses_only(node: Node, *ranges: list[dict[str, Any]], version: str = "1.1.0") -> dict[str, Any]:
    return network(node, *(ranges or (V4, V6)), version=version) | {"type": "bridge"}


@pytest.mark.parametrize("version", VERSIONS)
def test_an_abbreviated_result_has_addresses_and_no_interface(node: Node, version: str) -> None:
    config = addresses_only(node, version=version)
    config["ipam"]["routes"] = [{"dst": "0.0.0.0/0", "mtu": 1400}]
    route = {"dst": "0.0.0.0/0"} | ({"mtu": 1400} if version == "1.1.0" else {})
    v4, v6 = ("10.22.0.2/24", "10.22.0.1"), ("fd00:22::2/64", "fd00:22::1")
    old = version in {"0.3.0", "0.3.1", "0.4.0"}
    if version in {"0.1.0", "0.2.0"}:
        wanted = {
            "ip4": {"ip": v4[0], "gateway": v4[1], "routes": [route]},
            "ip6": {"ip": v6[0], "gateway": v6[1]},
            "dns": {},
        }
    else:
        ips = [{"address": address, "gateway": gateway} for address, gateway in (v4, v6)]
        versions = [{"version": "4"}, {"version": "6"}] if old else [{}, {}]
        wanted = {"ips": [a | b for a, b in zip(ips, versions, strict=True)], "routes": [route]}
        wanted |= {"dns": {}} if old else {}
    assert node.add(config, node.pod(), **PROGRAM) == {"cniVersion": version} | wanted
    assert list(node.links()) == ["lo"]


def test_all_its_verbs(node: Node) -> None:
    pod, config = node.pod(), addresses_only(node)
    assert_ok(node.call("STATUS", config, **PROGRAM))
    result = node.add(config, pod, **PROGRAM)
    assert_ok(node.check(config, result, pod, **PROGRAM))
    assert_ok(node.call("GC", config | {"cni.dev/valid-attachments": []}, **PROGRAM))
    assert node.held() == {}
    assert_refused(node.check(config, result, pod, **PROGRAM), 100, pod.container_id, "10.22.0.2")
    for _ in range(2):
        node.delete(config, pod, **PROGRAM)
    assert_refused(node.call("CHECK", config, pod, **PROGRAM), 7, "prevResult")


def test_its_del_needs_neither_namespace_nor_ranges(node: Node) -> None:
    pod, config = node.pod(), addresses_only(node)
    node.add(config, pod, **PROGRAM)
    broken = config | {"ipam": config["ipam"] | {"ranges": [[{"subnet": "nonsense"}]]}}
    node.delete(broken, pod, environ={"CNI_NETNS": None, "CNI_ARGS": "nonsense"}, **PROGRAM)
    assert node.held() == {}


def test_a_second_add_of_an_attachment_is_refused_and_releases_nothing(node: Node) -> None:
    pod, config = node.pod(), addresses_only(node)
    node.add(config, pod, **PROGRAM)
    with unchanged(node):
        assert_refused(node.call("ADD", config, pod, **PROGRAM), 4, "10.22.0.2", "duplicate allocation")


def test_without_an_ipam_section_it_says_so(node: Node) -> None:
    config = {key: value for key, value in addresses_only(node).items() if key != "ipam"}
    for verb in ("ADD", "DEL", "STATUS"):
        assert_refused(node.call(verb, config, node.pod(), **PROGRAM), 7, '"ipam"')
