"""STATUS of a network that follows a cluster: what the state file says, in all ways of calling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cni_plugin.config.state_file import ClusterState
from tests.harness.answers import assert_ok, assert_refused
from tests.harness.networks import dual_stack

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Node


@pytest.fixture
def config(node: Node, tmp_path: Path) -> dict[str, Any]:
    return dual_stack(node, cniVersion="1.1.0", stateFile=str(tmp_path / "state"))


def test_status_is_what_the_follower_says(node: Node, config: dict[str, Any], tmp_path: Path) -> None:
    node.add(config, node.pod())
    state = tmp_path / "state"
    assert_refused(node.call("STATUS", config), 50, f'"stateFile" {state}: wanted the word of podwire agent')
    state.write_text(ClusterState(node="n", reasons=("no subnet yet", "the API is away")).render())
    assert_refused(node.call("STATUS", config), 50, "no subnet yet; the API is away")
    state.write_text(ClusterState(node="n").render())
    assert_refused(node.call("STATUS", config), 50, "node n is not ready")
    state.write_text(ClusterState(node="n", ready=True, reasons=("node x is left out",)).render())
    assert_ok(node.call("STATUS", config))


def test_a_pod_is_added_and_removed_whatever_it_says(node: Node, config: dict[str, Any]) -> None:
    pod = node.pod()
    node.add(config, pod)
    node.delete(config, pod)
