"""A store that is read-only or full: an error that names the path, and the node as before."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness.answers import assert_ok, assert_refused, refusal, unchanged, warm
from tests.harness.networks import dual_stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node


@pytest.fixture
def store(node: Node) -> Iterator[Path]:
    """Give the node's store a file system of its own, which a test may spoil."""
    warm(node, dns={})
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", node.data_dir], check=True)
    yield node.data_dir
    subprocess.run(["umount", node.data_dir], check=True)


def test_a_read_only_store(node: Node, store: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", store], check=True)
    config, pod = dual_stack(node), node.pod()
    with unchanged(node):
        for program in ("podwire", "podwire-ipam"):
            answer = node.call("ADD", config, pod, program=program)
            assert_refused(answer, 5, str(store), "Read-only file system")
        # There is nothing to release, so that DEL has nothing to complain of.
        assert_ok(node.call("DEL", config, pod))
    assert list(pod.links()) == ["lo"]


def test_a_full_store_gives_no_address_and_still_releases(node: Node, store: Path) -> None:
    config, holder, pod = dual_stack(node), node.pod(), node.pod()
    node.add(config, holder)
    subprocess.run(["dd", "if=/dev/zero", f"of={store}/filler", "bs=4k"], check=False, capture_output=True)
    with unchanged(node):
        for program in ("podwire", "podwire-ipam"):
            answer = node.call("ADD", config, pod, program=program)
            assert_refused(answer, 5, str(store), "No space left on device")
        assert refusal(node.call("STATUS", config))[0] == 50
    assert not any(path.name.endswith(".new") for path in store.rglob("*"))
    node.delete(config, holder)
    assert node.held() == {}


def test_what_a_read_only_store_holds_is_released_once_it_can_be(node: Node, store: Path) -> None:
    config, pod = dual_stack(node), node.pod()
    node.add(config, pod)
    held = node.held()
    subprocess.run(["mount", "-o", "remount,ro", store], check=True)
    for _ in range(2):
        assert_refused(node.call("DEL", config, pod), 5, str(store), "Read-only file system")
    # The pod's link has gone all the same, and nobody is given its addresses.
    assert (list(pod.links()), node.held()) == (["lo"], held)
    subprocess.run(["mount", "-o", "remount,rw", store], check=True)
    node.delete(config, pod)
    assert node.held() == {}


def test_a_store_that_is_a_plain_file(node: Node) -> None:
    warm(node, name="other")
    config, pod = dual_stack(node), node.pod()
    (node.data_dir / "test").touch()
    with unchanged(node):
        assert_refused(node.call("ADD", config, pod), 5, f"{node.data_dir}/test", "Not a directory")
        assert refusal(node.call("STATUS", config))[0] == 50
