"""cnitool, the reference runtime, attaches a pod with every configuration as shipped."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.harness.runtime import conflists, state, tools
from tests.harness.runtime.machine import Machine

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node, Pod

every_conflist = pytest.mark.parametrize("conflist", conflists.shipped(), ids=lambda path: path.stem)


class Cnitool:
    """Calls cnitool for one pod and one network; its cache is in the machine's own /var/lib."""

    def __init__(
        self, machine: Machine, pod: Pod, *, network: str, env: dict[str, str], age: tools.Age
    ) -> None:
        self._program = tools.cnitool(age)
        self._machine = machine
        self._pod = pod
        self._network = network
        self._env = env

    def __call__(self, verb: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        argv = (str(self._program), verb, self._network, str(self._pod.path))
        return self._machine.run(*argv, env=self._env, check=check)


@contextmanager
def cnitool_on(
    node: Node, pod: Pod, conflist: Path, age: tools.Age = "new", **variables: str
) -> Iterator[Cnitool]:
    """The pod must be there before: the machine sees the namespaces named until then."""
    text = conflists.moved(conflist, node)
    conf_dir = node.tmp / "net.d"
    conf_dir.mkdir()
    (conf_dir / conflist.name).write_text(text)
    env = {
        "CNI_PATH": f"{node.bin_dir}:{tools.reference_plugins(tools.NEW_PLUGINS)}",
        "NETCONFPATH": str(conf_dir),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    } | variables
    with Machine(netns=node.name, directory=node.tmp / "machine") as machine:
        yield Cnitool(machine, pod, network=json.loads(text)["name"], env=env, age=age)


@every_conflist
@pytest.mark.parametrize("age", tools.AGES)
def test_add_check_del_leave_nothing(node: Node, conflist: Path, age: tools.Age) -> None:
    pod = node.pod()
    with cnitool_on(node, pod, conflist, age) as cnitool:
        result = json.loads(cnitool("add").stdout)
        shipped = json.loads(conflist.read_text())
        assert result["cniVersion"] == (shipped["cniVersion"] if age == "old" else shipped["cniVersions"][-1])
        ips = [entry["address"].partition("/")[0] for entry in result["ips"]]
        assert sorted(ips) == sorted(state.addresses(pod, "eth0"))
        assert sorted(ips) == state.reserved(node.data_dir)
        assert cnitool("check").stdout == ""
        assert cnitool("del").stdout == ""
        assert [link["ifname"] for link in state.ip(pod, "link")] == ["lo"]
        assert state.veths(node) == []
        assert state.reserved(node.data_dir) == []
        assert cnitool("del").stdout == ""


@every_conflist
def test_check_fails_when_an_address_is_gone(node: Node, conflist: Path) -> None:
    pod = node.pod()
    with cnitool_on(node, pod, conflist) as cnitool:
        cnitool("add")
        gone = state.addresses(pod, "eth0")[0]
        pod.run("ip", "addr", "flush", "dev", "eth0", "to", gone)
        check = cnitool("check", check=False)
        assert check.returncode != 0
        assert gone in check.stderr
        cnitool("del")
