"""DEL succeeds whatever is missing, and leaves nothing of what an ADD made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness.answers import assert_ok, unchanged, warm
from tests.harness.foreign import ADDRESS, delegated, foreign, says
from tests.harness.networks import V4, dual_stack, network

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Node

BREAK = {
    "ranges are no list": ({}, {"ranges": "?"}),
    "ranges overlap": ({}, {"ranges": [V4, V4]}),
    "no range": ({}, {"ranges": []}),
    "routes": ({}, {"routes": [{"dst": "?"}]}),
    "mtu": ({"mtu": "big"}, {}),
    "ipMasq": ({"ipMasq": "?", "macspoofchk": "?"}, {}),
    "mode": ({"mode": "wormhole"}, {}),
    "bridge": ({"bridge": 5, "vlan": 5000}, {}),
    "args": ({"args": [], "runtimeConfig": 7, "dns": 0, "prevResult": []}, {}),
}


def test_a_configuration_that_add_would_refuse_still_releases_everything(node: Node) -> None:
    warm(node)
    config = dual_stack(node)
    with unchanged(node):
        for keys, ipam in BREAK.values():
            pod = node.pod()
            node.add(config, pod)
            node.delete(config | keys | {"ipam": config["ipam"] | ipam}, pod)
            assert list(pod.links()) == ["lo"]


@pytest.mark.parametrize("directory", ["relative", 5, "/tmp/a\0b"])
def test_a_directory_that_add_would_refuse_fails_no_del(node: Node, directory: object) -> None:
    config, pod = dual_stack(node), node.pod()
    node.add(config, pod)
    refused = config | {"ipam": config["ipam"] | {"dataDir": directory}}
    for program in ("podwire-ipam", "podwire"):
        assert_ok(node.call("DEL", refused, pod, program=program))
    assert list(pod.links()) == ["lo"]
    node.delete(config, pod)


@pytest.mark.parametrize(
    "where", ["there", "gone", "empty", "unset", "a plain file", "a directory", "another"]
)
def test_wherever_the_namespace_is_the_link_and_the_addresses_go(
    node: Node, where: str, tmp_path: Path
) -> None:
    warm(node)
    config, pod, other = dual_stack(node), node.pod(), node.pod()
    plain = tmp_path / "plain"
    plain.touch()
    paths = {
        "empty": "",
        "unset": None,
        "a plain file": str(plain),
        "a directory": "/",
        "another": other.path,
    }
    with unchanged(node):
        node.add(config, pod)
        if where == "gone":
            pod.remove()
        for _ in range(2):
            node.delete(config, pod, environ={"CNI_NETNS": paths.get(where, pod.path)})


def test_what_was_never_added_is_deleted_without_a_trace(node: Node) -> None:
    with unchanged(node):
        node.delete(dual_stack(node), node.pod())
        node.delete(network(node), node.pod())
    assert list(node.links()) == ["lo"]


def test_the_other_interface_of_the_same_container_stays(node: Node) -> None:
    config, pod = dual_stack(node), node.pod()
    node.add(config, pod)
    node.add(config, pod, environ={"CNI_IFNAME": "eth1"})
    node.delete(config, pod)
    assert sorted(pod.links()) == ["eth1", "lo"]
    assert {owner.split()[1] for owner in node.held().values()} == {"eth1"}


def test_the_delegate_is_told_although_everything_else_is_gone(node: Node) -> None:
    plugin, pod = foreign(node, add=says(ADDRESS)), node.pod()
    node.add(delegated(), pod, environ=plugin.environ)
    pod.remove()
    node.delete(delegated(delegateTimeout="soon"), pod, environ=plugin.environ)
    assert plugin.calls == ["ADD", "DEL"]


def test_a_delegates_failure_is_reported_after_the_link_has_gone(node: Node) -> None:
    plugin, pod = foreign(node, add=says(ADDRESS), delete=says({"code": 11, "msg": "later"}, 1)), node.pod()
    port = node.add(delegated(), pod, environ=plugin.environ)["interfaces"][1]["name"]
    answer = node.call("DEL", delegated(), pod, environ=plugin.environ)
    assert (answer.json["code"], answer.json["msg"]) == (11, "IPAM plugin elsewhere: later")
    assert port not in node.links()


def test_a_store_that_is_gone_holds_nothing_up(node: Node) -> None:
    config, pod = dual_stack(node), node.pod()
    node.add(config, pod)
    node.run("rm", "-r", str(node.data_dir))
    assert_ok(node.call("DEL", config, pod))
    assert not node.data_dir.exists()
