"""A node of a test's own: a fresh network namespace, and pods that are namespaces too.

Everything a test starts runs inside the node by `nsenter`, so that the machine's own links,
routes and firewall are never touched. State is read back as `ip -j` text, so that a failure
reads as a difference of networking.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NETNS_DIR = Path("/run/netns")


@dataclass
class Completed:
    """What a call of the executable answered."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """Return stdout as JSON; it must be one object."""
        return json.loads(self.stdout)


@dataclass
class Space:
    """A network namespace with a name."""

    name: str

    @property
    def path(self) -> str:
        return str(NETNS_DIR / self.name)

    def run(self, *argv: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program inside; its output is text and captured."""
        command = ["nsenter", f"--net={self.path}", *map(str, argv)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def ip(self, *words: str) -> Any:
        """Return what `ip -j` prints."""
        text = self.run("ip", "-j", "-d", *words).stdout.strip()
        return json.loads(text) if text else []

    def links(self) -> dict[str, Any]:
        """Return the links by name."""
        return {link["ifname"]: link for link in self.ip("link", "show")}

    def addresses(self, ifname: str) -> list[str]:
        """Return the addresses of a link, IPv6 link-local left out."""
        found = self.ip("addr", "show", "dev", ifname)
        infos = [info for link in found for info in link.get("addr_info", [])]
        return [f"{i['local']}/{i['prefixlen']}" for i in infos if not i["local"].startswith("fe80:")]

    def ping(self, address: str, *, within: float = 1.0) -> bool:
        """Send one packet and tell whether it was answered; it is never sent twice."""
        done = self.run("ping", "-n", "-c1", "-W", str(within), address, check=False)
        return done.returncode == 0

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)


@dataclass
class Pod(Space):
    """A pod: a namespace and the identity that the runtime gives it."""

    container_id: str = ""


@dataclass
class Node(Space):
    """A node: a namespace, directories of its own, and the executables installed for it."""

    tmp: Path = field(default_factory=Path)
    bin_dir: Path = field(default_factory=Path)
    pods: list[Pod] = field(default_factory=list)

    @property
    def data_dir(self) -> Path:
        """Return where this node's addresses are kept."""
        return self.tmp / "networks"

    def pod(self) -> Pod:
        """Make a pod without a network."""
        name = f"pod-{uuid.uuid4().hex[:12]}"
        subprocess.run(["ip", "netns", "add", name], check=True)
        made = Pod(name=name, container_id=name)
        made.run("ip", "link", "set", "lo", "up")
        self.pods.append(made)
        return made

    def call(
        self,
        command: str,
        config: dict[str, Any] | bytes | str,
        pod: Pod | None = None,
        *,
        program: str = "podwire",
        environ: dict[str, str | None] | None = None,
    ) -> Completed:
        """Run the executable as a runtime does; `environ` adds variables, None removes one."""
        stdin = json.dumps(config) if isinstance(config, dict) else config
        variables = {"PATH": os.environ["PATH"], "CNI_COMMAND": command, "CNI_PATH": str(self.bin_dir)}
        if pod is not None:
            variables |= {"CNI_CONTAINERID": pod.container_id, "CNI_NETNS": pod.path, "CNI_IFNAME": "eth0"}
        wanted = variables | (environ or {})
        env = {key: value for key, value in wanted.items() if value is not None}
        path = program if "/" in program else str(self.bin_dir / program)
        done = subprocess.run(
            ["nsenter", f"--net={self.path}", path],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            env=env,
            capture_output=True,
            check=False,
            timeout=60,
        )
        return Completed(done.returncode, done.stdout.decode(), done.stderr.decode())

    def add(self, config: dict[str, Any], pod: Pod, **options: Any) -> dict[str, Any]:
        """ADD, which must succeed; return the result."""
        answer = self.call("ADD", config, pod, **options)
        assert answer.status == 0, answer.stdout + answer.stderr
        return answer.json

    def check(self, config: dict[str, Any], result: dict[str, Any], pod: Pod, **options: Any) -> Completed:
        """CHECK with the result of an ADD."""
        return self.call("CHECK", {**config, "prevResult": result}, pod, **options)

    def delete(self, config: dict[str, Any], pod: Pod, **options: Any) -> None:
        """DEL, which must succeed."""
        answer = self.call("DEL", config, pod, **options)
        assert answer.status == 0, answer.stdout + answer.stderr
        assert answer.stdout == ""

    def held(self, network: str = "test") -> dict[str, str]:
        """Return the addresses in the store and who holds each."""
        directory = self.data_dir / network
        files = directory.iterdir() if directory.is_dir() else ()
        return {f.name: f.read_text() for f in files if f.name[0] in "0123456789abcdef" and f.name != "lock"}

    def set_filtering(self, switch: int) -> None:
        """Let br_netfilter filter and translate inside bridges, or not."""
        keys = (f"net.bridge.bridge-nf-call-{name}={switch}" for name in ("iptables", "ip6tables"))
        self.run("sysctl", "-qw", *keys)

    def transcript(self) -> str:
        """Return the node's state as text: links, addresses, routes, nftables and the store.

        Left out is what only counts or ages, and what IPv6 does by itself some time after a link came up.
        """
        parts = []
        for words in (
            ["link"],
            ["addr"],
            ["-4", "route", "show", "table", "all"],
            ["-6", "route", "show", "table", "all"],
        ):
            parts.append(" ".join(words))
            lines = self.run("ip", "-o", *words).stdout.splitlines()
            parts += [line for line in lines if "fe80:" not in line and "ff00::" not in line]
        parts.append(self.run("nft", "list", "ruleset").stdout)
        parts += [f"{name} {owner!r}" for name, owner in sorted(self.held().items())]
        return "\n".join(parts)

    def remove(self) -> None:
        for pod in self.pods:
            pod.remove()
        super().remove()


class Bridges:
    """What br_netfilter does on the nodes that are made now: 1 filters; None is the kernel's default."""

    filtering: int | None = None


def make_node(tmp: Path, bin_dir: Path) -> Node:
    """Return a fresh node with its loopback up."""
    name = f"node-{uuid.uuid4().hex[:12]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    node = Node(name=name, tmp=tmp, bin_dir=bin_dir)
    node.run("ip", "link", "set", "lo", "up")
    if Bridges.filtering is not None:
        node.set_filtering(Bridges.filtering)
    return node
