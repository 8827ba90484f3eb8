"""GC: what the runtime no longer lists goes, everything else stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.answers import assert_ok, assert_refused, unchanged
from tests.harness.foreign import delegated, foreign, says, speaks
from tests.harness.networks import V4, dual_stack, network

if TYPE_CHECKING:
    from tests.harness.node import Node, Pod

FIRST, SECOND = "cni.dev/valid-attachments", "cni.dev/attachments"


def listed(*pods: Pod) -> list[dict[str, str]]:
    return [{"containerID": pod.container_id, "ifname": "eth0"} for pod in pods]


def ports(node: Node) -> set[str]:
    return {name for name in node.links() if name.startswith("veth")}


def attach(node: Node, config: dict[str, Any], count: int) -> tuple[list[Pod], list[str]]:
    """Return pods, and the host's end of each by its container id."""
    pods = [node.pod() for _ in range(count)]
    return pods, [node.add(config, pod)["interfaces"][1]["name"] for pod in pods]


@pytest.mark.parametrize("key", [FIRST, SECOND])
def test_what_is_not_in_the_list_loses_its_link_and_its_address(node: Node, key: str) -> None:
    config = dual_stack(node)
    (kept, gone), (kept_port, _) = attach(node, config, 2)
    assert_ok(node.call("GC", config | {key: listed(kept)}))
    assert ports(node) == {kept_port}
    assert list(gone.links()) == ["lo"]
    assert {owner.split()[0] for owner in node.held().values()} == {kept.container_id}
    assert kept.ping("10.22.0.1")


def test_the_first_key_wins_over_the_second(node: Node) -> None:
    config = dual_stack(node)
    (pod,), _ = attach(node, config, 1)
    with unchanged(node):
        assert_ok(node.call("GC", config | {FIRST: listed(pod), SECOND: []}))
        assert_ok(node.call("GC", config | {FIRST: None, SECOND: listed(pod)}))


def test_without_a_list_nothing_is_released(node: Node) -> None:
    config = dual_stack(node)
    attach(node, config, 1)
    with unchanged(node):
        assert_ok(node.call("GC", config))
        assert_ok(node.call("GC", config | {FIRST: None}))


def test_an_empty_list_releases_all_of_this_network_and_nothing_of_another(node: Node) -> None:
    config = dual_stack(node)
    # A name that begins like ours, the same bridge and the same store.
    other = network(node, [{"subnet": "10.60.0.0/24"}], name="test2")
    (_, gone), _ = attach(node, config, 2)
    (stays,), (other_port,) = attach(node, other, 1)
    gone.remove()  # its veth with it
    assert_ok(node.call("GC", config | {FIRST: []}))
    assert ports(node) == {other_port}
    assert node.held() == {}
    assert [owner.split()[0] for owner in node.held("test2").values()] == [stays.container_id]
    with unchanged(node):
        assert_ok(node.call("GC", config | {FIRST: []}))


def test_another_interface_of_a_valid_container_is_another_attachment(node: Node) -> None:
    config, pod = dual_stack(node), node.pod()
    node.add(config, pod)
    node.add(config, pod, environ={"CNI_IFNAME": "eth1"})
    assert_ok(node.call("GC", config | {FIRST: listed(pod)}))
    assert sorted(pod.links()) == ["eth0", "lo"]
    assert {owner.split()[1] for owner in node.held().values()} == {"eth0"}


@pytest.mark.parametrize(
    "member", [{"containerID": "x"}, {"ifname": "eth0"}, "x", {"containerID": 5, "ifname": "e"}]
)
def test_a_list_that_cannot_be_read_releases_nothing(node: Node, member: object) -> None:
    config = dual_stack(node)
    (pod,), _ = attach(node, config, 1)
    with unchanged(node):
        assert_refused(node.call("GC", config | {FIRST: [*listed(pod), member]}), 7, f"{FIRST}[1]")


def test_a_configuration_that_add_would_refuse_still_collects(node: Node) -> None:
    config = dual_stack(node)
    attach(node, config, 1)
    broken = config | {"mtu": "big", "ipam": config["ipam"] | {"ranges": "?"}, FIRST: []}
    assert_ok(node.call("GC", broken))
    assert (ports(node), node.held()) == (set(), {})


def test_it_is_forwarded_to_the_ipam_plugin_whose_error_is_ours(node: Node) -> None:
    plugin = foreign(node, gc='echo \'{"code": 123, "msg": "dust"}\'; exit 1')
    (_, port) = attach(node, network(node), 1)
    assert port[0] in ports(node)
    answer = node.call("GC", delegated() | {FIRST: []}, environ=plugin.environ)
    assert_refused(answer, 123, "elsewhere", "dust")
    # The link went all the same.
    assert (plugin.calls, ports(node)) == (["VERSION", "GC"], set())


@pytest.mark.parametrize("version", [speaks("1.0.0"), says({"code": 4, "msg": "unknown CNI_COMMAND"}, 1)])
def test_an_ipam_plugin_of_before_gc_is_not_asked(node: Node, version: str) -> None:
    plugin = foreign(node, version=version, gc=says({"code": 4, "msg": "unknown CNI_COMMAND: GC"}, 1))
    (_, port) = attach(node, network(node), 1)
    assert port[0] in ports(node)
    assert_ok(node.call("GC", delegated() | {FIRST: []}, environ=plugin.environ))
    assert (plugin.calls, ports(node)) == (["VERSION"], set())


def test_the_address_manager_alone_collects_its_store_only(node: Node) -> None:
    config = network(node, V4)
    (kept, _), _ = attach(node, config, 2)
    links = ports(node)
    assert_ok(node.call("GC", config | {FIRST: listed(kept)}, program="podwire-ipam"))
    assert [owner.split()[0] for owner in node.held().values()] == [kept.container_id]
    assert ports(node) == links
