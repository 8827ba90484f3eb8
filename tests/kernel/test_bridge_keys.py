"""Every key of the attach mode `bridge`, as the kernel shows its effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import both_filterings
from tests.harness.networks import V4, calm, dual_stack, host_end, network, ports

if TYPE_CHECKING:
    from tests.harness.node import Completed, Node, Pod


def call_add(node: Node, config: dict[str, Any], pod: Pod, **environ: str | None) -> Completed:
    return node.call("ADD", config, pod, environ=environ)


def assert_refused(node: Node, answer: Completed, code: int, *words: str) -> None:
    assert (answer.status, answer.json["code"]) == (1, code)
    for word in words:
        assert word in answer.json["msg"]
    assert node.held() == {}
    assert not [name for name in node.links() if name.startswith("veth")]


@pytest.mark.parametrize(("keys", "name"), [({}, "br-pods"), ({"bridge": ""}, "cni0")])
def test_bridge_names_the_bridge_and_cni0_is_the_default(node: Node, keys: dict[str, str], name: str) -> None:
    result = node.add(dual_stack(node, **({"bridge": "br-pods"} | keys)), node.pod())
    assert result["interfaces"][0]["name"] == name
    assert node.links()[host_end(result)]["master"] == name


def test_hairpin_mode_sets_hairpin_on_the_port(node: Node) -> None:
    plain = node.add(dual_stack(node), node.pod())
    hairpin = node.add(dual_stack(node, hairpinMode=True), node.pod())
    assert ports(node)[host_end(plain)]["hairpin"] is False
    assert ports(node)[host_end(hairpin)]["hairpin"] is True


def test_promisc_mode_sets_the_bridge_promiscuous(node: Node) -> None:
    node.add(dual_stack(node), node.pod())
    assert "PROMISC" not in node.links()["cni0"]["flags"]
    node.add(dual_stack(node, promiscMode=True), node.pod())
    assert "PROMISC" in node.links()["cni0"]["flags"]


@both_filterings
def test_isolated_pods_reach_the_gateway_and_not_each_other(node: Node) -> None:
    first, second, open_pod = node.pod(), node.pod(), node.pod()
    results = [node.add(dual_stack(node, portIsolation=True), pod) for pod in (first, second)]
    node.add(dual_stack(node), open_pod)
    assert ports(node)[host_end(results[0])]["isolated"] is True
    for family in (0, 1):
        ip = results[0]["ips"][family]
        address = ip["address"].split("/")[0]
        assert second.ping(ip["gateway"])
        assert not second.ping(address, within=0.3)
        assert open_pod.ping(address)


def test_disabled_container_interface_stays_down_and_passes_check(node: Node) -> None:
    pod = node.pod()
    config = network(node, disableContainerInterface=True)
    result = node.add(config, pod)
    assert "UP" not in pod.links()["eth0"]["flags"]
    assert node.links()[host_end(result)]["master"] == "cni0"
    assert node.check(config, result, pod).status == 0
    pod.run("ip", "link", "set", "eth0", "up")
    node.delete(config, pod)


RESOLV_CONF = "nameserver 192.0.2.53\nsearch ipam.example\n"
FROM_IPAM = {"nameservers": ["192.0.2.53"], "search": ["ipam.example"]}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, FROM_IPAM),
        ({"dns": {}}, FROM_IPAM),
        ({"dns": {"domain": "config.example"}}, {"domain": "config.example"}),
        (
            {
                "dns": {"domain": "a.example"},
                "runtimeConfig": {"dns": {"servers": ["192.0.2.1"], "searches": ["b"]}},
            },
            {"domain": "a.example", "nameservers": ["192.0.2.1"], "search": ["b"]},
        ),
    ],
    ids=["ipam", "empty-is-unset", "config-replaces-all-of-ipam", "runtime-over-config"],
)
def test_dns_comes_from_runtime_then_configuration_then_ipam(
    node: Node, keys: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = network(node, V4, **keys)
    config["ipam"]["resolvConf"] = str(node.tmp / "resolv.conf")
    (node.tmp / "resolv.conf").write_text(RESOLV_CONF)
    assert node.add(config, node.pod())["dns"] == expected


MACS = ["02:00:5e:10:00:01", "02:00:5e:10:00:02", "02:00:5e:10:00:03"]


@pytest.mark.parametrize(
    ("keys", "args", "expected"),
    [
        ({"runtimeConfig": {"mac": MACS[0]}, "args": {"cni": {"mac": MACS[1]}}}, f"MAC={MACS[2]}", MACS[0]),
        ({"args": {"cni": {"mac": MACS[1]}}}, f"MAC={MACS[2]}", MACS[1]),
        ({}, f"MAC={MACS[2]}", MACS[2]),
        ({"runtimeConfig": {"mac": MACS[0].upper()}}, "", MACS[0]),
    ],
    ids=["runtime", "args", "environment", "upper-case"],
)
def test_mac_comes_from_runtime_then_args_then_environment(
    node: Node, keys: dict[str, Any], args: str, expected: str
) -> None:
    pod = node.pod()
    config = dual_stack(node, **keys)
    result = node.add(config, pod, environ={"CNI_ARGS": args})
    assert pod.links()["eth0"]["address"] == result["interfaces"][2]["mac"] == expected
    assert node.check(config, result, pod, environ={"CNI_ARGS": args}).status == 0


@pytest.mark.parametrize("mac", ["01:00:5e:00:00:01", "00:00:00:00:00:00", "02:00:5e:10:00", "02-00", "x"])
def test_mac_that_no_interface_can_have_is_refused_before_anything_is_made(node: Node, mac: str) -> None:
    answer = call_add(node, dual_stack(node, runtimeConfig={"mac": mac}), node.pod())
    assert_refused(node, answer, 7, "runtimeConfig.mac", mac)
    assert "cni0" not in node.links()


def test_alias_names_identity_network_container_interface_and_pod(node: Node) -> None:
    pod = node.pod()
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"
    result = node.add(dual_stack(node), pod, environ={"CNI_ARGS": args})
    name = host_end(result)
    mark, net, container_id, ifname, readable = node.links()[name]["ifalias"].split(" ")
    assert mark.startswith("podwire:")
    assert name == f"veth{mark.removeprefix('podwire:')[:11]}"
    assert len(name) == 15
    assert (net, container_id, ifname, readable) == ("test", pod.container_id, "eth0", "shop/web-0")


def test_host_end_has_the_same_name_whenever_the_attachment_is_made(node: Node) -> None:
    pod = node.pod()
    names = set()
    for _ in range(2):
        names.add(host_end(node.add(dual_stack(node), pod)))
        node.delete(dual_stack(node), pod)
    assert len(names) == 1


def test_alias_is_cut_at_what_the_kernel_takes_and_still_checks_and_collects(node: Node) -> None:
    pod = node.pod()
    config = dual_stack(node, name="n" * 109)
    pod.container_id = "c" * 200
    environ = {"CNI_ARGS": f"K8S_POD_NAMESPACE=shop;K8S_POD_NAME={'p' * 200}"}
    result = node.add(config, pod, environ=environ)
    assert len(node.links()[host_end(result)]["ifalias"]) == 254
    assert node.check(config, result, pod, environ=environ).status == 0
    assert node.call("GC", config | {"cni.dev/valid-attachments": []}).status == 0
    assert host_end(result) not in node.links()


def test_network_name_that_a_comment_cannot_hold_whole_is_refused(node: Node) -> None:
    # Cut short it would not tell this network's attachments from another's, and GC needs that.
    answer = call_add(node, dual_stack(node, name="n" * 110), node.pod())
    assert_refused(node, answer, 7, '"name"')


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
def test_results_of_older_versions_carry_no_mtu(node: Node, version: str) -> None:
    result = node.add(dual_stack(node, version=version), node.pod())
    assert all("mtu" not in interface for interface in result["interfaces"])


def test_bridge_that_has_another_ipv4_address_refuses(node: Node) -> None:
    config, pod = dual_stack(node), node.pod()
    node.add(config, pod)
    node.delete(config, pod)
    node.run("ip", "addr", "del", "10.22.0.1/24", "dev", "cni0")
    node.run("ip", "addr", "add", "10.99.0.1/24", "dev", "cni0")
    before = calm(node)
    answer = call_add(node, config, node.pod())
    assert_refused(node, answer, 7, "cni0", "10.22.0.1/24", "10.99.0.1/24")
    assert calm(node) == before


def test_bridge_that_has_an_overlapping_ipv6_address_refuses(node: Node) -> None:
    config = dual_stack(node)
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    node.run("ip", "addr", "add", "fd00:22::99/56", "dev", "cni0", "nodad")
    answer = call_add(node, config, node.pod())
    assert_refused(node, answer, 7, "cni0", "fd00:22::1/64", "fd00:22::99/56")


def test_bridge_keeps_an_ipv6_address_of_another_network_beside_ours(node: Node) -> None:
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    node.run("ip", "addr", "add", "fd00:99::1/64", "dev", "cni0", "nodad")
    node.add(dual_stack(node), node.pod())
    assert set(node.addresses("cni0")) == {"10.22.0.1/24", "fd00:22::1/64", "fd00:99::1/64"}


def test_force_address_replaces_conflicting_addresses_and_no_others(node: Node) -> None:
    node.run("ip", "link", "add", "cni0", "type", "bridge")
    for address in ("10.99.0.1/24", "fd00:22::99/56", "fd00:99::1/64"):
        node.run("ip", "addr", "add", address, "dev", "cni0")
    pod = node.pod()
    node.add(dual_stack(node, forceAddress=True), pod)
    assert set(node.addresses("cni0")) == {"10.22.0.1/24", "fd00:22::1/64", "fd00:99::1/64"}
    assert pod.ping("10.22.0.1")
    assert pod.ping("fd00:22::1")
