"""`ipMasq`: pods reach the world with the node's address, and each other with their own."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import in_process
from tests.harness.answers import assert_ok, assert_refused, unchanged, warm
from tests.harness.chain import install_as
from tests.harness.cluster import FORMS, ROUTER, Cluster, address_of, exchange, make_cluster, serving, sync
from tests.harness.networks import REFERENCE, dual_stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node, Pod, Space

FAMILIES = (4, 6)
FOREIGN = """
table ip nat {
    chain POSTROUTING { type nat hook postrouting priority srcnat; policy accept; \
ip saddr 198.18.0.0/15 masquerade; }
}
table inet filter {
    set admins { type ipv4_addr; elements = { 192.0.2.77 } }
    chain input { type filter hook input priority filter; policy accept; ip saddr @admins accept; }
}
"""


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 2)
    yield made
    made.remove()


def sources(space: Space, *addresses: str) -> dict[str, str]:
    """Return as whom each server saw us, over TCP and UDP alike."""
    seen = exchange(space, *addresses)
    assert all(each["tcp"] == each["udp"] for each in seen.values()), seen
    return {address: each["tcp"]["source"] for address, each in seen.items()}


def elements(node: Node) -> list[str]:
    """Return the lines of our sets that name an attachment."""
    listing = node.run("nft", "list", "ruleset").stdout
    return [line.strip() for line in listing.splitlines() if " test pod-" in line]


@pytest.mark.parametrize("form", FORMS)
def test_pods_reach_the_world_as_the_node_and_each_other_as_themselves(cluster: Cluster, form: str) -> None:
    pods = {}
    for i, node in cluster.nodes.items():
        pods[i] = node.pod()
        node.add(cluster.config(form, i) | {"ipMasq": True}, pods[i])
    far = [address_of(pods[2], v) for v in FAMILIES]
    with serving(cluster.underlay), serving(pods[2]):
        assert sources(pods[1], *ROUTER.values()) == {ROUTER[v]: cluster.address(1, v) for v in FAMILIES}
        assert sources(pods[1], *far) == {
            to: address_of(pods[1], v) for to, v in zip(far, FAMILIES, strict=True)
        }


@pytest.mark.parametrize("form", FORMS)
def test_a_clouds_services_at_link_local_addresses_answer_pods(cluster: Cluster, form: str) -> None:
    """They know the node and no pod."""
    node, world, service = cluster.nodes[1], cluster.underlay, "169.254.169.254"
    world.run("ip", "addr", "add", f"{service}/32", "dev", "lo")
    config, pod = cluster.config(form, 1) | {"ipMasq": True}, node.pod()
    node.add(config, pod)
    assert pod.ping(service, within=3)


def test_what_is_excluded_is_reached_with_the_pods_own_address(cluster: Cluster) -> None:
    node, world = cluster.nodes[1], cluster.underlay
    config = dual_stack(node, ipMasq=True, nonMasqueradeCIDRs=["192.0.2.0/24", "2001:db8::/64"])
    pod = node.pod()
    node.add(config, pod)
    world.run("ip", "route", "add", "10.22.0.0/24", "via", cluster.address(1, 4))
    world.run("ip", "route", "add", "fd00:22::/64", "via", cluster.address(1, 6))
    with serving(world):
        assert sources(pod, *ROUTER.values()) == {ROUTER[v]: address_of(pod, v) for v in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_family_can_be_translated_alone(cluster: Cluster, family: int) -> None:
    node = cluster.nodes[1]
    pod = node.pod()
    node.add(dual_stack(node, ipMasq={f"ipv{family}": True}), pod)
    with serving(cluster.underlay):
        assert sources(pod, ROUTER[family]) == {ROUTER[family]: cluster.address(1, family)}
    assert not pod.ping(ROUTER[10 - family], within=0.3)


def test_a_pod_of_a_network_without_it_is_left_alone(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    node.add(dual_stack(node, ipMasq=True), node.pod())
    plain = node.pod()
    config = dual_stack(node, bridge="cni1", name="plain")
    config["ipam"]["ranges"] = [[{"subnet": "10.23.0.0/24"}]]
    node.add(config, plain)
    assert not plain.ping(ROUTER[4], within=0.3)


def attached(node: Node, **keys: Any) -> tuple[dict[str, Any], Pod, dict[str, Any]]:
    config = dual_stack(node, ipMasq=True, **keys)
    pod = node.pod()
    return config, pod, node.add(config, pod)


def test_a_pod_has_one_element_per_address_that_names_it(node: Node) -> None:
    _, pod, _ = attached(node)
    found = elements(node)
    assert len(found) == 2
    assert all(f"test {pod.container_id} eth0" in line for line in found)


@pytest.mark.parametrize("lost", ["nothing", "prevResult", "namespace", "link", "configuration"])
def test_nothing_is_left_whatever_is_missing_at_del(node: Node, lost: str) -> None:
    warm(node, ipMasq=True)
    with unchanged(node):
        config, pod, result = attached(node)
        asked = {**config, "prevResult": result}
        if lost == "prevResult":
            asked = config
        if lost == "configuration":
            asked = {**dual_stack(node), "ipMasq": "perhaps", "nonMasqueradeCIDRs": [7]}
        if lost == "link":
            node.run("ip", "link", "del", result["interfaces"][1]["name"])
        if lost == "namespace":
            pod.remove()
        node.delete(asked, pod)


def test_an_address_given_to_another_pod_stays_translated_when_the_first_is_deleted_late(node: Node) -> None:
    config, first, result = attached(node)
    for address in node.held():
        (node.data_dir / "test" / address).unlink()
        (node.data_dir / "test" / f"last_reserved_ip.{int(':' in address)}").unlink()
    second = node.pod()
    assert [ip["address"] for ip in node.add(config, second)["ips"]] == [
        ip["address"] for ip in result["ips"]
    ]
    late = node.call("DEL", {**config, "prevResult": result}, first)
    assert_ok(late)
    assert [second.container_id in line for line in elements(node)] == [True, True]


def test_check_names_the_element_that_is_gone(node: Node) -> None:
    config, pod, result = attached(node)
    assert_ok(node.check(config, result, pod))
    (line, _) = elements(node)
    address = next(word for word in line.replace("{", " ").split() if word.startswith("10.22."))
    listing = node.run("nft", "list", "sets").stdout
    name = next(w.split()[1] for w in listing.splitlines() if w.strip().startswith("set masq4_"))
    node.run("nft", "delete", "element", "inet", "podwire", name, f"{{ {address} }}")
    answer = node.check(config, result, pod)
    assert_refused(answer, 100, name)


def test_check_finds_a_changed_chain_and_the_next_add_mends_it(node: Node) -> None:
    config, pod, result = attached(node)
    chain = next(
        line.split()[1]
        for line in node.run("nft", "list", "ruleset").stdout.splitlines()
        if "chain masq" in line
    )
    before = node.run("nft", "list", "chain", "inet", "podwire", chain).stdout
    node.run("nft", "flush", "chain", "inet", "podwire", chain)
    assert_refused(node.check(config, result, pod), 100, chain)
    node.add(config, node.pod())
    assert_ok(node.check(config, result, pod))
    assert node.run("nft", "list", "chain", "inet", "podwire", chain).stdout == before


def test_sync_follows_the_peers(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    config = cluster.config("routed", 1) | {"ipMasq": True}
    node.add(config, node.pod())
    assert "10.244.2.0/24" in node.run("nft", "list", "ruleset").stdout
    more = {"vtep": "192.0.2.9", "subnets": ["10.244.9.0/24"]}
    config["vxlan"]["peers"].append(more)
    assert sync(node, config).returncode == 0
    assert "10.244.9.0/24" in node.run("nft", "list", "ruleset").stdout


def test_gc_takes_the_elements_of_what_is_not_listed_and_no_others(node: Node) -> None:
    config, _, _ = attached(node)
    kept = node.pod()
    node.add(config, kept)
    listed = [{"containerID": kept.container_id, "ifname": "eth0"}]
    assert_ok(node.call("GC", config | {"cni.dev/valid-attachments": listed}))
    assert [kept.container_id in line for line in elements(node)] == [True, True]


def test_what_others_own_is_never_touched(node: Node) -> None:
    node.run("nft", "-f", "-", input=FOREIGN)
    before = node.run("nft", "list", "ruleset").stdout
    config, pod, result = attached(node)
    assert node.run("nft", "list", "ruleset").stdout.startswith(before)
    node.delete({**config, "prevResult": result}, pod)
    node.run("nft", "delete", "table", "inet", "podwire")
    assert node.run("nft", "list", "ruleset").stdout == before


def test_a_foreign_ipam_plugin_tells_the_pods_network_by_its_result(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    config = dual_stack(node, ipMasq=True, cniVersion="1.0.0")
    config["ipam"]["type"] = "host-local"
    environ = {"CNI_PATH": REFERENCE}
    first, second = node.pod(), node.pod()
    for pod in (first, second):
        node.add(config, pod, environ=environ)
    with serving(cluster.underlay), serving(second):
        assert sources(first, ROUTER[4]) == {ROUTER[4]: cluster.address(1, 4)}
        to = address_of(second, 4)
        assert sources(first, to) == {to: address_of(first, 4)}
    assert elements(node)


def told(form: str, node: Node, *hosts: int) -> list[dict[str, Any]]:
    """Return the configuration of each pod of a network whose addresses only their giver knows."""
    config = dual_stack(node, ipMasq=True, mode=form.partition(" ")[0], version="1.0.0")
    config["ipam"] |= {"type": "static" if "static" in form else "host-local"}
    widths = (32, 128) if "single" in form else (24, 64)
    ips = [[f"10.22.0.{h}/{widths[0]}", f"fd00:22::{h}/{widths[1]}"] for h in hosts]
    return [config | ({"runtimeConfig": {"ips": each}} if "static" in form else {}) for each in ips]


TOLD = ["bridge static", "routed static", "routed static single", "routed foreign"]


def path_of(form: str, node: Node) -> dict[str, str | None]:
    return {"CNI_PATH": REFERENCE if "foreign" in form else install_as(node, "static")}


@pytest.mark.parametrize("form", TOLD)
def test_pods_whose_networks_are_told_with_their_addresses_see_each_other_as_themselves(
    cluster: Cluster, form: str
) -> None:
    node = cluster.nodes[1]
    pods = [node.pod(), node.pod()]
    for config, pod in zip(told(form, node, 5, 6), pods, strict=True):
        assert_ok(
            node.check(
                config, node.add(config, pod, environ=path_of(form, node)), pod, environ=path_of(form, node)
            )
        )
    far = [address_of(pods[1], v) for v in FAMILIES]
    with serving(cluster.underlay), serving(pods[1]):
        assert sources(pods[0], *ROUTER.values()) == {ROUTER[v]: cluster.address(1, v) for v in FAMILIES}
        assert sources(pods[0], *far) == {
            to: address_of(pods[0], v) for to, v in zip(far, FAMILIES, strict=True)
        }


@pytest.mark.parametrize(
    ("widths", "as_itself"), [((24, 64), True), ((32, 128), False)], ids=["network", "single"]
)
def test_what_is_in_the_network_that_an_address_was_told_with_sees_the_address(
    cluster: Cluster, widths: tuple[int, int], as_itself: bool
) -> None:
    node, world, pod = cluster.nodes[1], cluster.underlay, cluster.nodes[1].pod()
    (config,) = told("routed static", node, 5)
    own = {4: "192.0.2.77", 6: "2001:db8::77"}
    config["runtimeConfig"]["ips"] = [f"{own[v]}/{w}" for v, w in zip(FAMILIES, widths, strict=True)]
    node.add(config, pod, environ=path_of("static", node))
    for version, address in own.items():
        world.run("ip", "route", "add", address, "via", cluster.address(1, version))
    seen = {v: own[v] if as_itself else cluster.address(1, v) for v in FAMILIES}
    with serving(world):
        assert sources(pod, *ROUTER.values()) == {ROUTER[v]: seen[v] for v in FAMILIES}


@pytest.mark.parametrize("form", TOLD)
@pytest.mark.parametrize("knows", [True, False], ids=["prevResult", "no-prevResult"])
def test_told_networks_leave_nothing_and_chains_do_not_grow_with_pods(
    plain_node: Node, form: str, knows: bool
) -> None:
    node, rulesets = plain_node, []
    for config in told(form, node, 5, 6, 7):
        pod = node.pod()
        result = node.add(config, pod, environ=path_of(form, node))
        assert node.run("nft", "list", "ruleset").stdout.count("chain masquerade_") == 1
        node.delete(config | ({"prevResult": result} if knows else {}), pod, environ=path_of(form, node))
        rulesets.append(node.run("nft", "list", "ruleset").stdout)
    assert rulesets == rulesets[:1] * 3
    assert elements(node) == []


def test_an_address_that_is_told_again_with_another_network_has_that_one_alone(plain_node: Node) -> None:
    node = plain_node
    (config,) = told("routed static", node, 5)
    wide = config | {"runtimeConfig": {"ips": ["10.22.0.5/16", "fd00:22::5/48"]}}
    first, second, environ = node.pod(), node.pod(), path_of("static", node)
    results = [node.add(each, pod, environ=environ) for each, pod in ((config, first), (wide, second))]
    assert [second.container_id in line for line in elements(node)] == [True] * 4
    node.delete(config | {"prevResult": results[0]}, first, environ=environ)
    assert [second.container_id in line for line in elements(node)] == [True] * 4
    node.delete(wide | {"prevResult": results[1]}, second, environ=environ)
    assert elements(node) == []


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"ipMasq": "yes"}, "ipMasq"),
        ({"ipMasq": {"ipv4": 1}}, "ipMasq.ipv4"),
        ({"ipMasq": True, "nonMasqueradeCIDRs": ["10.0.0.0"]}, "nonMasqueradeCIDRs"),
        ({"ipMasq": True, "nonMasqueradeCIDRs": ["10.0.0.1/8"]}, "nonMasqueradeCIDRs"),
        ({"ipMasq": True, "ipMasqBackend": "iptables"}, "ipMasqBackend"),
    ],
)
def test_bad_keys_are_refused_before_anything_is_made(node: Node, keys: dict[str, Any], said: str) -> None:
    with unchanged(node):
        assert_refused(node.call("ADD", dual_stack(node, **keys), node.pod()), 7, said)


def test_the_references_iptables_is_served_with_a_warning(node: Node) -> None:
    config = dual_stack(node, ipMasq=True, ipMasqBackend="iptables", type="bridge")
    answer = node.call("ADD", config, node.pod())
    assert answer.status == 0, answer.stdout
    assert answer.stderr.count("\n") == 1
    assert "nftables" in answer.stderr


@in_process
def test_without_nft_nothing_is_made_and_status_says_why(node: Node, tmp_path: Path) -> None:
    (tmp_path / "nsenter").symlink_to(shutil.which("nsenter"))
    config, nowhere = dual_stack(node, ipMasq=True), {"PATH": str(tmp_path)}
    assert_ok(node.call("STATUS", config))
    assert_refused(node.call("STATUS", config, environ=nowhere), 50, "nft")
    with unchanged(node):
        assert_refused(node.call("ADD", config, node.pod(), environ=nowhere), 50, "nft")


@in_process
def test_when_nft_refuses_its_words_are_told_and_nothing_is_made(node: Node, tmp_path: Path) -> None:
    (tmp_path / "nft").write_text("#!/bin/sh\necho 'Error: no room' >&2\nexit 1\n")
    (tmp_path / "nft").chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with unchanged(node):
        answer = node.call("ADD", dual_stack(node, ipMasq=True), node.pod(), environ=environ)
        assert_refused(answer, 11, "Error: no room")
