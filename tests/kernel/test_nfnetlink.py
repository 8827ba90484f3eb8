"""What we pack for nftables, as `nft` itself reads it back from a real kernel."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.netns import Namespace, open_host, open_pod
from cni_plugin.kernel.nft_message import Element, ElementChange

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import Node

TABLE = "podwire_policy"
RULESET = f"""
table inet {TABLE} {{
    chain pending {{ drop; }}
    chain group_1 {{ accept; }}
    set members {{ type ipv4_addr; }}
    map groups4 {{ type ipv4_addr : verdict; }}
    map groups6 {{ type ipv6_addr : verdict; }}
    map frontends {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
    map endpoints {{ type ipv4_addr : ipv4_addr; }}
}}
"""


@pytest.fixture
def host(plain_node: Node) -> Iterator[Namespace]:
    plain_node.run("nft", "-f", "-", input=RULESET)
    with open_pod(plain_node.path) as opened:
        yield opened


def listed(node: Node, name: str, kind: str = "map") -> list[Any]:
    """Return the elements as `nft -j` lists them."""
    said = json.loads(node.run("nft", "-j", "list", kind, "inet", TABLE, name).stdout)
    found: list[Any] = said["nftables"][1][kind].get("elem", [])
    return found


def element(name: str, key: bytes, **keys: Any) -> Element:
    return Element(family="inet", table=TABLE, set_name=name, key=key, **keys)


def add(*elements: Element) -> list[ElementChange]:
    return [ElementChange(each, present=True) for each in elements]


@pytest.mark.parametrize(
    ("verdict", "read"),
    [
        ("drop", {"drop": None}),
        ("accept", {"accept": None}),
        ("return", {"return": None}),
        ("continue", {"continue": None}),
        ("goto pending", {"goto": {"target": "pending"}}),
        ("jump group_1", {"jump": {"target": "group_1"}}),
    ],
)
def test_a_verdict_is_what_nft_reads(
    plain_node: Node, host: Namespace, verdict: str, read: dict[str, Any]
) -> None:
    made = [
        element("groups4", bytes([10, 1, 0, 2]), verdict=verdict),
        element("groups6", bytes([0xFD, *[0] * 14, 2]), verdict=verdict),
    ]
    host.nftables.apply(add(*made))
    assert listed(plain_node, "groups4") == [["10.1.0.2", read]]
    assert listed(plain_node, "groups6") == [["fd00::2", read]]
    for each in made:
        assert host.nftables.get("inet", each.set_name, each.key, table=TABLE) == each
        assert host.nftables.list_elements("inet", each.set_name, table=TABLE) == [each]


def test_a_key_of_several_parts_and_a_value_are_what_nft_reads(plain_node: Node, host: Namespace) -> None:
    key = bytes([10, 0, 0, 1]) + bytes([6, 0, 0, 0]) + (443).to_bytes(2, "big") + bytes(2)
    host.nftables.apply(
        add(
            element("frontends", key, verdict="goto group_1", comment="shop/web"),
            element("endpoints", bytes([10, 0, 0, 1]), data=bytes([10, 0, 0, 9])),
        )
    )
    (((frontend, verdict),), endpoints) = listed(plain_node, "frontends"), listed(plain_node, "endpoints")
    assert frontend["elem"] == {"val": {"concat": ["10.0.0.1", "tcp", 443]}, "comment": "shop/web"}
    assert verdict == {"goto": {"target": "group_1"}}
    assert endpoints == [["10.0.0.1", "10.0.0.9"]]


def test_many_elements_travel_in_one_batch_and_go_again(plain_node: Node, host: Namespace) -> None:
    many = [element("members", bytes([10, 2, n // 256, n % 256])) for n in range(5000)]
    host.nftables.apply(add(*many))
    assert len(listed(plain_node, "members", "set")) == len(many)
    host.nftables.apply(add(*many[:3]))  # what is there already is no error
    assert set(host.nftables.list_elements("inet", "members", table=TABLE)) == set(many)
    host.nftables.apply([ElementChange(each, present=False) for each in many[1:]])
    assert listed(plain_node, "members", "set") == ["10.2.0.0"]


def test_a_batch_is_made_whole_or_not_at_all(plain_node: Node, host: Namespace) -> None:
    good = element("members", bytes([10, 3, 0, 1]))
    absent = element("groups4", bytes([10, 3, 0, 1]), verdict="goto nowhere")
    with pytest.raises(
        KernelError, match=f"nft add element inet {TABLE} groups4 {{ 0a030001 : goto nowhere }}"
    ):
        host.nftables.apply(add(good, absent))
    assert listed(plain_node, "members", "set") == []


def test_a_batch_that_names_a_generation_is_decided_anew_when_the_ruleset_has_changed(
    plain_node: Node, host: Namespace
) -> None:
    looks = []

    def decide() -> list[ElementChange]:
        looks.append(host.nftables.list_elements("inet", "members", table=TABLE))
        if len(looks) == 1:
            plain_node.run("nft", "add", "element", "inet", TABLE, "members", "{ 10.4.0.1 }")
        return add(element("members", bytes([10, 4, 0, 2])))

    host.nftables.update(decide)
    assert [len(look) for look in looks] == [0, 1]
    assert sorted(listed(plain_node, "members", "set")) == ["10.4.0.1", "10.4.0.2"]


def test_sets_and_comments_are_those_of_the_table_that_was_asked(plain_node: Node, host: Namespace) -> None:
    plain_node.run("nft", "add", "rule", "inet", TABLE, "group_1", "drop", "comment", '"ours"')
    assert host.nftables.list_sets("inet", "groups", table=TABLE) == ["groups4", "groups6"]
    assert host.nftables.list_sets("inet") == []
    assert host.nftables.list_comments("inet", "group_1", table=TABLE) == ["", "ours"]
    assert host.nftables.list_comments("inet", "group_1") == []


def test_a_socket_of_one_namespace_is_not_given_to_another(plain_node: Node) -> None:
    """The calling thread may be the one by which /proc/self tells where the process is."""
    plain_node.run("nft", "-f", "-", input=RULESET)
    with open_pod(plain_node.pod().path) as pod, pod.entered(), open_host() as first:
        assert first.nftables is not None
    with open_pod(plain_node.path) as second, second.entered():
        second.nftables.apply(add(element("members", bytes([10, 1, 0, 2]))))
    assert listed(plain_node, "members", "set") == ["10.1.0.2"]
