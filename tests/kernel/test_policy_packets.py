"""What packets between pods meet when policies are in force: both families, here and across the tunnel."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from netaddr import IPNetwork

from cni_plugin.dataplane.policy.sync import PolicyTable, switch_policy_off
from cni_plugin.features.policy_rules import ensure_maps, plan_policy_ruleset
from cni_plugin.kernel.netns import open_pod
from cni_plugin.kernel.nft import ensure_ruleset
from tests.harness.cluster import address_of
from tests.harness.networks import inside
from tests.harness.policy_lab import ALLOWED, DENIED, OTHER_PORT, PORT, PolicyLab, policy_lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Space

WEB: dict[str, Any] = {"matchLabels": {"app": "web"}}
PODS = ("web", "near", "far")


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def lab(request: pytest.FixtureRequest, tmp_path: Path, bin_dir: Path) -> Iterator[PolicyLab]:
    with policy_lab(tmp_path, bin_dir, request.param) as made:
        yield made


def peer(name: str) -> dict[str, Any]:
    return {"podSelector": {"matchLabels": {"app": name}}}


def test_without_policies_everybody_reaches_everybody(lab: PolicyLab) -> None:
    for source in PODS:
        for target in PODS:
            if source != target:
                assert lab.ask(source, target) == ALLOWED, (source, target)
    assert lab.pings("near", "web")


def test_an_isolated_pod_is_reached_by_its_node_and_by_nobody_else(lab: PolicyLab) -> None:
    lab.put("nothing", podSelector=WEB, policyTypes=["Ingress"])
    assert (lab.ask("near", "web"), lab.ask("far", "web")) == (DENIED, DENIED)
    assert lab.ask("near", "web", protocol="udp") == DENIED
    assert not lab.pings("near", "web")
    address = address_of(lab.pods["web"], lab.version)
    assert lab.node.run("ping", "-c", "1", "-W", "2", address).returncode == 0
    # It may still ask: answers belong to what it has begun.
    assert (lab.ask("web", "near"), lab.ask("web", "far")) == (ALLOWED, ALLOWED)
    assert lab.ask("near", "far") == ALLOWED


def test_peers_and_ports_are_those_of_the_rule(lab: PolicyLab) -> None:
    lab.put("some", podSelector=WEB, ingress=[{"from": [peer("far")], "ports": [{"port": PORT}]}])
    assert lab.ask("far", "web") == ALLOWED
    assert lab.ask("far", "web", OTHER_PORT) == DENIED
    assert lab.ask("far", "web", protocol="udp") == DENIED
    assert lab.ask("near", "web") == DENIED
    lab.put("more", podSelector=WEB, ingress=[{"from": [peer("near")], "ports": [{"protocol": "UDP"}]}])
    assert lab.ask("near", "web", protocol="udp") == ALLOWED
    assert lab.ask("near", "web") == DENIED
    assert lab.ask("far", "web") == ALLOWED


def test_egress_is_the_sender_s(lab: PolicyLab) -> None:
    lab.put(
        "out",
        podSelector=WEB,
        policyTypes=["Egress"],
        egress=[{"to": [peer("near")], "ports": [{"port": "web"}]}],
    )
    assert lab.ask("web", "near") == ALLOWED
    assert lab.ask("web", "near", OTHER_PORT) == DENIED
    assert lab.ask("web", "far") == DENIED
    assert lab.ask("far", "web") == ALLOWED


def test_a_block_is_a_network_without_its_exceptions(lab: PolicyLab) -> None:
    far, near = (address_of(lab.pods[name], lab.version) for name in ("far", "near"))
    whole = {4: "10.244.0.0/16", 6: "fd00:10:244::/48"}[lab.version]
    width = {4: 32, 6: 128}[lab.version]
    rule = {"from": [{"ipBlock": {"cidr": whole, "except": [f"{far}/{width}"]}}]}
    lab.put("block", podSelector=WEB, ingress=[rule])
    assert (lab.ask("near", "web"), lab.ask("far", "web")) == (ALLOWED, DENIED)
    rule = {
        "from": [{"ipBlock": {"cidr": f"{near}/{width}"}}],
        "ports": [{"port": PORT - 80, "endPort": PORT}],
    }
    lab.put("block", podSelector=WEB, ingress=[rule])
    assert (lab.ask("near", "web"), lab.ask("near", "web", OTHER_PORT)) == (ALLOWED, DENIED)


def test_everything_in_one_rule_lets_other_protocols_pass_and_a_port_does_not(lab: PolicyLab) -> None:
    lab.put("all", podSelector=WEB, ingress=[{}])
    assert lab.pings("near", "web")
    lab.put("all", podSelector=WEB, ingress=[{"ports": [{"port": PORT}]}])
    assert not lab.pings("near", "web")
    assert lab.ask("near", "web") == ALLOWED


def test_what_is_taken_away_is_gone_with_its_chains_and_sets(lab: PolicyLab) -> None:
    before = lab.listing()
    lab.put("some", podSelector=WEB, ingress=[{"from": [peer("far")]}])
    assert "peers_" in lab.listing()
    lab.drop("some")
    assert lab.ask("near", "web") == ALLOWED
    assert lab.listing() == before


def test_who_begins_anew_changes_nothing(lab: PolicyLab) -> None:
    lab.put("some", podSelector=WEB, ingress=[{"from": [peer("far")], "ports": [{"port": "web"}]}])
    before = lab.listing()
    lab.sync(PolicyTable())
    assert lab.listing() == before
    assert (lab.ask("far", "web"), lab.ask("near", "web")) == (ALLOWED, DENIED)


def test_a_new_pod_is_closed_and_a_late_answer_leaves_a_reused_address_alone(lab: PolicyLab) -> None:
    lab.put("none", podSelector={"matchLabels": {"app": "late"}}, policyTypes=["Ingress", "Egress"])
    late, config = lab.cluster.nodes[1].pod(), lab.config(1, timeout=0)
    lab.node.add(config, late, environ={"CNI_ARGS": "K8S_POD_NAMESPACE=a;K8S_POD_NAME=late"})
    lab.pods["late"] = late
    assert (lab.ask("late", "near"), lab.ask("late", "far")) == (DENIED, DENIED)
    assert "goto pending" in lab.listing()
    former = lab.local("late")
    addresses = {v: address_of(late, v) for v in (4, 6)}
    lab.node.delete(config, late)
    other = lab.cluster.nodes[1].pod()
    wish = {"ips": [f"{addresses[v]}/{width}" for v, width in ((4, 24), (6, 64))]}
    lab.node.add({**config, "capabilities": {"ips": True}, "runtimeConfig": wish}, other)
    assert address_of(other, 4) == addresses[4]
    # The answer for the first one comes late: the address is another's.
    lab.pods["late"] = other
    lab.tell("late", app="other")
    lab.model.keep_local(set())
    lab.model.put_local([former])
    lab.sync()
    element = next(line for line in lab.listing().splitlines() if f"{addresses[4]} comment" in line)
    assert "goto pending" in element
    assert former.identity not in element


def test_switched_off_nothing_of_it_is_left(lab: PolicyLab) -> None:
    lab.put("nothing", podSelector=WEB, policyTypes=["Ingress"])
    with open_pod(lab.node.path) as host, host.entered():
        assert switch_policy_off(host.nftables)
        assert not switch_policy_off(host.nftables)
    assert lab.ask("near", "web") == ALLOWED


def test_after_a_flush_isolated_pods_are_closed_and_then_as_before(lab: PolicyLab) -> None:
    lab.put("some", podSelector=WEB, ingress=[{"from": [peer("far")]}])
    lab.node.run("nft", "delete", "table", "inet", "podwire_policy")
    adopted: dict[bytes, str] = {}
    for name in ("web", "near"):
        local, pod = lab.local(name), lab.pods[name]
        adopted |= dict.fromkeys(local.addresses, f"{local.identity} test {pod.container_id} eth0")
    ranges = [IPNetwork("10.244.1.0/24"), IPNetwork("fd00:10:244:1::/64")]
    with open_pod(lab.node.path) as host, host.entered():
        ensure_maps(host.nftables)
        ensure_ruleset(host.nftables, plan_policy_ruleset("test", ranges))
        assert (lab.ask("far", "web"), lab.ask("near", "far")) == (DENIED, DENIED)
        PolicyTable().sync(host.nftables, lab.model.compute(), adopted)
    assert (lab.ask("far", "web"), lab.ask("near", "web")) == (ALLOWED, DENIED)
    assert lab.ask("near", "far") == ALLOWED


@pytest.mark.parametrize("first", ["near", "web"])
def test_a_connection_that_is_forgotten_is_reset_whoever_sends_next(lab: PolicyLab, first: str) -> None:
    """Also when the selected pod itself is the next to send, whose own direction no policy speaks of."""
    address = address_of(lab.pods["web"], lab.version)
    family = socket.AF_INET6 if lab.version == 6 else socket.AF_INET
    with inside(lab.pods["web"]):
        listener = socket.create_server((address, 9000), family=family)
    with inside(lab.pods["near"]):
        client = socket.socket(family, socket.SOCK_STREAM)
    client.settimeout(2)
    with client, listener:
        client.connect((address, 9000))
        server, _ = listener.accept()
        server.settimeout(2)
        with server:
            lab.put("nothing", podSelector=WEB, policyTypes=["Ingress"])
            version = "ipv6" if lab.version == 6 else "ipv4"
            lab.node.run("conntrack", "-D", "-f", version, "-p", "tcp", "--orig-port-dst", "9000")
            sender = client if first == "near" else server
            sender.send(b"x")
            with pytest.raises(ConnectionResetError):
                sender.recv(1)


def test_a_stale_verdict_lets_nothing_reach_the_next_pod_of_the_address(lab: PolicyLab) -> None:
    """An element of an attachment whose DEL has failed is replaced before the new pod's link is up."""
    stale = "fd00:10:244:1::4" if lab.version == 6 else "10.244.1.4"
    element = f'{{ {stale} comment "0123456789abcdef test x eth0" : accept }}'
    lab.node.run("nft", "add", "element", "inet", "podwire_policy", f"ingress{lab.version}", element)
    with inside(lab.pods["near"]):
        sender = socket.socket(socket.AF_INET6 if lab.version == 6 else socket.AF_INET, socket.SOCK_DGRAM)
    ended = threading.Event()

    def flood() -> None:
        while not ended.wait(0.0002):
            with suppress(OSError):
                sender.sendto(b"x", (stale, 9))

    with sender, ThreadPoolExecutor(1) as threads:
        flooding = threads.submit(flood)
        late = lab.start_pod("late")
        ended.wait(0.1)
        ended.set()
        flooding.result()
    assert address_of(late, lab.version) == stale
    assert received(late) == 0


def received(pod: Space) -> int:
    """Return how many datagrams for no open port have reached a pod."""
    lines = pod.run("nstat", "-asz", "UdpNoPorts", "Udp6NoPorts").stdout.splitlines()
    return sum(int(line.split()[1]) for line in lines if "NoPorts" in line)
