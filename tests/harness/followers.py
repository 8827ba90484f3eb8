"""Nodes of a test's cluster that follow a Kubernetes API: `podwire cluster` on each of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.harness.api_server import APIServer, render_node, serving_api
from tests.harness.cluster import ROUTED_RANGES, ROUTER, Cluster, make_cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.node import Node, Pod

FAMILIES = {"dual": (4, 6), "IPv4": (4,), "IPv6": (6,)}


@dataclass
class Follower:
    """One node's `podwire cluster`."""

    node: Node
    directory: Path
    options: tuple[str, ...]
    before: tuple[str, ...] = ()
    """Words that come before the command's own."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def conflist(self) -> Path:
        return self.directory / "net.d" / "10-podwire.conflist"

    @property
    def state_file(self) -> Path:
        return self.directory / "run" / "cluster.json"

    @property
    def log(self) -> Path:
        return self.directory / "cluster.log"

    @property
    def words(self) -> list[str]:
        """Return the options that say where everything of this node is."""
        return [
            *self.options,
            f"--service-account={self.directory}/account",
            f"--settings={self.directory}/settings.json",
            f"--conf-dir={self.conflist.parent}",
            f"--state-file={self.state_file}",
        ]

    def configure(self, **settings: Any) -> None:
        """Write the cluster's settings, which are read at the start."""
        data_dir = {"dataDir": str(self.node.data_dir)}
        (self.directory / "settings.json").write_text(json.dumps({**data_dir, **settings}))

    def start(self) -> None:
        command = [
            "nsenter",
            f"--net={self.node.path}",
            *self.before,
            sys.executable,
            "-m",
            "cni_plugin",
            "cluster",
            *self.words,
        ]
        with self.log.open("ab") as log:
            self.processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log))

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        while self.processes:
            process = self.processes.pop()
            process.send_signal(number)
            assert process.wait(timeout=20) in {0, -number}, self.log.read_text()

    def restart(self) -> dict[str, Any]:
        """Stop, start, and return the first state of the new one."""
        self.stop()
        self.state_file.unlink()
        self.start()
        return self.wait(lambda state: state["syncs"] > 0)

    def state(self) -> dict[str, Any]:
        """Return what the state file says; nothing while there is none."""
        try:
            found: dict[str, Any] = json.loads(self.state_file.read_text())
        except FileNotFoundError:
            return {}
        return found

    def wait(self, until: Callable[[dict[str, Any]], bool], within: float = 60) -> dict[str, Any]:
        """Return the first state that is as wanted."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            state = self.state()
            if state and until(state):
                return state
            time.sleep(0.02)
        raise AssertionError(f"{self.state()}\n{self.log.read_text()}")

    def wait_ready(self, peers: int) -> dict[str, Any]:
        return self.wait(lambda state: state["ready"] and state["peersProgrammed"] == peers)

    def config(self) -> dict[str, Any]:
        """Return what a runtime would hand to the plugin."""
        found = json.loads(self.conflist.read_text())
        return {**found["plugins"][0], "name": found["name"], "cniVersion": "1.1.0"}

    def start_pod(self) -> Pod:
        pod = self.node.pod()
        self.node.add(self.config(), pod)
        return pod


@dataclass
class Followers:
    """A cluster whose nodes follow one API."""

    cluster: Cluster
    api: APIServer
    nodes: dict[int, Follower]
    families: tuple[int, ...]

    def render(self, i: int, **keys: Any) -> dict[str, Any]:
        """Return node i as the API has it: addresses and subnets of the cluster's families."""
        addresses = [self.cluster.address(i, v) for v in self.families]
        cidrs = [cidr.format(i=i) for cidr in ROUTED_RANGES if (6 if ":" in cidr else 4) in self.families]
        return render_node(f"node{i}", **{"addresses": addresses, "cidrs": cidrs, "created": i, **keys})

    def start(self) -> None:
        """Let every node join and be ready."""
        self.api.put(*(self.render(i) for i in self.nodes))
        for follower in self.nodes.values():
            follower.start()
        for follower in self.nodes.values():
            follower.wait_ready(len(self.nodes) - 1)


@contextmanager
def following(
    tmp: Path,
    bin_dir: Path,
    count: int = 3,
    families: str = "dual",
    behind: tuple[int, ...] = (),
    **settings: Any,
) -> Iterator[Followers]:
    """Return a cluster of nodes that can follow an API which listens in the underlay's namespace."""
    cluster = make_cluster(tmp, bin_dir, count, behind_router=behind)
    nodes: dict[int, Follower] = {}
    try:
        with serving_api(cluster.underlay, ROUTER[4]) as api:
            for i, node in cluster.nodes.items():
                directory = node.tmp / "kube"
                (directory / "account").mkdir(parents=True)
                (directory / "account" / "token").write_text("first\n")
                options = (f"--node-name=node{i}", f"--api-server={api.url}", "--resync=600")
                nodes[i] = Follower(node, directory, options)
                nodes[i].configure(**settings)
            try:
                yield Followers(cluster, api, nodes, FAMILIES[families])
            finally:
                for follower in nodes.values():
                    for process in follower.processes:
                        process.kill()
                        process.wait()
    finally:
        cluster.remove()
