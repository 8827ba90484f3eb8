"""What the runtime's files configure, and how one that cannot be read leaves the others alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cni_plugin.node.configured import read_configured

if TYPE_CHECKING:
    from pathlib import Path

IPAM = {"type": "podwire-ipam", "ranges": [[{"subnet": "10.1.0.0/24"}]]}


def write(directory: Path, file: str, *plugins: dict[str, Any], **keys: Any) -> None:
    document = {"cniVersion": "0.4.0", "name": "test", "plugins": list(plugins)} | keys
    (directory / file).write_text(json.dumps(document))


def test_files_come_in_the_runtimes_order_with_their_plugins(tmp_path: Path) -> None:
    write(tmp_path, "20-b.conflist", {"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "portmap"})
    (tmp_path / "10-a.conf").write_text('{"name": "old", "type": "podwire"}')
    write(tmp_path, "30-c.json", {"type": "calico"}, name="other")
    (tmp_path / "05-d.conflist.disabled").write_text("{")
    found = read_configured(str(tmp_path), "/bin/of/plugins")
    assert [file.path.rpartition("/")[2] for file in found.files] == [
        "10-a.conf",
        "20-b.conflist",
        "30-c.json",
    ]
    assert [file.types for file in found.files] == [("podwire",), ("bridge", "portmap"), ("calico",)]
    assert [file.ipam_types for file in found.files] == [(), ("host-local",), ()]
    assert [(each.network, each.command, each.cni_version, each.path) for each in found.ours] == [
        ("old", "STATUS", "0.1.0", ("/bin/of/plugins",)),
        ("test", "STATUS", "0.4.0", ("/bin/of/plugins",)),
    ]
    assert found.problems == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"name":', "wanted a JSON object"),
        ('{"plugins": [{"type": "podwire"}]}', 'missing network name "name"'),
        ('{"name": "a b", "plugins": [{"type": "podwire"}]}', "must match"),
        ('{"name": "a", "plugins": [{"type": 7}]}', '"type" must be a string, found 7'),
        ('{"name": "a", "plugins": [7]}', '"plugins[0]" must be an object'),
        ('{"name": "a", "type": "podwire", "ipam": []}', '"ipam" must be an object'),
    ],
    ids=["half", "nameless", "blank", "type", "member", "ipam"],
)
def test_a_file_that_cannot_be_read_is_a_problem_of_its_own(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "10-broken.conflist").write_text(content)
    write(tmp_path, "20-whole.conflist", {"type": "podwire", "ipam": IPAM})
    found = read_configured(str(tmp_path))
    (problem,) = found.problems
    assert problem.msg.startswith(f"{tmp_path}/10-broken.conflist: ")
    assert said in problem.msg
    assert [each.network for each in found.ours] == ["test"]


def test_networks_are_those_of_which_something_is_ours(tmp_path: Path) -> None:
    store = {"type": "host-local", "dataDir": str(tmp_path / "store"), "shared": True}
    write(tmp_path, "10-a.conflist", {"type": "podwire"}, {"type": "tuning"}, name="a")
    write(tmp_path, "11-a.conflist", {"type": "podwire"}, {"type": "firewall"}, name="a")
    write(tmp_path, "20-b.conflist", {"type": "macvlan", "ipam": store}, name="b")
    write(tmp_path, "30-c.conflist", {"type": "calico"}, name="c")
    write(tmp_path, "40-d.conflist", {"type": "bridge", "ipam": store | {"dataDir": "here"}}, name="d")
    (tmp_path / "store/forgotten").mkdir(parents=True)
    problems: list[Any] = []
    found = {each.name: each for each in read_configured(str(tmp_path)).list_networks(problems)}
    assert {"a", "b", "forgotten"} <= found.keys()
    assert {"c", "d"} & found.keys() == set()
    assert [each.config.string("type") for each in found["a"].chained] == ["tuning", "firewall"]
    assert (found["a"].has_store, found["b"].has_store, found["b"].shared) == (False, True, True)
    assert (found["forgotten"].has_store, found["forgotten"].shared) == (True, False)
    assert ['"ipam.dataDir" must be an absolute path' in problem.msg for problem in problems] == [True]
