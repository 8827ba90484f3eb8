"""Mode `routed` has no limit of 1,023 ports: 1,100 pods on one node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.conftest import in_process
from tests.harness.networks import network

if TYPE_CHECKING:
    from tests.harness.node import Node

PODS = 1100
ROOT = Path(__file__).parent.parent.parent
# Calls of the plugin in one process, as the agent makes them: standard input says which.
CALLS = """
import json, sys
from cni_plugin.contract.dispatch import answer
from cni_plugin.plugins import PLUGINS
call = json.load(sys.stdin)
stdin = json.dumps(call["config"]).encode()
for name in call["pods"]:
    environ = {"CNI_COMMAND": call["command"], "CNI_CONTAINERID": name, "CNI_NETNS": f"/run/netns/{name}",
               "CNI_IFNAME": "eth0", "CNI_PATH": "/nonexistent"}
    reply = answer(environ, stdin, PLUGINS["podwire"])
    assert reply.status == 0, reply.stdout.decode()
"""


def call(node: Node, command: str, config: dict[str, object], pods: list[str]) -> None:
    node.run(
        sys.executable,
        "-c",
        CALLS,
        input=json.dumps({"command": command, "config": config, "pods": pods}),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def batch(verb: str, names: list[str]) -> None:
    script = "\n".join(f"netns {verb} {name}" for name in names)
    subprocess.run(["ip", "-batch", "-"], input=script, text=True, check=True, capture_output=True)


@in_process
def test_1100_pods_come_and_go(node: Node) -> None:
    config = network(node, [{"subnet": "10.22.0.0/20"}], [{"subnet": "fd00:22::/64"}], mode="routed")
    names = [f"{node.name}-{i}" for i in range(PODS)]
    node.run("ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
    node.run("ip", "addr", "add", "2001:db8::1/128", "dev", "lo", "nodad")
    before = node.transcript()
    batch("add", names)
    try:
        call(node, "ADD", config, names)
        assert len([name for name in node.links() if name.startswith("veth")]) == PODS
        for version, addresses in ((4, "10.22."), (6, "fd00:22:")):
            routes = node.run("ip", f"-{version}", "route", "show", "proto", "112").stdout.splitlines()
            assert len([route for route in routes if route.startswith(addresses)]) == PODS
        assert len(node.held()) == 2 * PODS
        for address in ("10.22.0.2", "10.22.4.77", "fd00:22::2", "fd00:22::44d"):
            assert node.ping(address), address
        call(node, "DEL", config, names)
    finally:
        batch("del", names)
    assert node.links().keys() == {"lo"}
    after = node.transcript()
    assert [line for line in after.splitlines() if "10.22." in line or "fd00:22:" in line] == []
    assert len(after.splitlines()) == len(before.splitlines())
