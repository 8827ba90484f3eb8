"""Host ports and their conditions as text: what a configuration says, and what nftables is told."""

from __future__ import annotations

from typing import Any

import pytest
from netaddr import IPAddress

from cni_plugin.contract.errors import CNIError
from cni_plugin.contract.fields import Fields
from cni_plugin.features.conditions import parse_conditions
from cni_plugin.features.hostports import HostPort, pack_target, parse_host_ports, parse_key, parse_target
from cni_plugin.features.portmap_rules import Treatment, plan_ruleset


def ports(**entry: Any) -> dict[str, int]:
    found = parse_host_ports(Fields({"runtimeConfig": {"portMappings": [entry]}}))
    assert found is not None
    return {str(port): target for port, target in found.items()}


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({"hostPort": 80, "containerPort": 8}, {"80/tcp (IPv4)": 8, "80/tcp (IPv6)": 8}),
        ({"HostPort": 80, "ContainerPort": 8, "Protocol": "UDP", "HostIP": "0.0.0.0"}, {"80/udp (IPv4)": 8}),
        ({"hostPort": 80, "containerPort": 8, "hostIP": "::"}, {"80/tcp (IPv6)": 8}),
        ({"hostPort": 80, "containerPort": 8, "hostIP": "::ffff:192.0.2.1"}, {"192.0.2.1 80/tcp (IPv4)": 8}),
        (
            {"hostPort": 80, "hostPortEnd": 82, "containerPort": 8, "hostIP": "2001:db8::1"},
            {f"2001:db8::1 {80 + i}/tcp (IPv6)": 8 + i for i in range(3)},
        ),
        (
            {
                "hostPort": 80,
                "hostPortEnd": 81,
                "containerPort": 8,
                "containerPortEnd": 9,
                "hostIP": "0.0.0.0",
            },
            {"80/tcp (IPv4)": 8, "81/tcp (IPv4)": 9},
        ),
    ],
)
def test_an_entry_is_one_port_per_family_and_number(entry: dict[str, Any], wanted: dict[str, int]) -> None:
    assert ports(**entry) == wanted


def test_no_list_is_not_an_empty_list() -> None:
    assert parse_host_ports(Fields({})) is None
    assert parse_host_ports(Fields({"runtimeConfig": {"portMappings": None}})) is None
    assert parse_host_ports(Fields({"runtimeConfig": {"portMappings": []}})) == {}


@pytest.mark.parametrize("address", [None, "192.0.2.1", "2001:db8::1"])
def test_what_the_kernel_holds_reads_back_as_it_was_written(address: str | None) -> None:
    ip = IPAddress(address) if address else None
    port = HostPort(version=ip.version if ip else 6, protocol="sctp", address=ip, port=65535)
    assert parse_key(f"{port.kind}0123", port.key) == port
    target = IPAddress(address or "fd00::1"), 443
    assert parse_target(pack_target(*target)) == target


def test_the_key_is_as_nft_writes_it() -> None:
    port = HostPort(version=4, protocol="udp", address=IPAddress("192.0.2.1"), port=5353)
    assert port.key == bytes([192, 0, 2, 1, 17, 0, 0, 0, 0x14, 0xE9, 0, 0])


def conditions(words: list[str], version: int = 4, *, own: bool = False) -> str:
    return parse_conditions(Fields({f"conditionsV{version}": words}), version, own=own)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["-s", "192.0.2.1"], "ip saddr 192.0.2.1"),
        (["!", "-d", "192.0.2.7/24"], "ip daddr != 192.0.2.0/24"),
        (["-d", "!", "192.0.2.1/32"], "ip daddr != 192.0.2.1/32"),
        (["-s", "192.0.2.1,10.0.0.0/8", "-i", "eth0"], 'ip saddr { 192.0.2.1, 10.0.0.0/8 } iifname "eth0"'),
        (["!", "-i", "cali+"], 'iifname != "cali*"'),
        (["-p", "tcp", "--dport", "80:90"], "meta l4proto tcp th dport 80-90"),
        (["ip", "saddr", "{", "192.0.2.1", "}"], "ip saddr { 192.0.2.1 }"),
        ([], ""),
    ],
)
def test_conditions_become_words_of_nft(words: list[str], wanted: str) -> None:
    assert conditions(words) == wanted
    assert conditions(["-s", "2001:db8::1"], 6) == "ip6 saddr 2001:db8::1"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-m", "comment"], 2),
        (["--sport", "1"], 2),
        (["-s", "192.0.2.1", "!"], 2),
        (["-s"], 2),
        (["-s", "host"], 7),
        (["-s", "2001:db8::1"], 7),
        (["-i", 'eth0" accept'], 7),
        (["-p", "tcp udp"], 7),
        (["--dport", "http"], 7),
        (["ip", "saddr", "192.0.2.1;"], 7),
    ],
)
def test_conditions_that_cannot_be_are_refused_by_their_key(words: list[str], code: int) -> None:
    with pytest.raises(CNIError) as caught:
        conditions(words)
    assert caught.value.code == code
    assert "conditionsV4" in caught.value.msg


def test_only_attachments_that_are_treated_alike_share_chains() -> None:
    plain = {"snat": True, "masq_all": False, "mark": 0, "conditions": ((4, ""), (6, "")), "segment": "cni0"}
    others = {"snat": False, "masq_all": True, "mark": 1, "conditions": ((4, "x"), (6, "")), "segment": ""}
    treatments = [Treatment(**plain), *(Treatment(**(plain | {k: v})) for k, v in others.items())]
    assert len({treatment.scope for treatment in treatments}) == len(treatments)
    assert Treatment(**plain).scope == Treatment(**plain).scope
    names = [{chain.name for chain in plan_ruleset(treatment).chains} for treatment in treatments]
    assert len(set().union(*names)) == sum(map(len, names))
