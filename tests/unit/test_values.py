"""What tuning keeps of an interface in a file, when the file is not as it was written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cni_plugin.config.network import Attachment
from cni_plugin.features.tuning_values import Values, _read_file, find_values, keep_values

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("text", ["", "{", "[]", "\0" * 40, "[" * 100_000])
def test_a_broken_file_keeps_nothing_and_stops_nobody(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c_eth0.json"
    path.write_text(text)
    kept = _read_file(str(path))
    assert kept is not None
    assert kept.raw == {}
    assert list(find_values(str(tmp_path), "net")) == []


def test_an_identity_that_is_none_is_not_to_be_kept(tmp_path: Path) -> None:
    (tmp_path / "c_eth0.json").write_text(json.dumps({"network": "net", "identity": []}))
    (tmp_path / "theirs.json").write_text(json.dumps({"network": [], "identity": []}))
    for each in find_values(str(tmp_path), "net"):
        assert each.identity != "0123456789abcdef"
        each.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.json"]


def test_what_was_before_is_what_the_first_attachment_of_the_same_container_found(tmp_path: Path) -> None:
    found = [("a", "eth0", "1"), ("a_b", "eth0", "2"), ("a", "net1", "3"), ("a_b", "net1", "4")]
    (tmp_path / "a_eth9.json").write_text(json.dumps({"sysctl": {"key": "9"}}))
    kept = {}
    for container_id, ifname, value in found:
        path = tmp_path / f"{container_id}_{ifname}.json"
        attachment = Attachment(network="net", container_id=container_id, ifname=ifname, netns="")
        keep_values(str(path), f"{path}.new", Values(sysctls={"key": value}), attachment, netns="")
        kept[container_id, ifname] = json.loads(path.read_text())["sysctl"]["key"]
    assert list(kept.values()) == ["1", "2", "1", "2"]
