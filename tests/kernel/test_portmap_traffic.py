"""Host ports on real traffic: who gets where, and as whom the pod sees him."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.cluster import ROUTER, Cluster, address_of, make_cluster
from tests.harness.hostile import FAMILY, is_heard
from tests.harness.hostile import PORT as VICTIMS_PORT
from tests.harness.hostports import DNS, WEB, call_portmap, chain, map_ports, mapped
from tests.harness.networks import GATEWAYS, call_reference, dual_stack, eventually, inside, reference
from tests.harness.services import REFUSED, SILENCE, Flow, ask, ask_all, offering

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node, Pod

FAMILIES = (4, 6)
BOTH = ({**WEB, "protocol": "tcp"}, {**WEB, "protocol": "udp"})
SERVICE = {4: "10.96.0.10", 6: "fd00:96::10"}
BRIEFLY = 0.4  # seconds, where nobody answers


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 1)
    yield made
    made.remove()


def attached(cluster: Cluster, *entries: dict[str, Any], **keys: Any) -> Pod:
    node = cluster.nodes[1]
    pod = node.pod()
    node.add(mapped(node, *entries, **keys), pod)
    return pod


def test_everybody_reaches_the_pod_through_its_host_port(filtering: int, cluster: Cluster) -> None:
    node = cluster.nodes[1]
    pod, other = attached(cluster, *BOTH), node.pod()
    node.add(dual_stack(node), other)
    with offering(pod, 80):
        for v in FAMILIES:
            to = cluster.address(1, v)
            assert ask_all(cluster.underlay, to, 8080) == {ROUTER[v]}
            assert ask_all(node, to, 8080) == {to}
            # What the bridge translates itself comes back through it, and needs no other source.
            seen = address_of(other, v) if filtering else GATEWAYS[v]
            assert ask_all(other, to, 8080) == ask_all(other, GATEWAYS[v], 8080) == {seen}
            assert ask_all(pod, to, 8080) == ask_all(pod, GATEWAYS[v], 8080) == {GATEWAYS[v]}
        assert ask_all(node, "127.0.0.1", 8080) == {GATEWAYS[4]}
        assert ask_all(node, "::1", 8080, within=BRIEFLY) == {REFUSED}


@pytest.mark.parametrize("form", ["tunnel", "hostgw"])
def test_a_routed_pod_sees_its_clients_own_addresses(cluster: Cluster, form: str) -> None:
    node = cluster.nodes[1]
    pod, other = node.pod(), node.pod()
    config = cluster.config(form, 1)
    node.add(config | {"runtimeConfig": {"portMappings": list(BOTH)}}, pod)
    node.add(config, other)
    with offering(pod, 80):
        for v in FAMILIES:
            to = cluster.address(1, v)
            assert ask_all(cluster.underlay, to, 8080) == {ROUTER[v]}
            assert ask_all(other, to, 8080) == {address_of(other, v)}
            # The node's own: of IPv6 addresses the kernel takes the one that is most like the pod's.
            assert ask_all(pod, to, 8080) <= {to, "fd00:10:244:1::"}
        assert ask_all(node, "127.0.0.1", 8080) == {cluster.address(1, 4)}


def test_behind_the_go_bridge_the_same_ports_are_reached(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    config, pod = reference(node, ipMasq=True), node.pod()
    result = call_reference(node, "ADD", config, pod)
    assert result.status == 0, result.stdout
    asked = map_ports(node, chain(*BOTH), result.json, pod)
    assert call_portmap(node, "CHECK", asked, pod).status == 0
    # The Go bridge does not wait until its pods can be resolved.
    assert all(eventually(partial(node.ping, address_of(pod, v)), wanted=True) for v in FAMILIES)
    with offering(pod, 80):
        for v in FAMILIES:
            to = cluster.address(1, v)
            assert ask_all(cluster.underlay, to, 8080) == {ROUTER[v]}
            assert ask_all(node, to, 8080) == {to}
            assert ask_all(pod, to, 8080) == {GATEWAYS[v]}
        assert ask_all(node, "127.0.0.1", 8080) == {GATEWAYS[4]}
        assert call_portmap(node, "DEL", asked, pod).status == 0
        assert ask(cluster.underlay, cluster.address(1, 4), 8080) == REFUSED
    assert call_reference(node, "DEL", config, pod).status == 0


def test_a_host_ip_restricts_the_port_to_it(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    for address in ("192.0.2.100/24", "2001:db8::100/64"):
        node.run("ip", "addr", "add", address, "dev", "u0", *(["nodad"] if ":" in address else []))
    addresses = {4: "192.0.2.100", 6: "2001:db8::100"}
    pod = attached(cluster, *({**WEB, "hostIP": address} for address in addresses.values()))
    with offering(pod, 80):
        for v in FAMILIES:
            assert ask(cluster.underlay, addresses[v], 8080) == ROUTER[v]
            assert ask(cluster.underlay, cluster.address(1, v), 8080) == REFUSED
        assert ask(node, "127.0.0.1", 8080) == REFUSED


def test_a_host_ip_of_localhost_is_the_nodes_alone(cluster: Cluster) -> None:
    pod = attached(cluster, {**WEB, "hostIP": "127.0.0.1"})
    with offering(pod, 80):
        assert ask(cluster.nodes[1], "127.0.0.1", 8080) == GATEWAYS[4]
        assert ask(cluster.underlay, cluster.address(1, 4), 8080) == REFUSED


def test_two_pods_share_a_port_number_on_two_addresses(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    node.run("ip", "addr", "add", "192.0.2.100/24", "dev", "u0")
    first = attached(cluster, {**WEB, "hostIP": "192.0.2.1"})
    second = attached(cluster, {**WEB, "hostIP": "192.0.2.100"})
    with offering(first, 80, name="first "), offering(second, 80, name="second "):
        assert ask(cluster.underlay, "192.0.2.1", 8080) == "first 192.0.2.254"
        assert ask(cluster.underlay, "192.0.2.100", 8080) == "second 192.0.2.254"


def test_only_what_is_for_the_node_is_translated(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    pod = attached(cluster, *BOTH, ipMasq=True)
    with offering(pod, 80, name="pod "), offering(cluster.underlay, 8080, name="world "):
        for space in (pod, node):
            for v in FAMILIES:
                assert ask_all(space, ROUTER[v], 8080) == {f"world {cluster.address(1, v)}"}


@pytest.mark.parametrize("keys", [{}, {"masqAll": True}])
def test_a_connection_that_another_table_translated_keeps_its_source(
    cluster: Cluster, keys: dict[str, Any]
) -> None:
    """A Service to a pod with a host port of the same number: who asks is seen as itself."""
    node = cluster.nodes[1]
    node.set_filtering(0)  # else the neighbour's packets never leave the bridge
    web = {**WEB, "protocol": "udp", "containerPort": VICTIMS_PORT}
    pod, other = attached(cluster, web, **keys), node.pod()
    node.add(dual_stack(node), other)
    rules = (
        f"{family} daddr {SERVICE[v]} udp dport 8080 dnat {family} to {address_of(pod, v)} : {VICTIMS_PORT}"
        for v, family in ((4, "ip"), (6, "ip6"))
    )
    chain = ("chain p {", "type nat hook prerouting priority -110;", *rules, "}")
    node.run("nft", "-f", "-", input="\n".join(("table inet services {", *chain, "}\n")))

    for v in FAMILIES:
        own, to = address_of(other, v), address_of(pod, v)
        with inside(other), socket.socket(FAMILY[v], socket.SOCK_DGRAM) as asking:
            assert is_heard(pod, to, own, partial(asking.sendto, b"truly", (SERVICE[v], 8080)))
        with inside(other), socket.socket(FAMILY[v], socket.SOCK_DGRAM) as asking:
            at_port = partial(asking.sendto, b"truly", (cluster.address(1, v), 8080))
            assert is_heard(pod, to, GATEWAYS[v], at_port)


def test_a_range_leads_each_port_to_its_own(cluster: Cluster) -> None:
    pod = attached(cluster, {"hostPort": 8000, "hostPortEnd": 8002, "containerPort": 90})
    for offset in (0, 2):
        with offering(pod, 90 + offset):
            assert ask(cluster.underlay, cluster.address(1, 4), 8000 + offset) == ROUTER[4]
            assert ask(cluster.underlay, cluster.address(1, 6), 8000 + offset) == ROUTER[6]
    with offering(pod, 93):
        assert ask(cluster.underlay, cluster.address(1, 4), 8003) == REFUSED


@pytest.mark.parametrize("who", ["neighbour", "pod"])
def test_nobody_outside_reaches_what_listens_on_127_0_0_1(cluster: Cluster, who: str) -> None:
    """CVE-2020-8558; without the chain he does, so that it is the chain that keeps him out."""
    node = cluster.nodes[1]
    attached(cluster, WEB)
    attacker = cluster.underlay if who == "neighbour" else attached(cluster)
    link, via = ("sw0", cluster.address(1, 4)) if who == "neighbour" else ("eth0", GATEWAYS[4])
    if who == "neighbour":
        # As an administrator or another program may have left it.
        node.run("sysctl", "-qw", "net.ipv4.conf.u0.route_localnet=1")
    attacker.run("sysctl", "-qw", f"net.ipv4.conf.{link}.route_localnet=1")
    attacker.run("ip", "addr", "flush", "dev", "lo")
    attacker.run("ip", "route", "add", "127.0.0.1", "via", via, "dev", link)
    with offering(node, 9000, address="127.0.0.1"):
        assert ask(attacker, "127.0.0.1", 9000, within=BRIEFLY) == SILENCE
        assert ask(node, "127.0.0.1", 9000) == "127.0.0.1"
        node.run("nft", "flush", "chain", "inet", "podwire", "hostport_guard")
        assert ask(attacker, "127.0.0.1", 9000) != SILENCE


def test_with_masq_all_every_client_is_the_node(cluster: Cluster) -> None:
    pod = attached(cluster, *BOTH, masqAll=True)
    plain = attached(cluster, {**WEB, "hostPort": 8081})
    with offering(pod, 80), offering(plain, 80):
        for v in FAMILIES:
            assert ask_all(cluster.underlay, cluster.address(1, v), 8080) == {GATEWAYS[v]}
            assert ask(cluster.underlay, cluster.address(1, v), 8081) == ROUTER[v]
        assert ask(cluster.nodes[1], "127.0.0.1", 8080) == GATEWAYS[4]


def test_without_snat_nothing_is_masqueraded_and_localhost_is_refused(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    pod = attached(cluster, *BOTH, snat=False)
    with offering(pod, 80):
        for v in FAMILIES:
            assert ask_all(cluster.underlay, cluster.address(1, v), 8080) == {ROUTER[v]}
            assert ask(pod, cluster.address(1, v), 8080, within=BRIEFLY) == SILENCE
        assert ask_all(node, "127.0.0.1", 8080, within=BRIEFLY) == {REFUSED}
    assert node.run("sysctl", "-n", "net.ipv4.conf.cni0.route_localnet").stdout == "0\n"


@pytest.mark.parametrize(
    "conditions",
    [
        ["ip", "saddr", "!=", "192.0.2.253"],
        ["!", "-s", "192.0.2.253/32"],
        ["-i", "u0", "-p", "tcp", "!", "-s", "192.0.2.253"],
    ],
    ids=["nft", "iptables", "several"],
)
def test_conditions_are_the_attachments_own(cluster: Cluster, conditions: list[str]) -> None:
    node = cluster.nodes[1]
    cluster.underlay.run("ip", "addr", "add", "192.0.2.253/24", "dev", "sw0")
    pod, free = node.pod(), node.pod()
    for which, port, keys in ((pod, 8080, {"conditionsV4": conditions}), (free, 8081, {})):
        result = node.add(dual_stack(node, version="1.0.0"), which)
        map_ports(node, chain({**WEB, "hostPort": port}, **keys), result, which)
    with offering(pod, 80), offering(free, 80):
        cluster.underlay.run("ip", "route", "add", "192.0.2.1", "dev", "sw0", "src", "192.0.2.253")
        assert ask(cluster.underlay, "192.0.2.1", 8080) == REFUSED
        assert ask(cluster.underlay, "192.0.2.1", 8081) == "192.0.2.253"
        cluster.underlay.run("ip", "route", "del", "192.0.2.1")
        assert ask(cluster.underlay, "192.0.2.1", 8080) == ROUTER[4]
        assert ask(cluster.underlay, cluster.address(1, 6), 8080) == ROUTER[6]


def add_rule(node: Node, hook: str, rule: str) -> None:
    """Add a rule of an administrator's own, before ours where they meet and after ours where they leave."""
    priority = {"prerouting": -300, "postrouting": 300}[hook]
    node.run("nft", "add", "table", "ip", "own")
    node.run("nft", "add", "chain", "ip", "own", "c", f"{{ type filter hook {hook} priority {priority}; }}")
    node.run("nft", "add", "rule", "ip", "own", "c", *rule.split())


def test_a_packet_that_carries_the_mark_is_masqueraded(cluster: Cluster) -> None:
    """What an administrator's own rule marks with markMasqBit leaves with the node's address."""
    node = cluster.nodes[1]
    pod = attached(cluster, *BOTH, markMasqBit=5)
    add_rule(node, "prerouting", "udp dport 8080 meta mark set 0x20")
    with offering(pod, 80):
        assert ask(cluster.underlay, cluster.address(1, 4), 8080, "udp") == GATEWAYS[4]
        assert ask(cluster.underlay, cluster.address(1, 4), 8080, "tcp") == ROUTER[4]


def test_what_is_masqueraded_carries_the_mark(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    pod = attached(cluster, WEB, markMasqBit=5)
    add_rule(node, "postrouting", "meta mark & 0x20 == 0x20 counter")
    with offering(pod, 80):
        assert ask(cluster.underlay, cluster.address(1, 4), 8080) == ROUTER[4]
        assert "packets 0 " in node.run("nft", "list", "table", "ip", "own").stdout
        assert ask(node, "127.0.0.1", 8080) == GATEWAYS[4]
        assert "packets 0 " not in node.run("nft", "list", "table", "ip", "own").stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_a_udp_flow_follows_the_host_port_at_add_and_at_del(cluster: Cluster, family: int) -> None:
    """A flow that never pauses keeps its entry in conntrack, and would keep going where it went."""
    node = cluster.nodes[1]
    pod, config = node.pod(), mapped(node, DNS)
    with Flow(cluster.underlay, cluster.address(1, family), 5353) as flow:
        assert flow.ask() == REFUSED
        result = node.add(config, pod)
        with offering(pod, 53, name="pod "):
            assert flow.ask() == f"pod {ROUTER[family]}"
        with offering(node, 5353, name="node "):
            node.delete(config | {"prevResult": result}, pod)
            assert flow.ask() == f"node {ROUTER[family]}"


def test_a_udp_flow_to_a_dead_pod_ends_at_gc(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    pod, config = node.pod(), mapped(node, DNS)
    node.add(config, pod)
    with Flow(cluster.underlay, cluster.address(1, 4), 5353) as flow:
        with offering(pod, 53, name="pod "):
            assert flow.ask() == f"pod {ROUTER[4]}"
        pod.remove()
        with offering(node, 5353, name="node "):
            answer = node.call("GC", config | {"cni.dev/valid-attachments": []})
            assert (answer.status, answer.stdout) == (0, "")
            assert flow.ask() == f"node {ROUTER[4]}"


def test_only_flows_to_the_host_port_are_forgotten(cluster: Cluster) -> None:
    node, world = cluster.nodes[1], cluster.underlay
    pod, config = attached(cluster, {**DNS, "hostPort": 5354}, ipMasq=True), mapped(node, DNS, ipMasq=True)
    second = node.pod()
    with (
        offering(pod, 53),
        offering(world, 5353),
        Flow(world, cluster.address(1, 4), 5354) as inward,
        Flow(pod, ROUTER[4], 5353) as outward,
    ):
        assert (inward.ask(), outward.ask()) == (ROUTER[4], cluster.address(1, 4))
        before = tracked(node)
        node.add(config, second)
        node.delete(config, second)
        assert tracked(node) == before


def tracked(node: Node) -> list[str]:
    """Return the UDP flows of the node by both their directions, without their age."""
    listing = node.run("conntrack", "-L", "-p", "udp", "-o", "id").stdout
    return sorted(line.partition("src=")[2] for line in listing.splitlines())
