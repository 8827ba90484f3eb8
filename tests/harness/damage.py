"""Damage to what a node holds for its networks and running pods, by mode, and what there was before."""

from __future__ import annotations

import base64
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cni_plugin.cli import main
from cni_plugin.kernel.netns import inside
from tests.harness.cluster import FORMS, TUNNEL, Cluster
from tests.harness.networks import dual_stack

if TYPE_CHECKING:
    from tests.harness.node import Node, Pod

MODES = ("bridge", "veth", *FORMS)  # the first two without other nodes
RUNTIME = {
    "portMappings": [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
    ],
    "bandwidth": {
        "ingressRate": 800_000_000,
        "ingressBurst": 80_000_000,
        "egressRate": 800_000_000,
        "egressBurst": 80_000_000,
    },
}
_ARGS = {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "web-0"}


def plugins_of(cluster: Cluster, mode: str, i: int) -> list[dict[str, Any]]:
    """Return the plugins of node i's network: with everything that a pod can get beside its link."""
    node = cluster.nodes[i]
    if mode in FORMS:
        config = cluster.config(mode, i)
    else:
        config = dual_stack(node, **({"mode": "routed"} if mode == "veth" else {}))
    main_plugin = {key: value for key, value in config.items() if key not in {"name", "cniVersion"}}
    main_plugin |= {
        "ipMasq": True,
        "spoofCheck": "ip",
        "sourceValidation": True,
        "capabilities": dict.fromkeys(RUNTIME, True),
    }
    return [main_plugin, {"type": "firewall", "ingressPolicy": "open"}]


@dataclass
class Place:
    """A node with a running pod, the runtime's files about both, and a pod elsewhere if there is one."""

    node: Node
    pod: Pod
    veth: str
    far: Pod | None

    @property
    def words(self) -> list[str]:
        """Return where the commands look."""
        tmp = self.node.tmp
        return [
            *("--conf-dir", str(tmp / "net.d"), "--bin-dir", str(self.node.bin_dir)),
            *("--cache-dir", str(tmp / "results")),
        ]

    def run(self, *command: str) -> tuple[int, str]:
        """Run a command of ours in the node's namespace, without a process; return status and words."""
        text = io.StringIO()
        with redirect_stdout(text), redirect_stderr(text), ThreadPoolExecutor(1) as threads:
            status = threads.submit(_run_inside, self.node, [*command, *self.words]).result()
        return status, text.getvalue()


def _run_inside(node: Node, argv: list[str]) -> int:
    with Path(node.path).open() as opened, inside(opened.fileno()):
        return main.main(argv)


def join(
    node: Node, plugins: list[dict[str, Any]], pod: Pod, asked: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Have a pod attached as a runtime does it, which keeps a record; return the result."""
    write_conflist(node, plugins)
    asked = RUNTIME if asked is None else asked
    args = ";".join(f"{key}={value}" for key, value in _ARGS.items())
    result: dict[str, Any] | None = None
    for plugin in plugins:
        runtime = {key: value for key, value in asked.items() if plugin.get("capabilities", {}).get(key)}
        config = {**plugin, "name": "test", "cniVersion": "1.1.0", "runtimeConfig": runtime}
        config |= {"prevResult": result} if result else {}
        program = "podwire" if plugin["type"] == "podwire" else _linked(node, plugin["type"])
        result = node.add(config, pod, program=program, environ={"CNI_ARGS": args})
    assert result
    kept = {
        "kind": "cniCacheV1",
        "containerId": pod.container_id,
        "config": base64.b64encode((node.tmp / "net.d/10-test.conflist").read_bytes()).decode(),
        "ifName": "eth0",
        "networkName": "test",
        "netns": pod.path,
        "cniArgs": [list(pair) for pair in _ARGS.items()],
        "capabilityArgs": asked,
        "result": result,
    }
    (node.tmp / "results").mkdir(exist_ok=True)
    (node.tmp / f"results/test-{pod.container_id}-eth0").write_text(json.dumps(kept))
    return result


def _linked(node: Node, kind: str) -> str:
    program = node.tmp / kind
    if not program.is_symlink():
        program.symlink_to(node.bin_dir / "podwire")
    return str(program)


def write_conflist(node: Node, plugins: list[dict[str, Any]]) -> None:
    directory = node.tmp / "net.d"
    directory.mkdir(exist_ok=True)
    document = {"cniVersion": "1.1.0", "name": "test", "plugins": plugins}
    (directory / "10-test.conflist").write_text(json.dumps(document))


def occupy(cluster: Cluster, mode: str) -> Place:
    """Have a pod attached on node 1, and where nodes are joined one on node 2."""
    node, pod, far = cluster.nodes[1], cluster.nodes[1].pod(), None
    result = join(node, plugins_of(cluster, mode, 1), pod)
    if mode in FORMS:
        far = cluster.nodes[2].pod()
        join(cluster.nodes[2], plugins_of(cluster, mode, 2), far)
    veth = next(each["name"] for each in result["interfaces"] if each["name"].startswith("veth"))
    return Place(node=node, pod=pod, veth=veth, far=far)


def held(node: Node) -> str:
    """Return what a node holds, as iproute2, tc and nft show it, without what only counts or ages."""
    look = (
        ("ip", "-o", "link"),
        ("ip", "-o", "addr"),
        ("ip", "-4", "route", "show", "table", "all"),
        ("ip", "-6", "route", "show", "table", "all"),
        ("ip", "rule"),
        ("ip", "-6", "rule"),
        ("ip", "neigh", "show", "nud", "permanent"),
        ("bridge", "-d", "link"),
        ("bridge", "fdb", "show"),
        ("tc", "qdisc"),
        ("nft", "list", "ruleset"),
        ("sysctl", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"),
    )
    words = " && echo && ".join(" ".join(each) for each in look)
    said = node.run("sh", "-c", words).stdout.splitlines()
    # What IPv6 does by itself some time later, and what a bridge learns.
    return "\n".join(sorted(_steady(each) for each in said if not _is_fleeting(each)))


def _is_fleeting(line: str) -> bool:
    learned = " permanent" not in line and line[2:3] == ":" and " dev " in line
    own = "fe80:" in line and "proto 112" not in line
    return own or "ff00::" in line or "33:33:" in line or "01:00:5e" in line or learned


def _steady(line: str) -> str:
    """Return the line without what a link made anew has another of: its index, the MAC of an ifb."""
    line = re.sub(r"^\d+: ", "", line).replace("state UNKNOWN", "state UP").replace("LOWER_UP,", "")
    if line.startswith("bwp"):
        line = re.sub(r"link/ether [0-9a-f:]+", "", line)
    return " ".join(word for word in line.split() if not word.startswith("qlen"))


@dataclass(frozen=True)
class Blow:
    """One kind of damage: a shell line with {veth}, the modes in which it is one."""

    line: str
    modes: tuple[str, ...] = MODES
    announced: bool = True
    """The kernel says so to whoever listens; of limits (tc) and groups nobody here does."""


_BRIDGED = ("bridge", "flat", "routed", "bridgegw")
_ROUTED = ("veth", "tunnel", "hostgw")
_TUNNELS = ("flat", "routed", "tunnel")
_PEERS = ("routed", "bridgegw", "tunnel", "hostgw")


def _flush(family: str, prefix: str, kind: str = "set") -> str:
    name = f"$(nft list ruleset {family} | sed -n 's/^\\t{kind} \\({prefix}[^ ]*\\) .*/\\1/p' | head -n1)"
    return f"nft flush {kind} {family} podwire {name}"


BLOWS = {
    "ruleset flushed": Blow("nft flush ruleset"),
    "tables deleted": Blow("nft delete table inet podwire"),
    "masquerade elements": Blow(_flush("inet", "masq4_")),
    "masquerade chain": Blow(_flush("inet", "masquerade_", "chain")),
    "host port elements": Blow(_flush("inet", "hostport4_", "map")),
    "host ports' pods": Blow(_flush("inet", "hostport_pods6_")),
    "firewall elements": Blow(_flush("inet", "firewall4_")),
    "spoof check": Blow(_flush("bridge", "spoof_mac"), _BRIDGED),
    "spoof check routed": Blow(_flush("inet", "spoof_mac"), _ROUTED),
    "source validation": Blow(_flush("inet", "source_", "chain")),
    "group of the pod's link": Blow("ip link set {veth} group default", _ROUTED, announced=False),
    "guard chain": Blow(f"nft flush chain inet podwire guard_{TUNNEL}", _TUNNELS),
    "forwarding 4": Blow("sysctl -qw net.ipv4.ip_forward=0"),
    "forwarding 6": Blow("sysctl -qw net.ipv6.conf.all.forwarding=0"),
    "veth down": Blow("ip link set {veth} down"),
    "limit in": Blow("tc qdisc del dev {veth} root", announced=False),
    "limit out": Blow(
        "ip link del $(ip -o link show type ifb | sed 's/^[0-9]*: \\([^:]*\\):.*/\\1/')", announced=False
    ),
    "limit's way": Blow("tc qdisc del dev {veth} ingress", announced=False),
    "bridge down and up": Blow("ip link set cni0 down && ip link set cni0 up", _BRIDGED),
    "bridge down": Blow("ip link set cni0 down", _BRIDGED),
    "bridge deleted": Blow("ip link del cni0", _BRIDGED),
    "gateway addresses": Blow("ip addr flush dev cni0 scope global", _BRIDGED),
    "connected routes": Blow(
        "for v in 4 6; do ip -$v route show dev cni0 proto kernel | grep -v fe80 | while read to x; do "
        "ip -$v route del $to dev cni0; done; done",
        _BRIDGED,
    ),
    "off its bridge": Blow("ip link set {veth} nomaster", _BRIDGED),
    "routes to pods": Blow("ip -4 route flush dev {veth} && ip -6 route flush dev {veth} proto 112", _ROUTED),
    "neighbours of pods": Blow("ip neigh flush dev {veth} nud permanent", _ROUTED),
    "tunnel deleted": Blow(f"ip link del {TUNNEL}", _TUNNELS),
    "tunnel down": Blow(f"ip link set {TUNNEL} down", _TUNNELS),
    "entries of the tunnel": Blow(
        f"bridge fdb show dev {TUNNEL} | grep ' dst ' | while read mac x; do "
        f"bridge fdb del $mac dev {TUNNEL} dst 192.0.2.2; done",
        _TUNNELS,
    ),
    "neighbours of the tunnel": Blow(f"ip neigh flush dev {TUNNEL} nud permanent", ("routed", "tunnel")),
    "routes to nodes": Blow("ip route flush proto 112 root 10.244.2.0/24", _PEERS),
    "routes to nodes 6": Blow("ip -6 route flush proto 112 root fd00:10:244:2::/64", _PEERS),
    "rule": Blow("ip rule del from 10.244.1.0/24", ("routed", "tunnel")),
    "rp_filter": Blow(f"sysctl -qw net.ipv4.conf.{TUNNEL}.rp_filter=1", ("routed", "tunnel")),
}
