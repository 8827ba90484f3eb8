"""What a runtime may say of one pod: MAC, addresses, ranges, resolver settings, and what came before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.answers import assert_ok, assert_refused, unchanged
from tests.harness.networks import V4, dual_stack, network

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Node

BY_RUNTIME, BY_ARGS, BY_ENVIRONMENT = "02:00:00:00:00:0a", "02:00:00:00:00:0b", "02:00:00:00:00:0c"


def test_the_mac_is_the_runtimes_then_that_of_args_then_that_of_the_environment(node: Node) -> None:
    config, environ = network(node), {"CNI_ARGS": f"MAC={BY_ENVIRONMENT.upper().replace(':', '-')}"}
    args = {"args": {"cni": {"mac": BY_ARGS}}}
    runtime = {"runtimeConfig": {"mac": BY_RUNTIME}}
    for keys, wanted in (({}, BY_ENVIRONMENT), (args, BY_ARGS), (args | runtime, BY_RUNTIME)):
        pod = node.pod()
        result = node.add(config | keys, pod, environ=environ)
        assert result["interfaces"][2]["mac"] == wanted
        assert pod.links()["eth0"]["address"] == wanted


def test_requested_addresses_of_three_sources_are_added_up(node: Node) -> None:
    config = network(node, V4, [{"subnet": "10.23.0.0/24"}], [{"subnet": "fd00:22::/64"}])
    config |= {"runtimeConfig": {"ips": ["fd00:22::77/64"]}, "args": {"cni": {"ips": ["10.23.0.88"]}}}
    result = node.add(config, node.pod(), environ={"CNI_ARGS": "IP=10.22.0.99/24"})
    addresses = [ip["address"] for ip in result["ips"]]
    assert addresses == ["10.22.0.99/24", "10.23.0.88/24", "fd00:22::77/64"]
    assert set(node.held()) == {"10.22.0.99", "10.23.0.88", "fd00:22::77"}


def test_a_requested_address_that_cannot_be_had_is_an_error_that_names_it(node: Node) -> None:
    holder, config = node.pod(), network(node, V4)
    node.add(config, holder)
    with unchanged(node):
        for address, code in (("10.99.0.5", 7), ("10.22.0.1", 7), ("10.22.0.2", 11)):
            stdin = config | {"runtimeConfig": {"ips": [address]}}
            assert_refused(node.call("ADD", stdin, node.pod()), code, address)


def test_the_runtimes_ranges_come_before_the_configured_ones(node: Node) -> None:
    config = dual_stack(node) | {"runtimeConfig": {"ipRanges": [[{"subnet": "10.50.0.0/24"}]]}}
    result = node.add(config | {"isDefaultGateway": False}, node.pod())
    assert [ip["address"] for ip in result["ips"]] == ["10.50.0.2/24", "10.22.0.2/24", "fd00:22::2/64"]


def test_what_the_runtime_says_of_dns_comes_before_the_configuration(node: Node) -> None:
    configured = {"nameservers": ["192.0.2.1"], "domain": "a.test", "options": ["ndots:5"]}
    asked = {"Servers": ["192.0.2.2"], "Searches": ["b.test"], "Options": None}
    result = node.add(network(node, V4, dns=configured, runtimeConfig={"dns": asked}), node.pod())
    assert result["dns"] == {
        "nameservers": ["192.0.2.2"],
        "domain": "a.test",
        "search": ["b.test"],
        "options": ["ndots:5"],
    }


def test_dns_is_the_configurations_when_it_says_any_else_the_ipam_plugins(node: Node, tmp_path: Path) -> None:
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text(
        "# comment\nnameserver 192.0.2.7\nsearch c.test\n; comment\noptions ndots:2 edns0\n"
    )
    config = network(node, V4)
    config["ipam"]["resolvConf"] = str(resolv_conf)
    of_ipam = {"nameservers": ["192.0.2.7"], "search": ["c.test"], "options": ["ndots:2", "edns0"]}
    assert node.add(config, node.pod())["dns"] == of_ipam
    stated = {"nameservers": ["192.0.2.1"]}
    assert node.add(config | {"dns": stated}, node.pod())["dns"] == stated


PREVIOUS = {
    "interfaces": [{"name": "tap0", "mac": "02:00:00:00:00:01"}, {"name": "net1", "sandbox": "/run/netns/x"}],
    "ips": [{"interface": 1, "address": "192.0.2.5/24", "gateway": "192.0.2.1"}],
    "routes": [{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}],
    "dns": {"nameservers": ["192.0.2.53"]},
}


def test_add_passes_on_what_earlier_plugins_made_and_moves_its_own_indexes(node: Node) -> None:
    pod = node.pod()
    pod.run("ip", "route", "add", PREVIOUS["routes"][0]["dst"], "dev", "lo")
    previous = PREVIOUS | {"cniVersion": "1.0.0"}  # another version of the same family
    config = dual_stack(node, prevResult=previous)
    result = node.add(config, pod)
    assert result["interfaces"][:2] == PREVIOUS["interfaces"]
    assert [each["name"] for each in result["interfaces"][2:]][::2] == ["cni0", "eth0"]
    assert result["ips"][:1] == PREVIOUS["ips"]
    assert [(ip["interface"], ip["address"]) for ip in result["ips"][1:]] == [
        (4, "10.22.0.2/24"),
        (4, "fd00:22::2/64"),
    ]
    assert result["routes"][0] == PREVIOUS["routes"][0]
    assert [route["dst"] for route in result["routes"][1:]] == ["0.0.0.0/0", "::/0"]
    assert result["dns"] == PREVIOUS["dns"]
    assert pod.addresses("eth0") == ["10.22.0.2/24", "fd00:22::2/64"]
    assert_ok(node.check(dual_stack(node), result, pod))
    node.delete(config | {"prevResult": result}, pod)


@pytest.mark.parametrize(("version", "other"), [("1.1.0", "0.4.0"), ("0.4.0", "1.0.0"), ("0.3.1", "0.2.0")])
def test_a_previous_result_of_another_family_of_versions_is_read_as_it_says(
    node: Node, version: str, other: str
) -> None:
    shapes: dict[str, dict[str, Any]] = {
        "0.2.0": {"ip4": {"ip": "192.0.2.5/24"}},
        "0.4.0": {"ips": [{"version": "4", "address": "192.0.2.5/24"}]},
        "1.0.0": {"ips": [{"address": "192.0.2.5/24"}]},
    }
    config = network(node, V4, version=version, prevResult=shapes[other] | {"cniVersion": other})
    result = node.add(config, node.pod())
    assert result["cniVersion"] == version
    assert [ip["address"] for ip in result["ips"]] == ["192.0.2.5/24", "10.22.0.2/24"]


def test_del_does_not_read_the_previous_result(node: Node) -> None:
    pod, config = node.pod(), dual_stack(node)
    node.add(config, pod)
    node.delete(config | {"prevResult": "garbage"}, pod)
    assert node.held() == {}


def test_check_wants_the_previous_result_and_a_bridge_that_it_names(node: Node) -> None:
    pod, config = node.pod(), dual_stack(node)
    result = node.add(config, pod)
    assert_refused(node.call("CHECK", config, pod), 7, "prevResult")
    assert_refused(node.check(config, result | {"interfaces": []}, pod), 100, "cni0", "prevResult")
    assert_ok(node.check(config, result, pod))
