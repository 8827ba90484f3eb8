"""Peers as they are written, and the set of kernel objects that follows from them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from netaddr import IPAddress, IPNetwork

from cni_plugin.backend.peer_list import Peer, PeerSource, check_peers, find_peers, refuse_overlaps
from cni_plugin.backend.peers import Desired, count_desired, network_priority, peer_route
from cni_plugin.backend.stamp import Stamp, read_stamp, write_stamp
from cni_plugin.backend.tunnel import endpoint_mac, inner_address, next_hop
from cni_plugin.backend.underlay import Underlay, overlay_mtu
from cni_plugin.contract.errors import CNIError
from cni_plugin.contract.fields import Fields
from cni_plugin.contract.inet import link_local
from cni_plugin.kernel.neigh import FdbEntry, Neighbour

if TYPE_CHECKING:
    from pathlib import Path


def peer(vtep: str, *subnets: str) -> Peer:
    return Peer(addresses=(IPAddress(vtep),), subnets=tuple(IPNetwork(subnet) for subnet in subnets))


BOTH = (peer("192.0.2.2", "10.2.0.0/24", "fd00:2::/64"), peer("192.0.2.3", "10.3.0.0/24"))
# The same peers in every form that a file may have.
FILES = {
    "lines": "192.0.2.2 10.2.0.0/24 fd00:2::/64\n192.0.2.3 10.3.0.0/24\n",
    "comments and blank lines": "# all\n\n192.0.2.3\t10.3.0.0/24 # web\n192.0.2.2 fd00:2::/64 10.2.0.0/24\n",
    "a line twice": "192.0.2.3 10.3.0.0/24\n192.0.2.2 10.2.0.0/24 fd00:2::/64\n192.0.2.3 10.3.0.0/24\n",
    "CRLF": "192.0.2.2 10.2.0.0/24 fd00:2::/64\r\n192.0.2.3 10.3.0.0/24\r\n",
    "JSON": json.dumps(
        [
            {"vtep": "192.0.2.2", "subnets": ["10.2.0.0/24", "fd00:2::/64"]},
            {"addresses": ["192.0.2.3"], "subnets": ["10.3.0.0/24"]},
        ]
    ),
}


def read(tmp_path: Path, text: str) -> PeerSource:
    (tmp_path / "peers").write_bytes(text.encode())
    return find_peers(Fields({"peersFile": str(tmp_path / "peers")}), Stamp())


def test_a_file_that_nests_too_deep_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(CNIError, match="wanted a JSON list of peers") as raised:
        read(tmp_path, "[" * 100_000)
    assert raised.value.code == 7


@pytest.mark.parametrize("name", FILES)
def test_a_file_says_the_same_in_every_form(tmp_path: Path, name: str) -> None:
    source = read(tmp_path, FILES[name])
    assert source.read() == BOTH
    assert source.with_subnets
    assert not source.nobody


@pytest.mark.parametrize(
    "text",
    [
        "192.0.2.2\n192.0.2.3\n",
        '["192.0.2.2", "192.0.2.3"]',
        '[\n  {"vtep": "192.0.2.2"},\n  "192.0.2.3"\n]\n',
    ],
)
def test_addresses_alone_are_a_flat_network(tmp_path: Path, text: str) -> None:
    source = read(tmp_path, text)
    assert source.read() == (peer("192.0.2.2"), peer("192.0.2.3"))
    assert not source.with_subnets


@pytest.mark.parametrize("text", ["# nobody\n", "\n", "[]"])
def test_a_file_may_say_that_there_is_nobody(tmp_path: Path, text: str) -> None:
    source = read(tmp_path, text)
    assert source.nobody
    assert source.read() == ()


def test_listed_peers_and_the_files_are_one_set(tmp_path: Path) -> None:
    (tmp_path / "peers").write_text("192.0.2.3\n192.0.2.2\n")
    fields = Fields({"peers": ["192.0.2.2"], "peersFile": str(tmp_path / "peers")})
    assert find_peers(fields, Stamp()).read() == (peer("192.0.2.2"), peer("192.0.2.3"))


def test_the_digest_is_of_what_is_written(tmp_path: Path) -> None:
    assert read(tmp_path, "192.0.2.2\n").digest == read(tmp_path, "192.0.2.2\n").digest
    assert read(tmp_path, "192.0.2.2\n").digest != read(tmp_path, "192.0.2.3\n").digest
    listed = [find_peers(Fields({"peers": [a]}), Stamp()).digest for a in ("192.0.2.2", "192.0.2.3")]
    assert listed[0] != listed[1]


def test_the_last_good_content_speaks_for_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "peers").write_text("192.0.2.2 10.2.")
    stamp = Stamp(content="192.0.2.2 10.2.0.0/24\n")
    source = find_peers(Fields({"peersFile": str(tmp_path / "peers")}), stamp)
    assert source.read() == (peer("192.0.2.2", "10.2.0.0/24"),)
    assert source.problem == f'"peersFile" {tmp_path}/peers: wanted a newline at its end, found it cut off'


OVERLAPS = {
    "the same": (["10.0.0.0/24", "10.0.0.0/24"], True),
    "inside, listed first": (["10.0.0.128/25", "10.0.0.0/24"], True),
    "inside, not beside it": (["10.0.0.0/8", "10.9.0.0/16", "10.1.0.0/16"], True),
    "everything": (["0.0.0.0/0", "10.0.0.0/24"], True),
    "the last address": (["10.0.0.0/24", "10.0.0.255/32"], True),
    "side by side": (["10.0.0.0/25", "10.0.0.128/25", "10.0.1.0/24"], False),
    "IPv6 inside": (["fd00::/48", "fd00:0:0:1::/64"], True),
    "numbers alike in both families": (["0.0.0.0/0", "::/96"], False),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_two_subnets_with_an_address_in_common_are_found(name: str) -> None:
    subnets, overlap = OVERLAPS[name]
    members = [(f"peer {i}", IPNetwork(subnet)) for i, subnet in enumerate(subnets)]
    if overlap:
        with pytest.raises(CNIError, match="overlaps"):
            refuse_overlaps(members)
    else:
        refuse_overlaps(members)


def test_a_peer_twice_is_one_and_with_other_subnets_an_error() -> None:
    assert check_peers([BOTH[1], BOTH[0], BOTH[1]]) == BOTH
    with pytest.raises(CNIError, match=r"192\.0\.2\.2 is listed twice"):
        check_peers([*BOTH, peer("192.0.2.2", "10.9.0.0/24")])


def test_counts_are_by_kind_and_family() -> None:
    address = IPAddress("10.2.0.0")
    desired = Desired(
        device=7,
        priority=1,
        addresses=frozenset({IPNetwork("10.1.0.0/32")}),
        fdb=frozenset({FdbEntry(mac="02:00:00:00:00:02", vtep=IPAddress("192.0.2.2"))}),
        neighbours=frozenset({Neighbour(address=address, mac="02:00:00:00:00:02")}),
        routes=frozenset(
            peer_route(IPNetwork(dst), address, 7, priority=1, onlink=True)
            for dst in ("10.2.0.0/24", "10.3.0.0/24", "fd00:2::/64")
        ),
    )
    counts = count_desired(desired)
    assert (counts.addresses, counts.fdb, counts.neighbours, counts.routes) == (1, 1, (1, 0), (2, 1))


def test_priorities_differ_by_network_and_stand_behind_everybodys() -> None:
    assert network_priority("a") != network_priority("b")
    assert all(0x40000000 <= network_priority(name) < 2**31 for name in ("a", "b", ""))


def test_an_endpoints_mac_is_derived_local_and_unicast() -> None:
    macs = {endpoint_mac(vni, address) for vni in (1, 2) for address in ("192.0.2.1", "2001:db8::1")}
    assert len(macs) == 4
    assert all(mac.startswith("02:") for mac in macs)
    # What other nodes have derived already must not change between versions.
    assert endpoint_mac(42, "192.0.2.1") == endpoint_mac(42, IPAddress("192.0.2.1")) == "02:26:59:e0:81:42"


def test_inside_a_node_is_its_subnets_first_address() -> None:
    assert str(inner_address(IPNetwork("10.2.0.0/24"))) == "10.2.0.0/32"
    assert str(inner_address(IPNetwork("fd00:2::/64"))) == "fd00:2::/128"


def test_a_peer_has_one_next_hop_per_family() -> None:
    several = peer("192.0.2.2", "10.2.0.0/24", "10.9.0.0/24", "fd00:2::/64")
    assert str(next_hop(several, "02:00:5e:10:00:01", 4)) == "10.2.0.0"
    assert str(next_hop(several, "02:00:5e:10:00:01", 6)) == "fe80::5eff:fe10:1"


def test_a_mac_gives_a_link_its_address() -> None:
    assert str(link_local("02:00:5e:10:00:01")) == "fe80::5eff:fe10:1"


@pytest.mark.parametrize(
    ("configured", "overhead", "extra", "expected"),
    [(0, 50, 0, 1450), (0, 70, 0, 1430), (0, 70, 60, 1370), (1300, 50, 0, 1300), (1450, 50, 0, 1450)],
)
def test_the_mtu_is_what_is_left(configured: int, overhead: int, extra: int, expected: int) -> None:
    underlay = Underlay(index=2, name="eth0", mtu=1500, address=IPAddress("192.0.2.1"))
    assert overlay_mtu(configured, underlay, overhead, extra) == expected


def test_an_mtu_that_does_not_fit_names_both_numbers() -> None:
    underlay = Underlay(index=2, name="eth0", mtu=1500, address=IPAddress("192.0.2.1"))
    with pytest.raises(CNIError, match="wanted 1451, found room for 1450: eth0 carries 1500"):
        overlay_mtu(1451, underlay, 50, 0)


def test_a_stamp_is_read_as_written_and_a_broken_one_is_none(tmp_path: Path) -> None:
    path = str(tmp_path / "test.peers")
    assert read_stamp(path) == Stamp()
    stamp = Stamp(digest="d", counts="c", content="192.0.2.2\n")
    write_stamp(path, stamp)
    assert read_stamp(path) == stamp
    for text in (
        "",
        "{",
        "[]",
        '{"digest": "d", "nonsense": 1}',
        '{"content": 5}',
        '{"content": "\\ud800"}',
        "[" * 100_000,
    ):
        (tmp_path / "test.peers").write_text(text)
        assert read_stamp(path) == Stamp(), text
