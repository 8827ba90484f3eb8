"""The plugin type `loopback`: `lo` of the pod, and never the host's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.answers import assert_ok, assert_refused, unchanged
from tests.harness.chain import REFERENCE, install_as

if TYPE_CHECKING:
    from tests.harness.node import Completed, Node, Pod

# As containerd calls it.
CONFIG = {"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"}


@pytest.fixture
def pod(node: Node) -> Pod:
    made = node.pod()
    made.run("ip", "link", "set", "lo", "down")
    return made


def call(
    node: Node, verb: str, pod: Pod, config: dict[str, Any] = CONFIG, **environ: str | None
) -> Completed:
    program = f"{install_as(node, 'loopback')}/loopback"
    return node.call(verb, config, pod, program=program, environ={"CNI_IFNAME": "lo"} | environ)


def is_up(space: Any) -> bool:
    return "UP" in space.links()["lo"]["flags"]


def test_lo_comes_up_with_the_references_result_and_goes_down(node: Node, pod: Pod) -> None:
    config = CONFIG | {"cniVersion": "1.0.0"}
    added = call(node, "ADD", pod, config)
    assert is_up(pod)
    assert_ok(call(node, "CHECK", pod, config))
    theirs = node.call("ADD", config, pod, program=f"{REFERENCE}/loopback", environ={"CNI_IFNAME": "lo"})
    # Debian's writes an empty "dns" in 1.0.0, which needs none.
    assert added.json == {key: value for key, value in theirs.json.items() if value}
    assert_ok(call(node, "DEL", pod, config))
    assert not is_up(pod)
    assert_refused(call(node, "CHECK", pod, config), 100, "lo")


def test_the_result_before_it_is_passed_on(node: Node, pod: Pod) -> None:
    previous = {"cniVersion": "0.3.1", "interfaces": [{"name": "eth0", "sandbox": "x"}], "dns": {}}
    assert call(node, "ADD", pod, CONFIG | {"prevResult": previous}).json == previous
    assert is_up(pod)


@pytest.mark.parametrize("override", [None, "1"])
def test_the_hosts_lo_is_never_touched(node: Node, pod: Pod, override: str | None) -> None:
    with unchanged(node):
        for verb in ("ADD", "DEL"):
            answer = call(node, verb, pod, CNI_NETNS=node.path, CNI_NETNS_OVERRIDE=override)
            assert_refused(answer, 8, "host")
    assert is_up(node)


@pytest.mark.parametrize("netns", [None, "", "/run/netns/nobody"])
def test_del_without_a_namespace_succeeds(node: Node, pod: Pod, netns: str | None) -> None:
    assert_ok(call(node, "DEL", pod, CNI_NETNS=netns))
    assert is_up(node)


def test_other_addresses_than_a_loopbacks_are_refused_before_anything(node: Node, pod: Pod) -> None:
    pod.run("ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
    assert_refused(call(node, "ADD", pod), 4, "192.0.2.1")
    assert not is_up(pod)


def test_gc_and_status_have_nothing_to_say(node: Node, pod: Pod) -> None:
    newest = CONFIG | {"cniVersion": "1.1.0"}
    assert_ok(call(node, "STATUS", pod, newest))
    assert_ok(call(node, "GC", pod, newest | {"cni.dev/valid-attachments": []}))
