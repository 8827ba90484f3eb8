"""Elements are removed on a node with many pods whose ruleset changes all the time."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import in_process
from tests.harness.networks import dual_stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import Node

pytestmark = in_process

# Another attachment comes and goes a hundred times a second.
_BUSY = """
import sys, time
from cni_plugin.kernel.nft_message import ElementChange, Element
from cni_plugin.kernel.nfnetlink import Nftables
nft = Nftables()
element = Element(family="inet", set_name=sys.argv[1], key=bytes([10, 99, 0, 1]), comment="f other pod eth0")
print("busy", flush=True)
while True:
    for present in (True, False):
        nft.update(lambda: [ElementChange(element, present=present)])
        time.sleep(0.005)
"""
MANY = 4_000


@contextmanager
def busy(node: Node) -> Iterator[str]:
    """Fill the set of masqueraded addresses, and change it all the time; yield its name."""
    listing = node.run("nft", "list", "sets", "inet").stdout
    name = next(word for word in listing.split() if word.startswith("masq4_"))
    rows = (
        f'10.98.{number // 256}.{number % 256} comment "{number:016x} test pod{number} eth0"'
        for number in range(MANY)
    )
    node.run("nft", "-f", "-", input=f"add element inet podwire {name} {{ {', '.join(rows)} }}\n")
    command = ["nsenter", f"--net={node.path}", sys.executable, "-c", _BUSY, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        try:
            yield name
        finally:
            process.kill()


@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_an_attachment_leaves_a_busy_node(node: Node, verb: str) -> None:
    config, pod = dual_stack(node, ipMasq=True), node.pod()
    node.add(config, pod)
    valid: dict[str, Any] = {"cni.dev/valid-attachments": []} if verb == "GC" else {}
    with busy(node) as name:
        answer = node.call(verb, config | valid, pod)
    assert (answer.status, answer.stdout) == (0, "")
    left = node.run("nft", "list", "set", "inet", "podwire", name).stdout
    assert pod.container_id not in left
    assert ("pod5 eth0" in left) == (verb == "DEL")
