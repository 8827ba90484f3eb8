"""The network configurations that the kernel tests start from, and what they meet on a node."""

from __future__ import annotations

import copy
import json
import os
import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cni_plugin.addresses.delegate import find_delegate
from cni_plugin.attach import bridge
from cni_plugin.config.network import parse_network
from cni_plugin.contract.request import parse_request
from cni_plugin.kernel.netns import open_pod

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cni_plugin.attach.bridge_plan import BridgePlan
    from cni_plugin.contract.request import Request
    from tests.harness.node import Completed, Node, Pod, Space

V4 = [{"subnet": "10.22.0.0/24"}]
V6 = [{"subnet": "fd00:22::/64"}]
FAMILIES = {"dual-stack": (V4, V6), "v4": (V4,), "v6": (V6,)}
GATEWAYS = {4: "10.22.0.1", 6: "fd00:22::1"}
REFERENCE = "/usr/lib/cni"


def network(node: Node, *ranges: list[dict[str, Any]], version: str = "1.1.0", **keys: Any) -> dict[str, Any]:
    """Return a bridge network over these range sets, with its store on the node."""
    ipam = {"type": "podwire-ipam", "dataDir": str(node.data_dir), "ranges": copy.deepcopy(list(ranges))}
    base = {"cniVersion": version, "name": "test", "type": "podwire", "bridge": "cni0"}
    return base | ({"ipam": ipam} if ranges else {}) | keys


def dual_stack(node: Node, **keys: Any) -> dict[str, Any]:
    """Return a dual-stack network whose gateway is the node."""
    return network(node, V4, V6, **({"isDefaultGateway": True} | keys))


def routed(node: Node, *routes: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """Return a dual-stack network that hands these routes to its pods."""
    config = dual_stack(node, **({"isDefaultGateway": False, "isGateway": True} | keys))
    config["ipam"]["routes"] = list(routes)
    return config


def add_uplink(node: Node, mtu: int, *, name: str = "up0", families: tuple[int, ...] = (4, 6)) -> None:
    """Give the node an interface of this MTU that carries the default routes of these families."""
    node.run("ip", "link", "add", name, "mtu", str(mtu), "type", "veth", "peer", "name", f"{name}-far")
    for end in (name, f"{name}-far"):
        node.run("ip", "link", "set", end, "up")
    for end in (name, f"{name}-far"):
        # Reading a link alone has the kernel note its carrier now, and not while a test compares.
        node.run("ip", "link", "show", end)
    for family in families:
        node.run("ip", f"-{family}", "route", "add", "default", "dev", name)


def add_foreign_port(node: Node, bridge: str, *, mtu: int = 1500) -> str:
    """Put a port into the bridge that is not the end of a pod's veth."""
    node.run("ip", "tuntap", "add", "dev", "tap0", "mode", "tap")
    node.run("ip", "link", "set", "tap0", "mtu", str(mtu), "master", bridge, "up")
    return "tap0"


def write_delegate(node: Node, *, add: str, delete: str = "") -> dict[str, str | None]:
    """Make an IPAM plugin `scripted` whose ADD and DEL are shell lines; return the environment for it.

    What it was called for is in the file `scripted.log` of the node's directory.
    """
    plugins = node.tmp / "plugins"
    plugins.mkdir(exist_ok=True)
    script = plugins / "scripted"
    script.write_text(
        f'#!/bin/sh\necho "$CNI_COMMAND" >> {node.tmp}/scripted.log\n'
        f"case $CNI_COMMAND in\nADD)\n{add}\n;;\nDEL)\n{delete or ':'}\n;;\nesac\n"
    )
    script.chmod(0o755)
    return {"CNI_PATH": f"{plugins}:{node.bin_dir}:{REFERENCE}"}


def delegate_calls(node: Node) -> list[str]:
    """Return the commands that the scripted delegate was called with."""
    log = node.tmp / "scripted.log"
    return log.read_text().split() if log.exists() else []


def print_result(*addresses: str, **keys: Any) -> str:
    """Return the shell line that prints a delegate's result with these addresses."""
    result = {"cniVersion": "1.1.0", "ips": [{"address": address} for address in addresses]} | keys
    return f"cat <<'END'\n{json.dumps(result)}\nEND"


def scripted(node: Node, **keys: Any) -> dict[str, Any]:
    """Return a network whose addresses the scripted delegate gives."""
    return network(node, **({"ipam": {"type": "scripted"}} | keys))


def reference(node: Node, **keys: Any) -> dict[str, Any]:
    """Return a dual-stack network for the Go plugins of Debian, over the same store."""
    config = dual_stack(node, version="1.0.0", **({"type": "bridge"} | keys))
    config["ipam"]["type"] = "host-local"
    return config


def call_reference(node: Node, command: str, config: dict[str, Any], pod: Pod) -> Completed:
    """Run the Go bridge, which runs the Go host-local."""
    return node.call(command, config, pod, program=f"{REFERENCE}/bridge", environ={"CNI_PATH": REFERENCE})


@contextmanager
def inside(space: Space) -> Iterator[None]:
    """Run a block with this thread in the namespace: for sockets, which stay there."""
    with open_pod(space.path) as namespace, namespace.entered():
        yield


def ports(node: Node) -> dict[str, Any]:
    """Return what the bridges of the node keep about their ports, by name."""
    return {port["ifname"]: port for port in json.loads(node.run("bridge", "-j", "-d", "link").stdout)}


def host_end(result: dict[str, Any]) -> str:
    """Return the name of the host's end of the pod's veth."""
    return str(result["interfaces"][1]["name"])


def gateway_of(result: dict[str, Any], family: int) -> str:
    """Return the gateway of the pod's address of this family."""
    return next(ip["gateway"] for ip in result["ips"] if (":" in ip["address"]) == (family == 6))


def address_of(result: dict[str, Any], family: int) -> str:
    """Return the pod's address of this family."""
    found = next(ip["address"] for ip in result["ips"] if (":" in ip["address"]) == (family == 6))
    return str(found.split("/")[0])


def eventually(look: Callable[[], Any], wanted: Any, *, within: float = 5.0) -> Any:
    """Return what `look` sees, as soon as it is what is wanted or else at the end.

    For what the kernel does by itself: carrier reaches a bridge late, and DAD takes its time.
    """
    deadline = time.monotonic() + within
    while (seen := look()) != wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    return seen


def wait_for(path: Path, *, within: float = 10.0) -> None:
    """Wait until the file is there."""
    assert eventually(path.exists, wanted=True, within=within), f"{path} did not appear"


def calm(node: Node) -> str:
    """Return the node's transcript without what the kernel itself changes a moment later.

    Carrier reaches a bridge and leaves it late, its link-local address settles late, and who forwards IPv6
    comes by anycast addresses late.
    """
    text = re.sub(
        r"<([^>]*)>", lambda flags: "UP" if "UP" in flags[1].split(",") else "DOWN", node.transcript()
    )
    text = re.sub(r"^(local fe80:|anycast ).*\n", "", text, flags=re.MULTILINE)
    return re.sub(r" (tentative|linkdown|dead|dadfailed|state \w+)\b", "", text)


def environment(node: Node, command: str, pod: Pod) -> dict[str, str]:
    """Return what a runtime sets for a call, for a test that starts the program itself."""
    names = {"CNI_COMMAND": command, "CNI_CONTAINERID": pod.container_id, "CNI_NETNS": pod.path}
    return names | {"CNI_IFNAME": "eth0", "CNI_PATH": str(node.bin_dir), "PATH": os.environ["PATH"]}


@contextmanager
def planned(node: Node, config: dict[str, Any], pod: Pod) -> Iterator[tuple[Request, BridgePlan]]:
    """Run a block inside the node with an ADD's request and plan, for what an executable cannot show."""
    with inside(node):
        request = parse_request(environment(node, "ADD", pod), json.dumps(config).encode())
        yield (
            request,
            bridge.plan(request.config, parse_network(request), find_delegate(request).addressing()),
        )
