"""`podwire ipam check`: what it finds on a real node, what it leaves alone, and its exit status."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from ipam import boot_mark
from tests.conftest import in_process
from tests.harness.networks import V4, V6, dual_stack, network

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.harness.node import Node, Pod

pytestmark = in_process


def configure(node: Node, config: dict[str, Any]) -> None:
    """Write the configuration where a runtime would read it."""
    directory = node.tmp / "net.d"
    directory.mkdir(exist_ok=True)
    plugin = {key: value for key, value in config.items() if key not in {"name", "cniVersion"}}
    document = {"cniVersion": "0.4.0", "name": config["name"], "plugins": [plugin]}
    (directory / f"10-{config['name']}.conflist").write_text(json.dumps(document))


def check(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    places = ("--conf-dir", str(node.tmp / "net.d"), "--bin-dir", str(node.bin_dir))
    return node.run(str(node.bin_dir / "podwire"), "ipam", "check", *words, *places, check=False)


def found(node: Node) -> list[tuple[str, str]]:
    """Return kind and subject of what is found; the exit status must agree."""
    done = check(node, "--json")
    findings = json.loads(done.stdout)
    assert done.returncode == int(any(each["kind"] != "unknown" for each in findings)), done.stderr
    return [(each["kind"], each["subject"].rpartition("/")[2]) for each in findings]


@pytest.fixture
def store(node: Node) -> Path:
    return node.data_dir / "test"


@pytest.fixture
def web(node: Node) -> Pod:
    pod, config = node.pod(), dual_stack(node)
    configure(node, config)
    node.add(config, pod)
    return pod


@pytest.mark.usefixtures("web")
def test_where_all_is_well_it_says_nothing(node: Node) -> None:
    for words in ((), ("test",), ("test", "--json")):
        done = check(node, *words)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip() in {"", "[]"}


def test_an_address_whose_pod_is_gone_is_leaked_and_can_be_released(node: Node, web: Pod) -> None:
    web.run("ip", "link", "del", "eth0")
    assert found(node) == [("leaked", "10.22.0.2"), ("leaked", "fd00:22::2")]
    line = check(node).stdout.splitlines()[0]
    assert line.startswith(
        f"network test: leaked: 10.22.0.2 is held by {web.container_id} (eth0), which has no"
    )
    words = line.rpartition("here: podwire ")[2].split()
    program = str(node.bin_dir / "podwire")
    node.run(program, *words, "fd00:22::2")
    assert found(node) == []


def test_another_plugins_veth_keeps_no_pod_of_ours_alive(node: Node, web: Pod) -> None:
    node.run("ip", "link", "add", "theirs", "type", "veth", "peer", "name", "other")
    web.run("ip", "link", "del", "eth0")
    assert found(node) == [("leaked", "10.22.0.2"), ("leaked", "fd00:22::2")]


def test_an_address_of_an_earlier_boot_is_leaked_whoever_attached_its_pod(node: Node, store: Path) -> None:
    config = dual_stack(node) | {"type": "bridge"}
    node.add(config, node.pod(), program="podwire-ipam")
    configure(node, config)
    (node.tmp / "bridge").write_bytes(b"somebody else's")
    program, node.bin_dir = node.bin_dir / "podwire", node.tmp
    (node.tmp / "podwire").symlink_to(program)
    os.setxattr(store / "10.22.0.2", boot_mark.BOOT_MARK, b"1b4e28ba-2fa1-11d2-883f-b9a761bde3fb")
    assert found(node) == [("leaked", "10.22.0.2"), ("unknown", "fd00:22::2")]
    assert "no interface here and is of an earlier boot of this machine: podwire" in check(node).stdout


def test_of_whom_another_may_have_joined_nothing_is_known(node: Node) -> None:
    config = dual_stack(node) | {"type": "bridge"}
    node.add(config, node.pod(), program="podwire-ipam")
    configure(node, config)
    assert found(node) == [("unknown", "10.22.0.2"), ("unknown", "fd00:22::2")]
    said = check(node)
    assert (said.returncode, "podwire ipam release" in said.stdout) == (0, False)
    assert "nothing here shows whether it lives: the runtime would" in said.stdout


@pytest.mark.usefixtures("web")
def test_a_pod_whose_addresses_are_not_held_is_unallocated(node: Node, store: Path) -> None:
    (store / "10.22.0.2").unlink()
    assert found(node) == []  # what a pod of a bridge has set cannot be seen from here
    (store / "fd00:22::2").unlink()
    ((kind, ifname),) = found(node)
    assert (kind, ifname in node.links()) == ("unallocated", True)


def test_a_routed_address_that_is_not_its_pods_is_unallocated(node: Node, store: Path) -> None:
    config = network(node, V4, V6, mode="routed")
    del config["bridge"]
    configure(node, config)
    for _ in range(2):
        node.add(config, node.pod())
    assert found(node) == []
    (store / "10.22.0.2").rename(store / "10.22.0.9")
    (store / "10.22.0.3").write_bytes((store / "10.22.0.9").read_bytes())
    assert found(node) == [("unallocated", "10.22.0.2"), ("unallocated", "10.22.0.3")]


@pytest.mark.usefixtures("web")
def test_an_address_that_no_range_gives_out_is_outside(node: Node) -> None:
    config = dual_stack(node)
    config["ipam"]["ranges"][0][0]["exclude"] = ["10.22.0.2/31"]
    configure(node, config)
    assert found(node) == [("outside", "10.22.0.2")]
    configure(node, config | {"capabilities": {"ipRanges": True}})
    assert found(node) == []


@pytest.mark.usefixtures("web")
def test_what_is_damaged_is_named_with_its_reason(node: Node, store: Path) -> None:
    (store / "10.22.0.50").write_bytes(b"")
    (store / "10.22.0.51").mkdir()
    (store / "10.22.0.52").write_bytes(b"\0\0\0\0 \0")
    (store / "FD00:22::5").write_bytes(b"x\r\neth0")
    (store / "notes").write_bytes(b"mine")
    (store / "last_reserved_ip.0").write_bytes(b"garbage")
    words = {
        "10.22.0.50": "it is empty",
        "10.22.0.51": "nothing that can be read",
        "10.22.0.52": "wanted a container id",
        "FD00:22::5": "neither an address as the store writes it",
        "notes": "neither an address",
        "last_reserved_ip.0": "found b'garbage'",
    }
    lines = [line for line in check(node, "test").stdout.splitlines() if ": damaged: " in line]
    wanted = [(f"network test: damaged: {store}/{name}: ", text) for name, text in sorted(words.items())]
    assert [
        line for line, (head, text) in zip(lines, wanted, strict=True) if head not in line or text not in line
    ] == []


def test_a_legacy_file_names_no_interface_and_lives_with_any_of_its_pod(
    node: Node, web: Pod, store: Path
) -> None:
    (store / "10.22.0.2").write_bytes(web.container_id.encode())
    assert found(node) == []
    (store / "10.22.0.7").write_bytes(b"gone")
    assert found(node) == [("unknown", "10.22.0.7")]


def test_addresses_of_another_ipam_plugin_are_not_ours_to_judge(node: Node) -> None:
    config = network(node, V4)
    configure(node, config | {"ipam": {"type": "static", "addresses": [{"address": "10.22.0.5/24"}]}})
    assert found(node) == []


def test_what_cannot_be_looked_at_is_exit_status_2(node: Node) -> None:
    assert check(node).returncode == 2
    configure(node, dual_stack(node))
    assert check(node).returncode == 0
    other = check(node, "other")
    assert (other.returncode, "wanted other of podwire's" in other.stderr) == (2, True)
    assert check(node, "--nonsense").returncode == 2
    (node.tmp / "net.d/20-half.conflist").write_text('{"name":')
    assert (check(node).returncode, "20-half.conflist" in check(node).stderr) == (2, True)
    (node.tmp / "net.d/20-half.conflist").unlink()
    configure(node, network(node, [{"subnet": "nonsense"}]))
    assert check(node).returncode == 2
    configure(node, dual_stack(node))
    node.data_dir.mkdir(exist_ok=True)
    (node.data_dir / "test").write_text("a file")
    assert check(node).returncode == 2
