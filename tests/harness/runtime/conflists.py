"""The configurations that are shipped, as a test uses them: with files and neighbours of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.harness.node import Node

CONF = Path(__file__).parents[3] / "conf"


def shipped() -> list[Path]:
    """Return every shipped network configuration of our own types; there must be some."""
    found = sorted(CONF.glob("10-podwire*.conflist"))
    assert found, f"{CONF} has no conflist"
    return found


def drop_in() -> Path:
    """Return the shipped chain of the reference's types, for executables under the reference's names."""
    return CONF / "10-bridge-drop-in.conflist"


def with_families(*families: int) -> Path:
    """Return the shipped bridge that gives a pod an address of just these families."""
    documents = {path: json.loads(path.read_text()) for path in shipped()}
    fitting = (path for path, document in documents.items() if _families(document) == set(families))
    return next(path for path in fitting if "mode" not in documents[path]["plugins"][0])


def with_host_ports(node: Node, plugin: str) -> Path:
    """Return the shipped dual-stack bridge, whose host ports are built in, or with the plugin `portmap`."""
    document = json.loads(with_families(4, 6).read_text())
    if plugin == "portmap":
        del document["plugins"][0]["capabilities"]["portMappings"]
        document["plugins"].append({"type": plugin, "capabilities": {"portMappings": True}})
    path = node.tmp / "ports.conflist"
    path.write_text(json.dumps(document))
    return path


def moved(path: Path, node: Node) -> str:
    """Return the configuration with its files moved to the node's own, and otherwise as shipped.

    The peers that are shipped as examples are neighbours of a node that gets an underlay here.
    """
    conflist = json.loads(path.read_text())
    for plugin in conflist["plugins"]:
        if "ipam" in plugin:
            plugin["ipam"]["dataDir"] = str(node.data_dir)
        if plugin["type"] == "tuning":
            plugin["dataDir"] = str(node.tmp / "tuning")
        if "mode" in plugin:
            _give_underlay(node)
        if "peersFile" in plugin.get("vxlan", {}):
            plugin["vxlan"]["peersFile"] = str(node.tmp / "peers")
            (node.tmp / "peers").write_text("192.0.2.2\n")
    return json.dumps(conflist)


def _give_underlay(node: Node) -> None:
    node.run("ip", "link", "add", "u0", "type", "veth", "peer", "name", "u1")
    for ifname in ("u0", "u1"):
        node.run("ip", "link", "set", ifname, "up")
    node.run("ip", "addr", "add", "192.0.2.1/24", "dev", "u0")
    node.run("ip", "addr", "add", "2001:db8::1/64", "dev", "u0", "nodad")


def _families(conflist: dict[str, Any]) -> set[int]:
    ipam = conflist["plugins"][0]["ipam"]
    return {6 if ":" in entry["subnet"] else 4 for range_set in ipam["ranges"] for entry in range_set}
