"""An agent that serves HTTP in a node's namespace, and what it says there."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from cni_plugin.config.state_file import ServicesState, services_file
from tests.conftest import install
from tests.harness.agents import Agent, start_agent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import Node

PLACE = "127.0.0.1:9112"
_GET = """
import json, sys, urllib.request, urllib.error
asked = urllib.request.Request(sys.argv[1], headers=json.loads(sys.argv[2]))
try:
    answer = urllib.request.urlopen(asked, timeout=10)
except urllib.error.HTTPError as error:
    answer = error
json.dump([answer.status, answer.headers["Content-Type"], answer.read().decode()], sys.stdout)
"""
Labels = dict[str, str]


@dataclass(frozen=True)
class Page:
    status: int
    content_type: str
    text: str


@dataclass
class Watched:
    """A node whose calls go through an agent that counts them."""

    node: Node
    agent: Agent

    def get(self, path: str, **headers: str) -> Page:
        return get(self.node, f"http://{PLACE}{path}", **headers)

    def scrape(self) -> Metrics:
        page = self.get("/metrics")
        assert page.status == 200
        return Metrics(page.text)

    def rss(self) -> int:
        """Return the resident memory of the agent in bytes."""
        status = Path(f"/proc/{self.agent.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) * 1024


class Metrics:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self.samples = [sample for family in families for sample in family.samples]

    def rows(self, name: str) -> list[tuple[Labels, float]]:
        return [(sample.labels, sample.value) for sample in self.samples if sample.name == name]

    def value(self, name: str, **labels: str) -> float:
        """Return the one sample with these labels among its own."""
        found = [value for held, value in self.rows(name) if labels.items() <= held.items()]
        assert len(found) == 1, (name, labels, self.rows(name))
        return found[0]


def get(node: Node, url: str, **headers: str) -> Page:
    done = node.run(sys.executable, "-IS", "-c", _GET, url, json.dumps(headers))
    return Page(*json.loads(done.stdout))


@contextmanager
def watched(node: Node, *options: object) -> Iterator[Watched]:
    """Run an agent for the node; it must end well."""
    node.bin_dir = node.tmp / "bin"
    install(node.bin_dir, node.tmp / "a.sock")
    directories = ("--conf-dir", node.tmp / "net.d", "--state-file", state_file(node))
    with start_agent(node.tmp / "a.sock", "--http", PLACE, *directories, *options, inside=node) as agent:
        yield Watched(node, agent)
        assert agent.stop() == 0, agent.log.read_text()


def state_file(node: Node) -> Path:
    return node.tmp / "cluster.json"


def write_state(node: Node, **keys: object) -> None:
    """Write what the cluster's follower would."""
    state = {
        "node": "n1",
        "ready": True,
        "reasons": [],
        "mode": "vxlan",
        "network": "test",
        "podCIDRs": ["10.22.0.0/24"],
        "peersWanted": 3,
        "peersProgrammed": 2,
        "syncs": 7,
        "repairs": 5,
        "errors": 1,
        "lastSyncSeconds": 0.25,
        "lastSync": 1.7e9,
        "updated": 1.7e9,
    }
    state_file(node).write_text(json.dumps(state | keys))


def write_services_state(node: Node) -> None:
    """Write what podwire says of Services where it serves them."""
    services = ServicesState(node="n1", ready=True, services=4, frontends=9, endpoints=12, rivals=("x",))
    Path(services_file(str(state_file(node)))).write_text(services.render())


def listens(node: Node, place: str) -> bool:
    done = subprocess.run(
        ["nsenter", f"--net={node.path}", "ss", "-Htln"], capture_output=True, text=True, check=True
    )
    return place in done.stdout
