"""A node whose state is the same a second later, so that it can be compared before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.node import Node


@pytest.fixture
def node(node: Node) -> Node:
    """Return a node whose own links skip duplicate address detection, which would end at some later time."""
    node.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
    return node
