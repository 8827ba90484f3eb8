"""The file in net.d of a node that follows its cluster: ours in part, since others append plugins to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.agents import start_agent
from tests.harness.followers import following

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.followers import Follower

# What istio-cni and linkerd-cni append to the file of the primary network.
FOREIGN = (
    {"type": "istio-cni", "log_level": "info", "kubernetes": {"exclude_namespaces": ["kube-system"]}},
    {"type": "linkerd-cni", "name": "linkerd-cni", "prevResult": None, "ports": [1, 2.5]},
)
# A hostname as machines have it, in a namespace of its own.
CAPITALS = ("unshare", "--uts", "sh", "-ec", 'hostname Node1; exec "$@"', "sh")


def append(follower: Follower, *plugins: dict[str, Any], **keys: Any) -> str:
    """Append plugins as a Go program does it: read, add, write anew with its keys sorted, rename."""
    document = json.loads(follower.conflist.read_text())
    document["plugins"] += plugins
    staged = follower.conflist.parent / "tmp"
    staged.write_text(json.dumps(document | keys, indent=2, sort_keys=True))
    staged.rename(follower.conflist)
    return follower.conflist.read_text()


@pytest.mark.parametrize("mode", ["vxlan", "hostGateway"])
def test_plugins_that_others_append_stay_and_are_no_difference(
    tmp_path: Path, bin_dir: Path, mode: str
) -> None:
    with following(tmp_path, bin_dir, 2, mode=mode) as made:
        made.start()
        one = made.nodes[1]
        content = append(one, *FOREIGN, disableCheck=True)
        state = one.restart()
        assert (state["ready"], state["repairs"]) == (True, 0)
        made.api.remove("node2")
        one.wait_ready(0)
        assert one.conflist.read_text() == content
        # Our part changes: it alone is replaced.
        cidrs = ["10.244.9.0/24", "fd00:10:244:9::/64"]
        made.api.put(made.render(1, cidrs=cidrs))
        one.wait(lambda state: state["podCIDRs"] == cidrs)
        found = json.loads(one.conflist.read_text())
        assert found["plugins"][1:] == list(FOREIGN)
        assert found["disableCheck"] is True
        assert [r["subnet"] for (r,) in found["plugins"][0]["ipam"]["ranges"]] == cidrs
        assert list(found["plugins"][1]) == sorted(FOREIGN[0])
        # With the API away it begins with what is in the file, whoever wrote it last.
        made.api.stop()
        assert one.restart()["podCIDRs"] == cidrs


def test_plugins_that_others_append_stay_with_an_agent(tmp_path: Path, bin_dir: Path) -> None:
    with following(tmp_path, bin_dir, 1) as made:
        made.api.put(made.render(1))
        one = made.nodes[1]
        with start_agent(tmp_path / "a.sock", "--kubernetes", *one.words, inside=one.node):
            one.wait_ready(0)
            content = append(one, *FOREIGN)
            made.api.put(made.render(1), made.render(2))
            one.wait(lambda state: state["peersWanted"] == 1)
            assert one.conflist.read_text() == content
            one.start_pod()


@pytest.mark.parametrize(
    "text", ['{"plugins": [', '{"plugins": [{"type": "calico"}]}', "[1]", '{"plugins": 1}']
)
def test_a_file_without_our_plugin_is_replaced_whole(tmp_path: Path, bin_dir: Path, text: str) -> None:
    with following(tmp_path, bin_dir, 1) as made:
        made.api.put(made.render(1))
        one = made.nodes[1]
        one.conflist.parent.mkdir()
        one.conflist.write_text(text)
        one.start()
        one.wait_ready(0)
        assert [plugin["type"] for plugin in json.loads(one.conflist.read_text())["plugins"]] == ["podwire"]


@pytest.mark.parametrize("source", ["hostname", "NODE_NAME", "--node-name"])
def test_a_name_with_capitals_is_that_of_the_node_in_lower_case(
    tmp_path: Path, bin_dir: Path, source: str
) -> None:
    with following(tmp_path, bin_dir, 1) as made:
        made.api.put(made.render(1))
        one = made.nodes[1]
        given = {"--node-name": ("--node-name=NODE1",)}.get(source, ())
        one.options = (*given, *(word for word in one.options if not word.startswith("--node-name")))
        one.before = {"hostname": CAPITALS, "NODE_NAME": ("env", "NODE_NAME=Node1")}.get(source, ())
        one.start()
        assert one.wait_ready(0)["node"] == "node1"
