"""`podwire ipam export` and `import`: what one directory holds becomes another's, or nothing does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import in_process
from tests.harness.answers import assert_refused
from tests.harness.networks import V4, V6, network

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.harness.node import Node

PROGRAM = {"program": "podwire-ipam"}
GO = {"program": "/usr/lib/cni/host-local"}
pytestmark = in_process


def run(node: Node, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return node.run(str(node.bin_dir / "podwire"), "ipam", *words, check=False, input=stdin)


def export(node: Node, data_dir: Path, *words: str) -> str:
    done = run(node, "export", *words, "--data-dir", str(data_dir))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def load(node: Node, data_dir: Path, rows: Any) -> subprocess.CompletedProcess[str]:
    """Import rows, or text as it is."""
    text = rows if isinstance(rows, str) else json.dumps(rows)
    return run(node, "import", "-", "--data-dir", str(data_dir), stdin=text)


def row(address: str, container_id: str = "web", **keys: Any) -> dict[str, Any]:
    return {"network": "test", "address": address, "container_id": container_id, "ifname": "eth0"} | keys


def files(data_dir: Path) -> dict[str, bytes]:
    """Return the address files of all networks."""
    found = [path for path in data_dir.glob("[!.]*/*") if path.name[0] in "0123456789abcdef:"]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in found}


def go_network(node: Node) -> dict[str, Any]:
    config = network(node, V4, V6, version="0.4.0")
    return config | {"ipam": config["ipam"] | {"type": "host-local"}}


def test_what_ours_and_go_gave_goes_out_and_comes_in_the_same(node: Node, tmp_path: Path) -> None:
    ours, go, pods = network(node, V4, V6), go_network(node), [node.pod() for _ in range(4)]
    for config, pod, options in zip((ours, go, ours, go), pods, (PROGRAM, GO, PROGRAM, GO), strict=True):
        node.add(config, pod, **options)
    node.add(network(node, V4) | {"name": "other"}, node.pod(), **PROGRAM)
    (node.data_dir / "test/10.22.0.77").write_bytes(b"old")
    (node.data_dir / "test/10.22.0.78").write_bytes(b"")
    text = export(node, node.data_dir)
    assert json.loads(text)[1] == row("10.22.0.2", pods[0].container_id)
    done = load(node, tmp_path / "new", text)
    assert done.stdout.splitlines() == [
        "network other: 1 imported, 0 held already",
        "network test: 9 imported, 0 held already",
    ]
    before = {name: content.strip() for name, content in files(node.data_dir).items() if content}
    assert {name: content.strip() for name, content in files(tmp_path / "new").items()} == before
    assert export(node, tmp_path / "new") == text
    assert [each["network"] for each in json.loads(export(node, node.data_dir, "other"))] == ["other"]


def test_go_releases_what_was_imported(node: Node) -> None:
    pods = [node.pod(), node.pod()]
    rows = [row("10.22.0.9", pods[0].container_id), row("fd00:22::9", pods[1].container_id, ifname="")]
    assert load(node, node.data_dir, rows).returncode == 0
    for pod in pods:
        node.delete(go_network(node), pod, **GO)
    assert node.held() == {}


def test_an_imported_address_is_given_to_nobody_else(node: Node) -> None:
    assert load(node, node.data_dir, [row("10.22.0.2")]).returncode == 0
    config = network(node, V4)
    assert node.add(config, node.pod(), **PROGRAM)["ips"][0]["address"] == "10.22.0.3/24"
    requesting = config | {"runtimeConfig": {"ips": ["10.22.0.2"]}}
    assert_refused(node.call("ADD", requesting, node.pod(), **PROGRAM), 11, "it is held by web (eth0)")


def test_a_second_import_changes_nothing(node: Node) -> None:
    for said in ("2 imported, 0 held already", "0 imported, 2 held already"):
        done = load(node, node.data_dir, [row("10.22.0.2"), row("::ffff:10.22.0.3")])
        assert (done.returncode, done.stdout) == (0, f"network test: {said}\n")


def test_of_a_network_with_conflicts_nothing_is_imported_and_each_is_named(node: Node) -> None:
    assert (
        load(
            node, node.data_dir, [row("10.22.0.3", "old"), row("fd00:22::3", "web", ifname="net1")]
        ).returncode
        == 0
    )
    (node.data_dir / "test/10.22.0.8").mkdir()
    rows = [row("10.22.0.2"), row("10.22.0.3"), row("fd00:22::3"), row("10.22.0.4", network="other")]
    done = load(node, node.data_dir, rows)
    assert done.returncode == 1
    assert done.stdout == "network other: 1 imported, 0 held already\n"
    assert done.stderr == (
        "podwire: network test: nothing imported: 10.22.0.3 wanted for web (eth0), found held by old (eth0); "
        "fd00:22::3 wanted for web (eth0), found held by web (net1)\n"
    )
    done = load(node, node.data_dir, [row("10.22.0.2"), row("10.22.0.8")])
    assert (
        done.returncode,
        "10.22.0.8 wanted for web (eth0), found held by an unreadable file" in done.stderr,
    ) == (1, True)
    assert sorted(path.name for path in (node.data_dir / "test").iterdir()) == [
        "10.22.0.3",
        "10.22.0.8",
        "fd00:22::3",
        "lock",
    ]


def test_an_address_that_the_file_gives_to_two_is_refused(node: Node) -> None:
    done = load(node, node.data_dir, [row("10.22.0.2"), row("10.22.0.2", "db")])
    assert (done.returncode, done.stdout) == (1, "")
    assert "10.22.0.2 wanted for db (eth0), found held by web (eth0)" in done.stderr
    assert not node.data_dir.exists()


BAD: list[tuple[Any, str]] = [
    ("", "wanted what podwire ipam export writes"),
    ("{}", "wanted a list, found an object"),
    ([row("10.22.0.2"), 5], '"-[1]" must be an object, found 5'),
    ([row("10.22.0")], '"-[0].address" must be an IP address, found "10.22.0"'),
    ([row("10.22.0.2", "")], '"-[0]": wanted a container id'),
    ([row("10.22.0.2", "a b")], '"-[0]": wanted a container id'),
    ([row("10.22.0.2", ifname="a\nb")], '"-[0]": wanted a container id'),
    ([row("10.22.0.2", ifname=3)], '"-[0].ifname" must be a string, found 3'),
    ([row("10.22.0.2"), row("10.22.0.3", network="../x")], "network name"),
    ([row("10.22.0.2", network="")], "network name"),
]


@pytest.mark.parametrize(("rows", "words"), BAD)
def test_a_file_that_cannot_be_is_refused_before_anything_is_reserved(
    node: Node, rows: Any, words: str
) -> None:
    done = load(node, node.data_dir, rows)
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert not node.data_dir.exists()


def test_a_file_is_read_by_its_name(node: Node, tmp_path: Path) -> None:
    words = ("--data-dir", str(node.data_dir))
    path = tmp_path / "export.json"
    done = run(node, "import", str(path), *words)
    assert (done.returncode, done.stderr) == (1, f"podwire: {path}: No such file or directory\n")
    path.write_text(json.dumps([row("10.22.0.2")]))
    assert run(node, "import", str(path), *words).returncode == 0
    assert files(node.data_dir) == {"test/10.22.0.2": b"web\r\neth0"}
