"""The real Prometheus scrapes a real agent: the rules hold, and each query of the dashboard returns data."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.parse
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.harness.cluster import write_conflist
from tests.harness.networks import dual_stack, network
from tests.harness.scrape import PLACE, Watched, get, watched, write_services_state, write_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import Node

ROOT = Path(__file__).parents[2]
RULES = ROOT / "conf/monitoring/podwire-alerts.yaml"
DASHBOARD = json.loads((ROOT / "conf/monitoring/podwire-dashboard.json").read_text())
SERVER = "127.0.0.1:9090"
# What Grafana puts in for these.
VARIABLES = {"$instance": ".*", "$network": ".*", "$__rate_interval": "1m"}
PATIENCE = 20.0


def program(name: str) -> str:
    path = Path(os.environ.get("PODWIRE_CACHE", "/var/cache/podwire")) / "bin" / name
    assert path.exists(), (
        f"{path} is missing: run tests/monitoring/fetch-prometheus as root (scripts/test does)"
    )
    return str(path)


def promtool(*words: str) -> str:
    done = subprocess.run([program("promtool"), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_alert_rules_are_valid() -> None:
    assert "SUCCESS" in promtool("check", "rules", "--lint-fatal", str(RULES))


def test_the_scrape_configuration_is_valid(tmp_path: Path) -> None:
    """But for how targets are found: the distribution's Prometheus is built without Kubernetes."""
    text = (ROOT / "conf/monitoring/podwire-scrape.yaml").read_text()
    rest, found = re.subn(r"    kubernetes_sd_configs:\n(     .*\n)+", "    static_configs: []\n", text)
    assert found == 1
    (tmp_path / "scrape.yaml").write_text(rest)
    assert "SUCCESS" in promtool("check", "config", str(tmp_path / "scrape.yaml"))


def test_each_alert_fires_on_what_it_is_for_and_on_nothing_else() -> None:
    promtool("test", "rules", str(ROOT / "tests/monitoring/alerts.test.yaml"))


def test_what_the_agent_says_is_as_prometheus_wants_it(plain_node: Node) -> None:
    with watched(plain_node) as at:
        write_state(plain_node)
        write_services_state(plain_node)
        plain_node.add(dual_stack(plain_node), plain_node.pod())
        text = at.get("/metrics").text
    done = subprocess.run(
        [program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    # process_virtual_memory_max_bytes and its like are the library's.
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "podwire" in line]
    assert ours == []


def queries() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_a_server_that_scrapes_the_agent_has_data_for_every_query(plain_node: Node) -> None:
    with watched(plain_node) as at, prometheus(plain_node) as served:
        missing = {fill(query) for query in queries()}
        deadline = time.monotonic() + PATIENCE
        while missing:
            work(at)
            missing = {query for query in missing if not served.ask(query)}
            assert time.monotonic() < deadline, missing
        assert written_names() - served.names() == set()
        rules = served.api("rules")["groups"][0]["rules"]
        assert len(rules) == RULES.read_text().count("- alert:")
        assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []


def written_names() -> set[str]:
    """Return the metrics that rules and dashboard speak of."""
    return set(re.findall(r"podwire_[a-z_]+", RULES.read_text() + json.dumps(DASHBOARD)))


def test_the_panels_of_the_dashboard_lie_beside_each_other() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def fill(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    return query


class Served:
    """A Prometheus that scrapes the agent of a node."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def api(self, path: str, **asked: str) -> Any:
        page = get(self.node, f"http://{SERVER}/api/v1/{path}?{urllib.parse.urlencode(asked)}")
        answer = json.loads(page.text)
        assert answer["status"] == "success", answer
        return answer["data"]

    def ask(self, query: str) -> list[Any]:
        """Return the samples that are numbers."""
        found = self.api("query", query=query)["result"]
        return [row for row in found if row["value"][1] != "NaN"]

    def names(self) -> set[str]:
        return set(self.api("label/__name__/values"))


def work(at: Watched) -> None:
    """Let every series come into being, and grow."""
    node, config = at.node, dual_stack(at.node)
    write_conflist(node, config)
    refused = network(node, sysctl={"net.ipv4.conf.eth0.nonsense": "1"})
    write_state(node, syncs=int(time.monotonic()), updated=time.time())
    write_services_state(node)
    pod = node.pod()
    node.add(config, pod)
    node.delete(config, pod)
    node.call("ADD", refused, pod)


@contextmanager
def prometheus(node: Node) -> Iterator[Served]:
    """Run a server in the node's namespace; it is ended by its process id."""
    configuration = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "400ms", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "podwire", "static_configs": [{"targets": [PLACE]}]}],
    }
    (node.tmp / "prometheus.yml").write_text(json.dumps(configuration))
    command = [
        *("nsenter", f"--net={node.path}", program("prometheus"), f"--web.listen-address={SERVER}"),
        *(f"--config.file={node.tmp / 'prometheus.yml'}", f"--storage.tsdb.path={node.tmp / 'tsdb'}"),
    ]
    log = node.tmp / "prometheus.log"
    with log.open("w") as stderr, subprocess.Popen(command, stderr=stderr) as process:
        try:
            _wait_until_ready(process, log)
            yield Served(node)
        finally:
            process.terminate()
            process.wait(timeout=20)


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while "Server is ready to receive web requests" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
