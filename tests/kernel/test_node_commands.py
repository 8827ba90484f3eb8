"""What the image does on a node: executables in place, and everything of podwire's gone again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.harness.agents import start_agent
from tests.harness.networks import FAMILIES, network

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.harness.node import Node

NEW = b"podwire-cni-executable, the new one"


def command(node: Node, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return node.run(str(node.bin_dir / "podwire"), *words, check=check)


def install(node: Node, directory: Path) -> list[str]:
    source = node.tmp / "shim"
    source.write_bytes(NEW)
    done = command(node, "install-shim", "--source", str(source), "--bin-dir", str(directory))
    return done.stdout.splitlines()


def test_executables_are_put_in_place_and_other_plugins_left_alone(plain_node: Node) -> None:
    directory = plain_node.tmp / "plugins"
    directory.mkdir()
    for name in ("bridge", "loopback", "podwire"):
        (directory / name).write_text("of before")
    with (directory / "podwire").open() as running:
        assert install(plain_node, directory) == [
            f"{directory}/podwire: installed",
            f"{directory}/podwire-ipam: installed",
        ]
        assert running.read() == "of before"
    found = {path.name: path.read_bytes() for path in directory.iterdir()}
    others = {"bridge": b"of before", "loopback": b"of before"}
    assert found == {"podwire": NEW, "podwire-ipam": NEW, **others}
    assert (directory / "podwire").stat().st_mode & 0o7777 == 0o755
    assert install(plain_node, directory) == []


def test_loopback_is_installed_where_there_is_none(plain_node: Node) -> None:
    directory = plain_node.tmp / "a/plugins"
    install(plain_node, directory)
    assert sorted(path.name for path in directory.iterdir()) == ["loopback", "podwire", "podwire-ipam"]


def test_uninstall_waits_for_the_pods_and_leaves_what_is_not_ours(plain_node: Node) -> None:
    node, plugins, configurations = plain_node, plain_node.tmp / "plugins", plain_node.tmp / "net.d"
    install(node, plugins)
    (plugins / "bridge").write_text("another")
    configurations.mkdir()
    config = network(node, *FAMILIES["dual-stack"], version="1.0.0", ipMasq=True, isGateway=True)
    conflist = {key: config.pop(key) for key in ("cniVersion", "name")}
    (configurations / "10-podwire.conflist").write_text(json.dumps({**conflist, "plugins": [config]}))
    (configurations / "99-other.conflist").write_text("{}")
    pod = node.pod()
    node.add({**conflist, **config}, pod)
    places = (
        "--bin-dir",
        str(plugins),
        "--conf-dir",
        str(configurations),
        "--record",
        str(node.tmp / "none"),
    )
    words = ("uninstall", *places, "--socket", str(node.tmp / "a.sock"))
    refused = command(node, *words, check=False)
    assert refused.returncode == 1
    assert pod.container_id in refused.stderr
    assert (configurations / "10-podwire.conflist").exists()
    node.delete({**conflist, **config}, pod)
    with start_agent(node.tmp / "a.sock", inside=node):
        refused = command(node, *words, check=False)
        assert refused.returncode == 1
        assert f"{node.tmp}/a.sock: wanted to be the only agent, found another running" in refused.stderr
    assert (configurations / "10-podwire.conflist").exists()
    node.run("ip", "link", "add", "other0", "type", "bridge")
    for _ in range(2):
        command(node, *words)
        assert [path.name for path in configurations.iterdir()] == ["99-other.conflist"]
        assert [path.name for path in plugins.iterdir()] == ["bridge"]
        assert set(node.links()) == {"lo", "other0"}
        assert node.run("nft", "list", "ruleset").stdout == ""


def test_uninstall_undoes_what_is_written_down_and_puts_back_what_was_replaced(plain_node: Node) -> None:
    """As scripts/install leaves it with --drop-in in one directory and without in another."""
    node, plugins, other = plain_node, plain_node.tmp / "plugins", plain_node.tmp / "other"
    ours = (node.bin_dir / "podwire").read_bytes()
    for place in (plugins, other):
        place.mkdir()
    for name in ("podwire", "bridge", "host-local"):
        (plugins / name).write_bytes(ours)
        (other / name).write_bytes(ours)
    for name in ("loopback", "bridge"):
        (plugins / f".{name}.before-podwire").write_text(f"the reference's {name}")
    (other / ".bridge.before-podwire").write_text("the reference's bridge")
    record = node.tmp / "installed"
    record.write_text("".join(f"executable {other}/{name}\n" for name in ("podwire", "bridge", "host-local")))
    places = ("--bin-dir", str(plugins), "--conf-dir", str(node.tmp / "net.d"), "--record", str(record))
    for _ in range(2):
        command(node, "uninstall", *places, "--socket", str(node.tmp / "a.sock"))
        assert {path.name: path.read_text() for path in plugins.iterdir()} == {
            "bridge": "the reference's bridge",
            "loopback": "the reference's loopback",
        }
        assert {path.name: path.read_text() for path in other.iterdir()} == {
            "bridge": "the reference's bridge"
        }
