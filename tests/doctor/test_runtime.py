"""A real containerd: what it says of its network, and whether it has seen our file."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from tests.conftest import install
from tests.harness.clinic import mend, words
from tests.harness.networks import dual_stack
from tests.harness.runtime.containerd import Containerd

if TYPE_CHECKING:
    from tests.harness.node import Node


def ask(node: Node, containerd: Containerd) -> list[dict[str, Any]]:
    """Return the findings, in a process of its own since the client of the runtime has threads."""
    socket = containerd.machine.root / "run/containerd/containerd.sock"
    places = [
        "--conf-dir",
        str(node.tmp / "one/net.d"),
        "--containerd-config",
        str(node.tmp / "one/config.toml"),
    ]
    command = words(node, *places, "--runtime-endpoint", f"unix://{socket}", "--json")
    findings = json.loads(node.run(*command, check=False).stdout)["findings"]
    return [each for each in findings if each["severity"] != "note"]


def wait_for(node: Node, containerd: Containerd, count: int) -> list[dict[str, Any]]:
    """Ask until containerd, which watches its directory, has seen what was changed."""
    deadline = time.monotonic() + 20
    while len(found := ask(node, containerd)) != count:
        assert time.monotonic() < deadline, found
    return found


def test_what_containerd_says_of_its_network_is_told(plain_node: Node) -> None:
    node = plain_node
    node.bin_dir = node.tmp / "bin"
    install(node.bin_dir, node.tmp / "a.sock", "--drop-in")
    config = dual_stack(node)
    plugin = {key: value for key, value in config.items() if key not in {"name", "cniVersion"}}
    conflist = json.dumps({"cniVersion": "1.0.0", "name": "test", "plugins": [plugin]})
    directory = node.tmp / "one"
    with Containerd(
        netns=node.name, directory=directory, bin_dir=node.bin_dir, conflist=conflist
    ) as containerd:
        assert ask(node, containerd) == []

        other = json.dumps({"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "loopback"}]})
        (directory / "net.d/05-other.conflist").write_text(other)
        found = wait_for(node, containerd, 2)
        assert [each["found"].partition(" of ")[0] for each in found] == [
            "it has loaded other, and not test",
            f"it sorts before {directory}/net.d/10-test.conflist",
        ]
        mend(node, found[1]["remedy"])
        wait_for(node, containerd, 0)

        (directory / "net.d/10-test.conflist").unlink()
        found = wait_for(node, containerd, 2)
        assert found[0]["found"].endswith("cni plugin not initialized")
        assert found[1]["found"].startswith("no network configuration")
