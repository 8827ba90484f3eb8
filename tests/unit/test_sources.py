"""The source of addresses of one call: what it reads of the configuration, and when."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from cni_plugin.addresses import host_local
from cni_plugin.addresses.delegate import find_delegate
from cni_plugin.contract.errors import CNIError
from cni_plugin.contract.request import parse_request

if TYPE_CHECKING:
    from pathlib import Path

    from cni_plugin.addresses.delegate import Delegate

ENVIRON = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/c1", "CNI_IFNAME": "eth0"}


def delegate(directory: Path, ranges: object) -> Delegate:
    ipam = {"type": "podwire-ipam", "dataDir": str(directory), "ranges": ranges}
    config = {"cniVersion": "1.1.0", "name": "test", "type": "podwire", "ipam": ipam}
    return find_delegate(parse_request(ENVIRON, json.dumps(config).encode()))


def test_one_add_reads_its_ranges_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, parse = [], host_local.parse_range_sets
    monkeypatch.setattr(host_local, "parse_range_sets", lambda request: read.append(1) or parse(request))
    own = delegate(tmp_path, [[{"subnet": "10.1.0.0/24"}]])
    assert own.addressing().stated_families == {4}
    own.rebuild(list, "")
    with ExitStack() as undo:
        assert [str(ip.address) for ip in own.allocate(undo, "").ips] == ["10.1.0.2/24"]
    assert read == [1]


def test_a_release_reads_no_ranges(tmp_path: Path) -> None:
    own = delegate(tmp_path, "none that can be")
    with pytest.raises(CNIError, match="must be a list"):
        own.addressing()
    own.release()
