"""A firewall of somebody else's that drops pods' traffic is named, and opened by the command that we say."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import in_process
from tests.harness.answers import assert_ok, refusal
from tests.harness.chain import Chain, install_as
from tests.harness.cluster import ROUTER, Cluster, make_cluster, sync
from tests.harness.networks import dual_stack, network

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node, Pod

# What each of them makes, as far as it concerns packets that are forwarded.
DOCKER = """
iptables -P FORWARD DROP
iptables -N DOCKER-USER
iptables -A FORWARD -j DOCKER-USER
iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
"""
BOTH = """
iptables -P FORWARD DROP
ip6tables -P FORWARD DROP
"""
LEGACY = "iptables-legacy -P FORWARD DROP"
REJECTING = """
nft 'table inet shield { chain forward { type filter hook forward priority filter + 10; policy accept;
ct state established,related accept; iifname "lo" accept; reject with icmpx type admin-prohibited; }; }'
"""
FIREWALLD = """
nft 'table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; reject; }; }'
"""
HARMLESS = """
iptables -A FORWARD -s 203.0.113.0/24 -j DROP
nft 'table inet theirs { chain forward { type filter hook forward priority 0; policy accept;
ct state invalid drop; iifname "docker0" reject; }; }'
nft 'table inet guarded { chain forward { type filter hook forward priority 0; policy drop;
ct state vmap { established : accept, related : accept }; iifname "cni0" accept; }; }'
"""
WALLS = {
    "docker": (DOCKER, "table ip filter, chain FORWARD", "iptables -I DOCKER-USER -i cni0 -j ACCEPT"),
    "both": (BOTH, "table ip6 filter, chain FORWARD", "ip6tables -I FORWARD -i cni0 -j ACCEPT"),
    "legacy": (LEGACY, "iptables-legacy table filter, chain FORWARD", "iptables-legacy -I FORWARD -i cni0"),
    "rejecting": (REJECTING, "table inet shield, chain forward", "nft 'insert rule inet shield forward"),
}


@pytest.fixture
def cluster(tmp_path: Path, bin_dir: Path) -> Iterator[Cluster]:
    made = make_cluster(tmp_path, bin_dir, 1)
    made.underlay.run("ip", "route", "add", "10.22.0.0/24", "via", made.address(1, 4))
    made.underlay.run("ip", "route", "add", "fd00:22::/64", "via", made.address(1, 6))
    yield made
    made.remove()


def reached(pod: Pod) -> list[bool]:
    return [pod.ping(address, within=0.4) for address in ROUTER.values()]


def commands_of(text: str) -> list[str]:
    """Return the commands that a message tells an operator to run."""
    return [part.partition("open it: ")[2] for part in text.split("; ") if part.startswith("open it: ")]


@pytest.mark.parametrize("wall", WALLS)
@pytest.mark.parametrize("mode", ["bridge", "routed"])
def test_what_drops_pods_traffic_is_named_and_the_command_opens_it(
    cluster: Cluster, mode: str, wall: str
) -> None:
    node = cluster.nodes[1]
    script, chain, command = WALLS[wall]
    if mode == "routed":
        command = command.replace("cni0", "veth+")
    config, pod = dual_stack(node, mode=mode), node.pod()
    node.add(config, pod)
    assert reached(pod) == [True, True]
    assert_ok(node.call("STATUS", config))
    node.run("sh", "-ec", script)
    later = node.pod()
    added = node.call("ADD", config, later)
    assert added.status == 0
    assert False in reached(later)
    assert_ok(node.call("STATUS", config))  # the next ADD works, and the node is not to be given up
    code, text = refusal(node.call("STATUS", config | {"strictStatus": True}))
    assert code == 51
    assert chain in text
    assert command in text
    shown = sync(node, config, "status")
    assert shown.returncode == 1
    for each in text.split("; open it: "):
        assert each.partition("; table ")[0] in shown.stdout
    if wall in {"docker", "both"}:
        assert chain in added.stderr
        assert command in added.stderr
    for each in commands_of(text):
        node.run("sh", "-ec", each)
    assert reached(later) == [True, True]
    assert_ok(node.call("STATUS", config | {"strictStatus": True}))
    assert "drops what is forwarded" not in sync(node, config, "status").stdout


def test_what_lets_pods_through_is_not_named(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    node.run("sh", "-ec", HARMLESS)
    config, pod = dual_stack(node), node.pod()
    node.add(config, pod)
    assert reached(pod) == [True, True]
    assert_ok(node.call("STATUS", config | {"strictStatus": True}))


@pytest.mark.parametrize(
    ("script", "command"),
    [
        (
            FIREWALLD,
            "firewall-cmd --permanent --zone=trusted --add-interface=cni0 && firewall-cmd --reload",
        ),
        (
            "iptables -P FORWARD DROP; iptables -N ufw-user-forward",
            "ufw route allow in on cni0 && ufw route allow out on cni0",
        ),
    ],
    ids=["firewalld", "ufw"],
)
def test_the_command_is_that_of_who_made_the_chain(node: Node, script: str, command: str) -> None:
    node.run("sh", "-ec", script)
    code, text = refusal(node.call("STATUS", dual_stack(node, strictStatus=True)))
    assert (code, commands_of(text)) == (51, [command])


def test_what_firewalld_and_ufw_then_have_is_seen_as_open(node: Node) -> None:
    """The rules as these programs write them: a zone by its interface, a chain of the user's own."""
    node.run(
        "sh",
        "-ec",
        """
nft 'table inet firewalld {
 chain filter_FORWARD { type filter hook forward priority 10; policy accept;
  ct state established,related accept; jump filter_FORWARD_POLICIES; reject; }
 chain filter_FORWARD_POLICIES { iifname "cni0" jump filter_FWD_trusted; }
 chain filter_FWD_trusted { accept; }
}'
iptables -P FORWARD DROP
iptables -N ufw-user-forward
iptables -A FORWARD -j ufw-user-forward
iptables -A ufw-user-forward -i cni0 -j ACCEPT
iptables -A ufw-user-forward -o cni0 -j ACCEPT
""",
    )
    assert_ok(node.call("STATUS", dual_stack(node, strictStatus=True)))


BY_ADDRESS = """
nft 'table inet theirs { chain forward { type filter hook forward priority 0; policy drop;
ct state established,related accept; ip saddr 10.22.0.0/16 accept;
ip6 saddr { fd00:22::/48, fd01::/64 } accept;
}; }'
iptables -P FORWARD DROP
iptables -A FORWARD -s 10.22.0.0/24 -j ACCEPT
iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
"""
PARTLY = """
iptables -P FORWARD DROP
iptables -A FORWARD -d 10.22.0.0/25 -j ACCEPT
iptables -A FORWARD -i cni0 -j ACCEPT
"""
UNKNOWN = "iptables -P FORWARD DROP; iptables -A FORWARD -m mark --mark 7 -j ACCEPT"
ELSEWHERE = "iptables -P FORWARD DROP; iptables -A FORWARD -s 10.99.0.0/16 -j ACCEPT"


def test_rules_that_accept_the_pod_network_by_address_are_open(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    node.run("sh", "-ec", BY_ADDRESS)
    config, pod = dual_stack(node), node.pod()
    node.add(config, pod)
    assert reached(pod) == [True, True]
    assert_ok(node.call("STATUS", config | {"strictStatus": True}))
    shown = sync(node, config, "status")
    assert (shown.returncode, "drops" in shown.stdout) == (0, False), shown.stdout


@in_process  # the C shim is no doctor
@pytest.mark.parametrize(
    ("script", "code"), [(PARTLY, 0), (UNKNOWN, 0), (ELSEWHERE, 51)], ids=["partly", "unknown", "elsewhere"]
)
def test_what_cannot_be_decided_is_no_error(node: Node, script: str, code: int) -> None:
    node.run("sh", "-ec", script)
    answer = node.call("STATUS", dual_stack(node, strictStatus=True))
    assert (answer.json["code"] if answer.status else 0) == code
    found = sync(node, dual_stack(node), "doctor", "--json").stdout
    assert ("cannot be told" in found) == (code == 0)


@pytest.mark.parametrize("keys", [{"isDefaultGateway": False}, {"ipam": None}])
def test_a_network_that_the_node_does_not_forward_for_is_ready(node: Node, keys: dict[str, Any]) -> None:
    node.run("iptables", "-P", "FORWARD", "DROP")
    config = {**network(node, [{"subnet": "10.22.0.0/24"}], strictStatus=True), **keys}
    assert_ok(node.call("STATUS", config))
    assert "FORWARD" not in node.call("ADD", config, node.pod()).stderr


def test_a_family_that_pods_do_not_have_is_not_looked_at(node: Node) -> None:
    node.run("ip6tables", "-P", "FORWARD", "DROP")
    config = network(node, [{"subnet": "10.22.0.0/24"}], isDefaultGateway=True, strictStatus=True)
    assert_ok(node.call("STATUS", config))
    assert refusal(node.call("STATUS", dual_stack(node, strictStatus=True)))[0] == 51


def test_the_firewall_plugin_names_it_too(node: Node) -> None:
    node.run("sh", "-ec", DOCKER)
    chain = Chain(node, [dual_stack(node), {"type": "firewall"}], [install_as(node, "podwire", "firewall")])
    answer = chain.try_add(node.pod())
    assert answer.status == 0
    assert "table ip filter, chain FORWARD" in answer.stderr
    assert "DOCKER-USER -i cni0" in answer.stderr
    assert shlex.split(answer.stderr)
