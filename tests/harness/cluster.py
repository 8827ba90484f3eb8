"""Several nodes on an underlay of their own, and pods on networks that span them.

The underlay is a namespace with a bridge `sw0` that every node's `u0` is plugged into; the same namespace
routes to nodes that are behind a router. Node i has 192.0.2.i and 2001:db8::i, behind the router
198.51.100.i and 2001:db8:1::i. rp_filter is strict everywhere, as kind nodes have it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.harness.node import Node, Pod, Space, make_node

if TYPE_CHECKING:
    from collections.abc import Iterator

TRAFFIC = str(Path(__file__).parent / "traffic.py")
# Bridged pods in one segment, bridged and routed to by tunnel or by plain routes, routed pods likewise.
FORMS = ("flat", "routed", "bridgegw", "tunnel", "hostgw")
TUNNELLED = ("routed", "tunnel")
VNI = 42
TUNNEL = f"vxlan{VNI}"
STRICT = ("net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")


@dataclass
class Cluster:
    """Nodes, numbered from 1, and the underlay between them."""

    nodes: dict[int, Node]
    underlay: Space
    routed: frozenset[int] = frozenset()
    captures: list[Capture] = field(default_factory=list)

    def address(self, i: int, version: int) -> str:
        """Return a node's address on the underlay."""
        link = {4: "198.51.100.", 6: "2001:db8:1::"} if i in self.routed else {4: "192.0.2.", 6: "2001:db8::"}
        return f"{link[version]}{i}"

    def plug(self, i: int, mtu: int) -> None:
        """Give node i its interface `u0` on the underlay, with the same MAC every time, as machines have.

        Neighbours remember it, and one that a reboot changed would cost them 8 seconds of silence.
        """
        node, far = self.nodes[i], f"p{i}"
        node.run("sysctl", "-qw", *STRICT)
        node.run(
            "ip",
            "link",
            "add",
            "u0",
            "address",
            f"02:00:00:00:00:{i:02x}",
            "mtu",
            mtu,
            "type",
            "veth",
            "peer",
            "name",
            far,
            "netns",
            self.underlay.name,
        )
        self.underlay.run("ip", "link", "set", far, "mtu", mtu)
        if i in self.routed:
            self._join(self.underlay, far, "198.51.100.254/24", "2001:db8:1::fe/64")
        else:
            self.underlay.run("ip", "link", "set", far, "master", "sw0", "up")
        self._join(node, "u0", f"{self.address(i, 4)}/24", f"{self.address(i, 6)}/64")
        router = {4: "198.51.100.254", 6: "2001:db8:1::fe"} if i in self.routed else ROUTER
        node.run("ip", "route", "add", "default", "via", router[4])
        node.run("ip", "route", "add", "default", "via", router[6])

    def await_carriers(self) -> None:
        """Return when the kernel knows that every node's cable is plugged in, which takes it a moment.

        And when packets for the node's IPv6 addresses are its own, which it sees to in a work queue, too.
        """
        deadline = time.monotonic() + 10
        while not all(map(_is_plugged, self.nodes.values())):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    @staticmethod
    def _join(space: Space, ifname: str, *addresses: str) -> None:
        space.run("sysctl", "-qw", f"net.ipv6.conf.{ifname}.accept_dad=0")
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []
            space.run("ip", "addr", "add", address, "dev", ifname, *nodad)
        space.run("ip", "link", "set", ifname, "up")

    def set_mtu(self, mtu: int) -> None:
        """Change the MTU of the whole underlay."""
        for i, node in self.nodes.items():
            self.underlay.run("ip", "link", "set", f"p{i}", "mtu", mtu)
            node.run("ip", "link", "set", "u0", "mtu", mtu)

    def config(self, form: str, i: int, version: int = 4, **keys: Any) -> dict[str, Any]:
        """Return node i's configuration; `keys` go to where the form keeps its peers."""
        ranges, section = RANGES[form](i), dict(keys)
        others = [n for n in self.nodes if n != i]
        if not {"peers", "peersFile", "group"} & set(keys):
            section["peers"] = [self.peer(form, n, version) for n in others]
        mode = {"bridgegw": "bridge", "tunnel": "routed", "hostgw": "routed"}.get(form, "vxlan")
        form_keys: dict[str, Any] = {"mode": mode, "vxlan": {"vni": VNI, **section}}
        if form in {"bridgegw", "hostgw"}:
            form_keys = {"mode": mode, "hostGateway": section}
        ipam = {"type": "podwire-ipam", "dataDir": str(self.nodes[i].data_dir), "ranges": ranges}
        base = {"cniVersion": "1.1.0", "name": "test", "type": "podwire", "bridge": "cni0"}
        return {**base, "isDefaultGateway": True, **form_keys, "ipam": ipam}

    def peer(self, form: str, n: int, version: int = 4) -> Any:
        """Return node n as others list it."""
        if form == "flat":
            return self.address(n, version)
        subnets = [r[0]["subnet"] for r in RANGES[form](n)]
        if form in {"bridgegw", "hostgw"}:
            return {"addresses": [self.address(n, 4), self.address(n, 6)], "subnets": subnets}
        return {"vtep": self.address(n, version), "subnets": subnets}

    def start_pods(self, form: str, version: int = 4, **keys: Any) -> dict[int, Pod]:
        """Make a pod on every node and return them by node."""
        pods = {}
        for i, node in self.nodes.items():
            pods[i] = node.pod()
            node.add(self.config(form, i, version, **keys), pods[i])
        return pods

    @contextmanager
    def captured(self, tmp: Path) -> Iterator[Capture]:
        """Record what crosses the underlay."""
        with capture(self.underlay, tmp / f"{uuid.uuid4().hex}.pcap") as recording:
            yield recording

    def remove(self) -> None:
        for node in self.nodes.values():
            node.remove()
        self.underlay.remove()


ROUTER = {4: "192.0.2.254", 6: "2001:db8::fe"}
ROUTED_RANGES = "10.244.{i}.0/24", "fd00:10:244:{i}::/64"


def _flat(i: int) -> list[list[dict[str, str]]]:
    """Return node i's part of the one segment."""
    return [
        [{"subnet": "10.244.0.0/16", "rangeStart": f"10.244.{i}.1", "rangeEnd": f"10.244.{i}.254"}],
        [
            {
                "subnet": "fd00:10:244::/64",
                "rangeStart": f"fd00:10:244::{i}:0",
                "rangeEnd": f"fd00:10:244::{i}:ffff",
            }
        ],
    ]


def _subnets(i: int) -> list[list[dict[str, str]]]:
    """Return the subnets that are node i's alone."""
    return [[{"subnet": subnet.format(i=i)}] for subnet in ROUTED_RANGES]


RANGES = {"flat": _flat} | dict.fromkeys(FORMS[1:], _subnets)


def _is_plugged(node: Node) -> bool:
    local = node.run("ip", "-6", "route", "show", "table", "local").stdout
    own = [each.partition("/")[0] for each in node.addresses("u0") if ":" in each]
    return node.links()["u0"]["operstate"] == "UP" and all(f"local {each} " in local for each in own)


def make_cluster(
    tmp: Path, bin_dir: Path, count: int, *, mtu: int = 1500, behind_router: tuple[int, ...] = ()
) -> Cluster:
    """Return `count` nodes on an underlay with this MTU."""
    underlay = Space(name=f"underlay-{uuid.uuid4().hex[:8]}")
    subprocess.run(["ip", "netns", "add", underlay.name], check=True)
    made = Cluster(nodes={}, underlay=underlay, routed=frozenset(behind_router))
    try:
        underlay.run("sysctl", "-qw", *STRICT, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        underlay.run("ip", "link", "add", "sw0", "type", "bridge")
        made._join(underlay, "sw0", f"{ROUTER[4]}/24", f"{ROUTER[6]}/64")
        for i in range(1, count + 1):
            (tmp / f"n{i}").mkdir()
            made.nodes[i] = make_node(tmp / f"n{i}", bin_dir)
            made.plug(i, mtu)
        made.await_carriers()
    except BaseException:
        made.remove()
        raise
    return made


@dataclass
class Capture:
    """What tcpdump wrote."""

    path: Path

    def frames(self, expression: str = "") -> list[str]:
        """Return the frames that match a filter, a line each."""
        words = ["tcpdump", "-n", "-e", "-r", str(self.path), *([expression] if expression else [])]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


@contextmanager
def capture(space: Space, path: Path, *, link: str = "any") -> Iterator[Capture]:
    """Record the frames that pass a link of a namespace."""
    words = ["tcpdump", "-i", link, "-U", "--immediate-mode", "-s", "256", "-B", "8192", "-Z", "root"]
    command = ["nsenter", f"--net={space.path}", *words, "-w", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        started = process.stderr.readline()
        while "listening on" not in started:
            assert started, f"{' '.join(command)}: ended"
            started = process.stderr.readline()
        try:
            yield Capture(path)
            time.sleep(0.05)
        finally:
            process.terminate()
            process.stderr.read()


def address_of(pod: Pod, version: int) -> str:
    """Return the pod's address of a family."""
    found = [a.partition("/")[0] for a in pod.addresses("eth0")]
    return next(a for a in found if (":" in a) == (version == 6))


@contextmanager
def serving(pod: Space) -> Iterator[None]:
    """Run the traffic server in a pod."""
    command = ["nsenter", f"--net={pod.path}", sys.executable, "-IS", TRAFFIC, "serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            process.terminate()


def exchange(space: Space, *addresses: str) -> dict[str, dict[str, Any]]:
    """Send TCP and UDP of real size to the servers; return what each saw of us, by its address."""
    done = space.run(sys.executable, "-IS", TRAFFIC, "send", *addresses)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def sync(node: Node, config: dict[str, Any], *words: str) -> subprocess.CompletedProcess[str]:
    """Run `podwire sync` (or another command about networks) with the configuration."""
    directory = write_conflist(node, config)
    command = words or ("sync",)
    program = str(node.bin_dir / "podwire")
    return node.run(program, *command, "--conf-dir", directory, "--bin-dir", str(node.bin_dir), check=False)


def write_conflist(node: Node, config: dict[str, Any]) -> str:
    """Write the configuration where a runtime would read it; return the directory."""
    directory = node.tmp / "net.d"
    directory.mkdir(exist_ok=True)
    plugin = {key: value for key, value in config.items() if key not in {"name", "cniVersion"}}
    document = {"cniVersion": "0.4.0", "name": config["name"], "plugins": [plugin]}
    (directory / "10-test.conflist").write_text(json.dumps(document))
    return str(directory)


def overlay_state(node: Node) -> dict[str, Any]:
    """Return all that a network's peers made on a node, as iproute2 and nft show it, without indexes."""
    links = node.links()
    device, names = links.get(TUNNEL), {TUNNEL, *links}
    state: dict[str, Any] = {
        f"routes{v}": sorted(
            node.run("ip", f"-{v}", "route", "show", "proto", "112", "root", WHOLE[v]).stdout.splitlines()
        )
        for v in (4, 6)
    }
    state["routes4"] = [route for route in state["routes4"] if "dev veth" not in route]
    state["routes6"] = [route for route in state["routes6"] if "dev veth" not in route]
    if device is None or TUNNEL not in names:
        return state
    fdb = node.run("bridge", "fdb", "show", "dev", TUNNEL).stdout.splitlines()
    data = device["linkinfo"]["info_data"]
    return state | {
        "device": {key: device.get(key) for key in ("address", "mtu", "master", "operstate", "ifalias")},
        "settings": {key: value for key, value in data.items() if key != "ageing"},
        "up": "UP" in device["flags"],
        "fdb": sorted(e for e in fdb if " dst " in e and e.endswith("permanent")),
        "neighbours": sorted(
            node.run("ip", "neigh", "show", "dev", TUNNEL, "nud", "permanent").stdout.splitlines()
        ),
        "addresses": node.addresses(TUNNEL),
        "rules": [
            line
            for v in (4, 6)
            for line in node.run("ip", f"-{v}", "rule").stdout.splitlines()
            if "proto 112" in line
        ],
        "marks": node.run("nft", "list", "chain", "inet", "podwire", f"tunnel_{TUNNEL}", check=False).stdout,
        "nft": node.run("nft", "list", "ruleset", "bridge").stdout,
    }


WHOLE = {4: "0.0.0.0/0", 6: "::/0"}
