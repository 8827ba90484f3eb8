"""The plugin `firewall`: who reaches a pod, under each `ingressPolicy`, over both families."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import both_filterings
from tests.harness.answers import assert_ok, assert_refused, unchanged
from tests.harness.chain import REFERENCE, Chain, install_as
from tests.harness.cluster import ROUTER, Cluster, address_of, exchange, make_cluster, serving
from tests.harness.networks import dual_stack, eventually
from tests.harness.traffic import PORT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node, Pod, Space

FAMILIES = (4, 6)
SUBNETS = {"cni0": ("10.22.0.0/24", "fd00:22::/64"), "cni1": ("10.23.0.0/24", "fd00:23::/64")}
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.4)"
ASK = """
import socket, sys
asking = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
asking.settimeout(2)
asking.connect((sys.argv[1], int(sys.argv[2])))
asking.send(b"x")
asking.recv(65535)
"""
FOREIGN = """
table inet mine {
    set friends { type ipv4_addr; elements = { 192.0.2.77 } }
    chain forward { type filter hook forward priority filter; policy accept; ip saddr @friends accept; }
}
"""


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 1)
    for subnets in SUBNETS.values():
        for version, subnet in zip(FAMILIES, subnets, strict=True):
            made.underlay.run("ip", "route", "add", subnet, "via", made.address(1, version))
    yield made
    made.remove()


def chain_on(node: Node, bridge: str = "cni0", **keys: Any) -> Chain:
    """Return a network on a bridge, with the firewall as its second plugin."""
    main = dual_stack(node, bridge=bridge)
    main["ipam"]["ranges"] = [[{"subnet": subnet}] for subnet in SUBNETS[bridge]]
    named = install_as(node, "podwire", "firewall")
    name = {"cni0": "test", "cni1": "other"}[bridge]
    return Chain(node, [main, {"type": "firewall", **keys}], [named], version="1.1.0", name=name)


@dataclass
class Scene:
    """Two pods of one network, one of another, and a host outside; all of them serve."""

    chain: Chain
    cluster: Cluster
    pods: dict[str, Pod]
    results: dict[str, dict[str, Any]]

    def space(self, name: str) -> Space:
        return {"outside": self.cluster.underlay, "node": self.cluster.nodes[1], **self.pods}[name]

    def addresses(self, name: str) -> list[str]:
        if name == "outside":
            return list(ROUTER.values())
        return [address_of(self.pods[name], v) for v in FAMILIES]

    def reaches(self, who: str, whom: str) -> bool:
        """Tell whether new connections succeed, over both families alike."""
        found = {connects(self.space(who), address) for address in self.addresses(whom)}
        assert len(found) == 1
        return found.pop()

    def seen(self) -> set[str]:
        """Return what new connections the first pod takes part in."""
        pairs = [("outside", "a"), ("c", "a"), ("b", "a"), ("node", "a"), ("a", "outside"), ("a", "c")]
        return {f"{who} to {whom}" for who, whom in pairs if self.reaches(who, whom)}


def connects(space: Space, address: str, port: int = PORT) -> bool:
    argv = [sys.executable, "-IS", "-c", CONNECT, address, str(port)]
    return space.run(*argv, check=False).returncode == 0


@pytest.fixture
def scene(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Scene]:
    node, keys = cluster.nodes[1], getattr(request, "param", {})
    chain, other = chain_on(node, **keys), chain_on(node, "cni1")
    pods = {name: node.pod() for name in "abc"}
    results = {name: (other if name == "c" else chain).add(pod) for name, pod in pods.items()}
    with serving(cluster.underlay), serving(pods["a"]), serving(pods["b"]), serving(pods["c"]):
        yield Scene(chain, cluster, pods, results)


def policy(name: str, **keys: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scene", [{"ingressPolicy": name, **keys}], indirect=True, ids=[name])


EVERYTHING = {"outside to a", "c to a", "b to a", "node to a", "a to outside", "a to c"}


@both_filterings
@policy("open")
def test_open_lets_everybody_in(scene: Scene) -> None:
    assert scene.seen() == EVERYTHING


@both_filterings
@policy("same-bridge")
def test_same_bridge_lets_only_the_bridge_in_and_everything_out(scene: Scene) -> None:
    assert scene.seen() == EVERYTHING - {"outside to a", "c to a"}
    assert all(seen["tcp"]["intact"] for seen in exchange(scene.pods["a"], *ROUTER.values()).values())


@both_filterings
@policy("isolated")
def test_isolated_keeps_pods_of_one_bridge_apart_too(scene: Scene) -> None:
    assert scene.seen() == EVERYTHING - {"outside to a", "c to a", "b to a"}
    assert not scene.reaches("a", "b")
    assert not any(scene.pods["a"].ping(address, within=0.3) for address in scene.addresses("b"))
    assert all(seen["tcp"]["intact"] for seen in exchange(scene.pods["a"], *ROUTER.values()).values())


@both_filterings
@pytest.mark.parametrize("kind", ["same-bridge", "isolated"])
def test_a_host_port_is_open_to_neighbours_and_to_the_pod_itself(cluster: Cluster, kind: str) -> None:
    node = cluster.nodes[1]
    chain = chain_on(node, ingressPolicy=kind)
    chain.plugins.insert(1, {"type": "portmap", "capabilities": {"portMappings": True}})
    install_as(node, "podwire", "portmap")
    published = [{"hostPort": 8080, "containerPort": PORT, "protocol": p} for p in ("tcp", "udp")]
    chain.plugins[1]["runtimeConfig"] = {"portMappings": published}
    pod, neighbour = node.pod(), node.pod()
    chain.add(pod)
    del chain.plugins[1]["runtimeConfig"]
    chain.add(neighbour)
    with serving(pod):
        for version in FAMILIES:
            address = cluster.address(1, version)
            for who in (neighbour, pod, cluster.underlay):
                assert connects(who, address, 8080), (who.name, address)
                assert asks(who, address, 8080), (who.name, address)
            assert connects(neighbour, address_of(pod, version)) == (kind == "same-bridge")


def asks(space: Space, address: str, port: int) -> bool:
    """Tell whether a datagram is answered."""
    argv = [sys.executable, "-IS", "-c", ASK, address, str(port)]
    return space.run(*argv, check=False).returncode == 0


@both_filterings
@policy("same-bridge")
def test_a_published_port_is_open_to_everybody(scene: Scene) -> None:
    node, (a4, _) = scene.cluster.nodes[1], scene.addresses("a")
    dnat = f"tcp dport 8080 dnat ip to {a4}:{PORT}"
    node.run("nft", "add", "table", "ip", "pub")
    node.run("nft", "add chain ip pub in { type nat hook prerouting priority dstnat; }")
    node.run("nft", "add", "rule", "ip", "pub", "in", dnat)
    assert connects(scene.cluster.underlay, scene.cluster.address(1, 4), 8080)
    assert not scene.reaches("outside", "a")


@policy("same-bridge")
def test_the_operators_chain_comes_first_and_is_never_emptied(scene: Scene) -> None:
    node = scene.cluster.nodes[1]
    for family, version in (("ip", 4), ("ip6", 6)):
        rule = [family, "saddr", ROUTER[version], "accept"]
        node.run("nft", "add", "rule", "inet", "podwire", "CNI-ADMIN", *rule)
        node.run(
            "nft", "add", "rule", "inet", "podwire", "CNI-ADMIN", "iifname", "cni0", "oifname", "cni1", "drop"
        )
    assert scene.seen() == EVERYTHING - {"c to a", "a to c"}
    before = node.run("nft", "list", "chain", "inet", "podwire", "CNI-ADMIN").stdout
    scene.chain.add(node.pod())
    chain_on(node, ingressPolicy="isolated").add(node.pod())
    assert node.run("nft", "list", "chain", "inet", "podwire", "CNI-ADMIN").stdout == before


@policy("same-bridge", iptablesAdminChainName="OPERATOR")
def test_the_operators_chain_has_the_name_that_is_asked_for(scene: Scene) -> None:
    node = scene.cluster.nodes[1]
    node.run("nft", "add", "rule", "inet", "podwire", "OPERATOR", "iifname", "u0", "accept")
    assert scene.seen() == EVERYTHING - {"c to a"}


@policy("isolated")
def test_a_deleted_pods_address_is_nobodys_any_more(scene: Scene) -> None:
    node = scene.cluster.nodes[1]
    assert len([line for line in elements(node) if scene.pods["a"].container_id in line]) == 4
    scene.chain.delete(scene.pods["a"], scene.results["a"])
    assert not any(scene.pods["a"].container_id in line for line in elements(node))
    assert scene.reaches("node", "b")


def elements(node: Node) -> list[str]:
    listing = node.run("nft", "list", "ruleset").stdout
    return [line.strip() for line in listing.splitlines() if " test pod-" in line]


@pytest.mark.parametrize("lost", ["nothing", "prevResult", "namespace", "link", "configuration"])
def test_nothing_is_left_whatever_is_missing_at_del(node: Node, lost: str) -> None:
    chain = chain_on(node, ingressPolicy="isolated")
    first = node.pod()
    chain.delete(first, chain.add(first))
    assert eventually(lambda: "NO-CARRIER" in node.links()["cni0"]["flags"], wanted=True)
    with unchanged(node):
        pod = node.pod()
        result = chain.add(pod)
        if lost == "link":
            node.run("ip", "link", "del", result["interfaces"][1]["name"])
        if lost == "namespace":
            pod.remove()
        if lost == "configuration":
            chain.plugins[1] |= {"ingressPolicy": "perhaps", "backend": 7, "iptablesAdminChainName": "{"}
        chain.delete(pod, None if lost == "prevResult" else result)
        assert elements(node) == []


def test_check_names_what_is_gone(node: Node) -> None:
    chain, pod = chain_on(node, ingressPolicy="isolated"), node.pod()
    result = chain.add(pod)
    assert_ok(chain.check(pod, result))
    for family in ("inet", "bridge"):
        listing = node.run("nft", "list", "table", family, "podwire").stdout
        words = listing.split()
        name = next(w for w in words if w.startswith("firewall4_"))
        before = node.run("nft", "list", "set", family, "podwire", name).stdout
        node.run("nft", "flush", "set", family, "podwire", name)
        assert_refused(chain.check(pod, result), 100, family, name)
        node.run("nft", "-f", "-", input=before)
        flushed = name.replace("firewall4", "firewall")
        node.run("nft", "flush", "chain", family, "podwire", flushed)
        assert_refused(chain.check(pod, result), 100, family, flushed)
        chain.add(node.pod())
        assert_ok(chain.check(pod, result))


def test_check_leaves_addresses_on_other_interfaces_to_whoever_added_them_later(node: Node) -> None:
    chain, pod = chain_on(node), node.pod()
    result = chain.add(pod)
    result["interfaces"].append({"name": "net1", "sandbox": pod.path})
    result["ips"].append({"address": "198.51.100.9/24", "interface": len(result["interfaces"]) - 1})
    assert_ok(chain.check(pod, result))


def test_gc_takes_the_elements_of_what_is_not_listed_and_no_others(node: Node) -> None:
    chain, gone, kept = chain_on(node), node.pod(), node.pod()
    for pod in (gone, kept):
        chain.add(pod)
    listed = {"cni.dev/valid-attachments": [{"containerID": kept.container_id, "ifname": "eth0"}]}
    assert_ok(chain.call("GC", chain.plugins[1] | listed, None))
    assert [kept.container_id in line for line in elements(node)] == [True, True]


def test_what_others_own_is_never_touched(node: Node) -> None:
    node.run("nft", "-f", "-", input=FOREIGN)
    before = node.run("nft", "list", "ruleset").stdout
    chain, pod = chain_on(node, ingressPolicy="same-bridge"), node.pod()
    result = chain.add(pod)
    assert node.run("nft", "list", "ruleset").stdout.startswith(before)
    chain.delete(pod, result)
    node.run("nft", "delete", "table", "inet", "podwire")
    assert node.run("nft", "list", "ruleset").stdout == before


def test_it_works_behind_the_go_bridge(plain_node: Node) -> None:
    chain = chain_on(plain_node, ingressPolicy="isolated")
    chain.path, chain.version = [install_as(plain_node, "firewall"), REFERENCE], "1.0.0"
    chain.plugins[0] |= {"type": "bridge"}
    chain.plugins[0]["ipam"]["type"] = "host-local"
    pods = [plain_node.pod(), plain_node.pod()]
    results = [chain.add(pod) for pod in pods]
    with serving(pods[0]):
        addresses = [address_of(pods[0], v) for v in FAMILIES]
        # Its gateway address takes a second or two to settle.
        assert all(eventually(partial(connects, plain_node, a), wanted=True) for a in addresses)
        assert [connects(pods[1], address) for address in addresses] == [False, False]
    for pod, result in zip(pods, results, strict=True):
        # The Go bridge counts what it finds in the pod, and what it made itself.
        assert_ok(chain.call("CHECK", chain.plugins[1], pod, result))
        chain.delete(pod, result)
    assert elements(plain_node) == []


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        ({"ingressPolicy": "closed"}, 7, "ingressPolicy"),
        ({"ingressPolicy": 1}, 7, "ingressPolicy"),
        ({"backend": "firewalld"}, 2, "backend"),
        ({"backend": "ipfw"}, 2, "backend"),
        ({"iptablesAdminChainName": "A B"}, 7, "iptablesAdminChainName"),
        ({"iptablesAdminChainName": "accept"}, 7, "iptablesAdminChainName"),
        ({"iptablesAdminChainName": "X" * 29}, 7, "iptablesAdminChainName"),
    ],
)
def test_bad_keys_are_refused_before_anything_is_made(
    plain_node: Node, keys: dict[str, Any], code: int, said: str
) -> None:
    chain = chain_on(plain_node, **keys)
    answer = chain.try_add(plain_node.pod())
    assert_refused(answer, code, said)
    assert plain_node.run("nft", "list", "ruleset").stdout == ""


def test_status_reads_the_configuration(plain_node: Node) -> None:
    chain = chain_on(plain_node, ingressPolicy="isolated")
    assert_ok(chain.call("STATUS", chain.plugins[1], None))
    refused = chain.call("STATUS", chain.plugins[1] | {"ingressPolicy": "closed"}, None)
    assert_refused(refused, 7, "ingressPolicy")
    assert plain_node.run("nft", "list", "ruleset").stdout == ""


def test_a_policy_about_bridges_is_refused_where_there_is_none(plain_node: Node) -> None:
    chain = chain_on(plain_node, ingressPolicy="same-bridge")
    chain.plugins[0] |= {"mode": "routed"}
    assert_refused(chain.try_add(plain_node.pod()), 7, "ingressPolicy", "same-bridge", "bridge")
    assert plain_node.run("nft", "list", "ruleset").stdout == ""


@pytest.mark.parametrize("backend", ["iptables", "nftables", "", None])
def test_every_backend_that_can_be_meant_is_nftables(plain_node: Node, backend: str | None) -> None:
    chain, pod = chain_on(plain_node, backend=backend), plain_node.pod()
    answer = chain.try_add(pod)
    assert answer.status == 0, answer.stdout
    assert ("nftables" in answer.stderr) == (backend == "iptables")
    assert len(elements(plain_node)) == 2
