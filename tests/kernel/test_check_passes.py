"""CHECK passes on what ADD made, in every form, and on what later plugins of a chain changed."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.answers import assert_ok
from tests.harness.chain import Chain, install_as
from tests.harness.networks import FAMILIES, dual_stack, host_end, network, routed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.node import Node, Pod

    Config = Callable[[Node], dict[str, Any]]

FORMS: dict[str, Config] = {
    **{
        name: lambda node, sets=sets: network(node, *sets, isDefaultGateway=True)
        for name, sets in FAMILIES.items()
    },
    "layer-2": network,
    "no-gateway": lambda node: dual_stack(node, isDefaultGateway=False),
    "all-keys": lambda node: dual_stack(node, mtu=1400, hairpinMode=True, portIsolation=True, enabledad=True),
    "promisc": lambda node: dual_stack(node, promiscMode=True),
    "routes": lambda node: routed(
        node, {"dst": "192.0.2.0/24", "mtu": 1400}, {"dst": "2001:db8::/32", "table": 100, "priority": 5}
    ),
}


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0", "1.1.0"])
@pytest.mark.parametrize("form", FORMS)
def test_check_passes_after_add(node: Node, form: str, version: str) -> None:
    if form == "all-keys" and version != "1.1.0":
        form = "v4"  # duplicate address detection takes its seconds once
    pod = node.pod()
    config = FORMS[form](node) | {"cniVersion": version}
    result = node.add(config, pod)
    answer = node.check(config, result, pod)
    assert (answer.status, answer.stdout) == (0, "")


def test_mac_and_mtu_that_tuning_reported_are_the_ones_wanted(node: Node) -> None:
    pod = node.pod()
    config = dual_stack(node, mtu=1500)
    result = node.add(config, pod)
    pod.run("ip", "link", "set", "eth0", "address", "02:00:5e:10:00:09", "mtu", "1400")
    result["interfaces"][2] |= {"mac": "02:00:5E:10:00:09", "mtu": 1400}
    assert node.check(config, result, pod).status == 0


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_mtu_that_tuning_changed_is_fine_where_results_have_no_mtu(node: Node, version: str) -> None:
    pod = node.pod()
    config = dual_stack(node, mtu=1500, version=version)
    result = node.add(config, pod)
    pod.run("ip", "link", "set", "eth0", "mtu", "1400")
    assert node.check(config, result, pod).status == 0


def test_routes_in_another_table_are_fine_as_sbr_moves_them_there(node: Node) -> None:
    pod = node.pod()
    config = dual_stack(node)
    result = node.add(config, pod)
    for family, gateway, prefix in (
        ("-4", "10.22.0.1", "10.22.0.0/24"),
        ("-6", "fd00:22::1", "fd00:22::/64"),
    ):
        pod.run("ip", family, "route", "add", prefix, "dev", "eth0", "table", "100")
        pod.run("ip", family, "route", "add", "default", "via", gateway, "dev", "eth0", "table", "100")
        pod.run("ip", family, "route", "del", "default")
        pod.run("ip", family, "route", "del", prefix, "dev", "eth0")
    answer = node.check(config, result, pod)
    assert answer.status == 0, answer.stdout


def add_foreign_interfaces(result: dict[str, Any], pod: Pod) -> dict[str, Any]:
    """Return the result as a chain leaves it: another plugin's interfaces before and after ours."""
    merged = copy.deepcopy(result)
    before = [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": pod.path}, {"name": "dummy7"}]
    after = [{"name": "bwp0", "mac": "02:00:00:00:00:07"}, {"name": "tap9", "sandbox": "/elsewhere"}]
    merged["interfaces"] = before + merged["interfaces"] + after
    for ip in merged["ips"]:
        ip["interface"] += len(before)
    merged["ips"] = [
        {"address": "127.0.0.1/8", "interface": 0},
        *merged["ips"],
        {"address": "192.0.2.9/24", "interface": len(merged["interfaces"]) - 1},
    ]
    return merged


def test_interfaces_of_other_plugins_in_prev_result_do_not_matter(node: Node) -> None:
    pod = node.pod()
    config = dual_stack(node)
    result = add_foreign_interfaces(node.add(config, pod), pod)
    answer = node.check(config, result, pod)
    assert answer.status == 0, answer.stdout


FEATURES = {
    "ipMasq": True,
    "spoofCheck": "ip",
    "capabilities": {"portMappings": True},
    "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
}


@pytest.mark.parametrize("mode", ["bridge", "routed"])
@pytest.mark.parametrize("kind", ["podwire-ipam", "static"])
def test_addresses_of_other_plugins_in_prev_result_are_no_features_matter(
    node: Node, mode: str, kind: str
) -> None:
    environ: dict[str, str | None] = {"CNI_PATH": install_as(node, "static")}
    config, pod = dual_stack(node, mode=mode, **FEATURES), node.pod()
    config["ipam"] |= {"type": kind, "addresses": [{"address": "10.22.0.5/24"}, {"address": "fd00:22::5/64"}]}
    result = add_foreign_interfaces(node.add(config, pod, environ=environ), pod)
    answer = node.check(config, result, pod, environ=environ)
    assert (answer.status, answer.stdout) == (0, "")
    node.delete(config | {"prevResult": result}, pod, environ=environ)
    assert pod.container_id not in node.run("nft", "list", "ruleset").stdout


PORT = {"hostPort": 80, "containerPort": 80, "protocol": "tcp"}


@pytest.mark.parametrize("index", [-1, 9])
def test_index_in_prev_result_that_leads_to_no_interface_fails_no_verb(node: Node, index: int) -> None:
    later: list[dict[str, Any]] = [
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}, "dataDir": str(node.tmp / "tuning")},
        {"type": "firewall"},
        {"type": "bandwidth", "egressRate": 1_000_000, "egressBurst": 100_000},
    ]
    path = [install_as(node, *(plugin["type"] for plugin in later))]
    chain = Chain(node=node, plugins=later, path=path, runtime={"portMappings": [PORT]}, version="1.1.0")
    pod, config = node.pod(), dual_stack(node, spoofCheck="ip")
    result = node.add(config, pod)
    for ip in result["ips"]:
        ip["interface"] = index
    for plugin in later:
        for verb in ("ADD", "CHECK", "DEL"):
            answer = chain.call(verb, plugin, pod, result)
            assert answer.status == 0, answer.stdout
    assert_ok(node.check(config, result, pod))
    node.delete(config | {"prevResult": result}, pod)


def test_add_keeps_what_earlier_plugins_of_the_chain_made(node: Node) -> None:
    pod = node.pod()
    earlier = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "other0", "sandbox": pod.path}],
        "ips": [{"address": "192.0.2.9/24", "interface": 0}],
    }
    config = dual_stack(node)
    result = node.add(config | {"prevResult": earlier}, pod)
    assert [interface["name"] for interface in result["interfaces"]] == [
        "other0",
        "cni0",
        result["interfaces"][2]["name"],
        "eth0",
    ]
    assert [ip["interface"] for ip in result["ips"]] == [0, 3, 3]
    assert node.check(config, result, pod).status == 0


def test_second_interface_of_a_container_is_checked_by_itself(node: Node) -> None:
    pod = node.pod()
    config = dual_stack(node)
    results = {name: node.add(config, pod, environ={"CNI_IFNAME": name}) for name in ("eth0", "net1")}
    for name, result in results.items():
        assert node.check(config, result, pod, environ={"CNI_IFNAME": name}).status == 0
    assert host_end(results["eth0"]) != host_end(results["net1"])
