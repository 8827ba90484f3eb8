"""Our plugins and the reference plugins take each other's parts, and share one address store.

The version of CNI is the newest that both speak: 1.0.0 with Debian's reference plugins, 1.1.0 with today's.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from cni_plugin.contract.errors import Code
from tests.harness.runtime import state, tools

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.node import Node

AT_ONCE = 16
POOL = 200


every_reference = pytest.mark.parametrize("reference", tools.PLUGINS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One implementation: its directory and what its plugins are called."""

    plugins: Path
    bridge: str
    ipam: str


def sides(node: Node, reference: str) -> tuple[Side, Side]:
    ours = Side(plugins=node.bin_dir, bridge="podwire", ipam="podwire-ipam")
    return ours, Side(plugins=tools.reference_plugins(reference), bridge="bridge", ipam="host-local")


def conf(node: Node, ipam: str, reference: str) -> dict[str, Any]:
    """One pool per family of exactly POOL addresses."""
    v4 = {"subnet": "10.77.0.0/16", "rangeStart": "10.77.1.0", "rangeEnd": f"10.77.1.{POOL - 1}"}
    v6 = {"subnet": "fd77::/64", "rangeStart": "fd77::1000", "rangeEnd": f"fd77::{0x1000 + POOL - 1:x}"}
    settings = {"type": ipam, "dataDir": str(node.data_dir), "ranges": [[v4], [v6]]}
    version = "1.0.0" if reference == tools.OLD_PLUGINS else "1.1.0"
    return {"cniVersion": version, "name": "shared", "type": "bridge", "isGateway": True, "ipam": settings}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """Whose network it is, beside which reference plugins."""

    node: Node
    reference: str
    container_id: str
    netns: str


def call(
    attachment: Attachment, command: str, plugin: Path, request: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    """Execute a plugin; it finds its delegate in the directory of the other side, as only that has it."""
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": attachment.container_id,
        "CNI_NETNS": attachment.netns,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": ":".join(str(side.plugins) for side in sides(attachment.node, attachment.reference)),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    return attachment.node.run(str(plugin), input=json.dumps(request), env=env, check=False)


def ips(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert result.returncode == 0, result.stdout + result.stderr
    return [entry["address"].partition("/")[0] for entry in json.loads(result.stdout)["ips"]]


@every_reference
@pytest.mark.parametrize("ours_is_bridge", [True, False], ids=["our-bridge", "our-ipam"])
def test_bridge_of_one_side_works_with_ipam_of_the_other(
    node: Node, ours_is_bridge: bool, reference: str
) -> None:
    ours, theirs = sides(node, reference)
    bridge_side, ipam_side = (ours, theirs) if ours_is_bridge else (theirs, ours)
    bridge = bridge_side.plugins / bridge_side.bridge
    request = conf(node, ipam_side.ipam, reference)
    pod = node.pod()
    peer = Attachment(node=node, reference=reference, container_id="peer", netns=str(pod.path))
    added = call(peer, "ADD", bridge, request)
    assert sorted(ips(added)) == sorted(state.addresses(pod, "eth0")) == state.reserved(node.data_dir)
    request["prevResult"] = json.loads(added.stdout)
    for command in ("CHECK", "DEL"):
        done = call(peer, command, bridge, request)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert state.veths(node) == []
    assert state.reserved(node.data_dir) == []


@every_reference
@pytest.mark.parametrize("ours_adds", [True, False], ids=["ours-adds", "reference-adds"])
def test_bridge_of_one_side_deletes_what_the_other_added(node: Node, ours_adds: bool, reference: str) -> None:
    ours, theirs = sides(node, reference)
    adds, deletes = (ours, theirs) if ours_adds else (theirs, ours)
    pod = node.pod()
    peer = Attachment(node=node, reference=reference, container_id="peer", netns=str(pod.path))
    added = call(peer, "ADD", adds.plugins / adds.bridge, conf(node, adds.ipam, reference))
    assert len(ips(added)) == 2
    deleted = call(peer, "DEL", deletes.plugins / deletes.bridge, conf(node, deletes.ipam, reference))
    assert (deleted.returncode, deleted.stdout) == (0, ""), deleted.stderr
    assert [link["ifname"] for link in state.ip(pod, "link")] == ["lo"]
    assert state.veths(node) == []
    assert state.reserved(node.data_dir) == []


@every_reference
def test_both_ipams_at_once_fill_one_pool_to_its_last_address_and_each_releases_the_others(
    node: Node, reference: str
) -> None:
    netns = str(node.pod().path)

    def ipam(command: str, number: int, side: Side) -> subprocess.CompletedProcess[str]:
        """Call until the answer is not that of a lock, which is waited for long on a slow machine."""
        attachment = Attachment(node=node, reference=reference, container_id=f"c{number}", netns=netns)
        request = conf(node, side.ipam, reference)
        while True:
            done = call(attachment, command, side.plugins / side.ipam, request)
            said = json.loads(done.stdout or "{}")
            if said.get("code") != Code.TRY_AGAIN_LATER or "lock" not in said["msg"]:
                return done

    with ThreadPoolExecutor(AT_ONCE) as pool:
        alternating = [sides(node, reference)[number % 2] for number in range(POOL)]
        added = list(pool.map(lambda number: ips(ipam("ADD", number, alternating[number])), range(POOL)))
        given = sorted(address for addresses in added for address in addresses)
        assert len(set(given)) == 2 * POOL
        assert state.reserved(node.data_dir) == given
        for side in sides(node, reference):
            assert ipam("ADD", POOL, side).returncode != 0, "a full pool gave an address"
        others = [sides(node, reference)[(number + 1) % 2] for number in range(POOL)]
        deleted = list(pool.map(lambda number: ipam("DEL", number, others[number]), range(POOL)))
    assert {(done.returncode, done.stdout) for done in deleted} == {(0, "")}
    assert state.reserved(node.data_dir) == []
