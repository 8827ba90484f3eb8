"""A kind cluster made by the commands of a document, and what is asked of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.harness.kind.docker import ROOT
from tests.harness.kubernetes.host import eventually
from tests.harness.kubernetes.images import AGNHOST, write_agnhost

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.kind.docker import Docker

_PORT = 8080
_NAME = "web.default.svc.cluster.local"
_AGENTS = "-n kube-system -l app.kubernetes.io/name=podwire"


@dataclass
class Cluster:
    """One kind cluster on a Docker; `seconds` is what each typed command took, and until all were Ready."""

    docker: Docker
    name: str = "kind"
    seconds: dict[str, float] = field(default_factory=dict)

    def prepare(self, config: str | None = None) -> None:
        """Put what the commands name where they are typed; `config` in place of conf/kind/cluster.yaml."""
        place = self.docker.place
        shutil.copytree(ROOT / "conf", place / "conf")
        (place / "scripts").symlink_to(ROOT / "scripts")
        if config:
            (place / "conf/kind/cluster.yaml").write_text(config)

    def install(self, commands: list[str], config: str | None = None) -> None:
        """Type what a page says, and see what it promises: all nodes are Ready in the end."""
        self.prepare(config)
        for command in commands:
            self.type(command)
        self.await_ready()

    def recover(self) -> None:
        """Wait until all nodes and pods are as they were, after a restart."""
        self.await_ready()
        self.kubectl("rollout status daemonset/web --timeout=180s")
        self.reach_all()

    def figures(self) -> str:
        """Return the seconds of each step as text."""
        return ", ".join(f"{what} {took:.1f} s" for what, took in self.seconds.items())

    def type(self, command: str) -> None:
        """Type one command: what is not asked of the cluster wants no network of the machine's."""
        started = time.monotonic()
        if command.startswith("scripts/"):
            subprocess.run(command.split(), cwd=self.docker.place, check=True, capture_output=True)
        else:
            self.docker.run(command)
        self.seconds[command] = time.monotonic() - started

    def await_ready(self) -> None:
        """Wait until all nodes are Ready, and each has an agent that is."""
        started = time.monotonic()
        eventually(lambda: set(self.ready().values()) == {True}, self.explain, within=180)
        self.seconds["until all nodes are Ready"] = time.monotonic() - started
        self.kubectl("-n kube-system rollout status daemonset/podwire --timeout=120s")

    def kubectl(self, words: str, *, check: bool = True) -> str:
        """Return what kubectl says."""
        return self.docker.run(f"kubectl {words}", check=check).stdout

    def get(self, words: str) -> Any:
        """Return objects."""
        return json.loads(self.kubectl(f"get {words} -o json"))

    def ready(self) -> dict[str, bool]:
        """Tell of each node whether it is Ready; of none while the API does not answer."""
        text = self.kubectl("get nodes -o json", check=False)
        nodes = json.loads(text)["items"] if text else []
        return {node["metadata"]["name"]: _is_ready(node) for node in nodes}

    def address_of(self, node: str) -> str:
        """Return the address that Docker has given to a node."""
        form = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}"
        return self.docker.run(f"docker inspect --format '{form}' {node}").stdout.split()[0]

    def explain(self) -> str:
        """Return what the cluster says of itself."""
        looks = (
            "get nodes,pods -A -o wide",
            "describe nodes",
            f"logs {_AGENTS} --all-containers --tail=40",
            "get events -A",
        )
        return "\n".join(self.kubectl(words, check=False) for words in looks)

    def start_pods(self) -> None:
        """Run a pod on every node, and a Service that stands for them; kind loads their image."""
        archive = write_agnhost(self.docker.place / "agnhost.tar")
        self.docker.run(f"kind load image-archive {archive} --name {self.name}")
        path = self.docker.place / "pods.json"
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(_objects())}))
        self.kubectl(f"apply -f {path}")
        self.kubectl("rollout status daemonset/web --timeout=180s")

    def pods(self) -> dict[str, dict[str, Any]]:
        """Return the pods of start_pods by their nodes."""
        return {pod["spec"]["nodeName"]: pod for pod in self.get("pods -l app=web")["items"]}

    def reach_all(self, *, service: bool = True) -> None:
        """Have every pod ask each, over each family, as whom it is seen, and the Service by its name."""
        wrong: dict[tuple[str, str], object] = {}

        def reached() -> bool:
            wrong.clear()
            wrong.update(self._list_wrong(service=service))
            return not wrong

        eventually(reached, lambda: f"{wrong}\n{self.explain()}", within=120)

    def _list_wrong(self, *, service: bool) -> Iterator[tuple[tuple[str, str], object]]:
        """Yield what was not answered as it should be, by the asking pod's node and whom it asked."""
        pods = list(self.pods().values())
        for source in pods:
            node, own = source["spec"]["nodeName"], source["status"]["podIPs"]
            for target in pods:
                for i, each in enumerate(target["status"]["podIPs"]):
                    if (seen := self._dial(source, each["ip"])) != [own[i]["ip"]]:
                        yield (node, each["ip"]), seen
            if service and len(self._dial(source, _NAME)) != 1:
                yield (node, _NAME), "no answer"

    def _dial(self, source: dict[str, Any], host: str) -> list[str]:
        """Return the addresses that a pod was seen with."""
        name = source["metadata"]["name"]
        way = f"dial?request=clientip&protocol=http&host={host}&port={_PORT}&tries=1"
        said = self.kubectl(
            f"get --raw '/api/v1/namespaces/default/pods/{name}:{_PORT}/proxy/{way}'", check=False
        )
        answers = json.loads(said).get("responses", []) if said else []
        return [answer.rpartition(":")[0].strip("[]") for answer in answers]

    def diagnose(self) -> None:
        """Assert that the doctor finds nothing on any node."""
        for pod in self.get(f"pods {_AGENTS}")["items"]:
            words = f"-n kube-system exec {pod['metadata']['name']} -c agent -- podwire doctor"
            done = self.docker.run(f"kubectl {words}", check=False)
            assert done.returncode == 0, done.stdout + done.stderr


def _is_ready(node: dict[str, Any]) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"]["conditions"])


def _objects() -> list[dict[str, Any]]:
    labels = {"app": "web"}
    container = {
        "name": "web",
        "image": AGNHOST,
        "imagePullPolicy": "Never",
        "args": ["netexec", f"--http-port={_PORT}"],
        "readinessProbe": {"httpGet": {"path": "/", "port": _PORT}, "periodSeconds": 1},
    }
    template = {
        "metadata": {"labels": labels},
        "spec": {
            "containers": [container],
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"operator": "Exists"}],
        },
    }
    pods = {"selector": {"matchLabels": labels}, "template": template}
    service = {
        "selector": labels,
        "ipFamilyPolicy": "PreferDualStack",
        "ports": [{"port": _PORT}],
    }
    meta = {"name": "web", "labels": labels}
    return [
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": meta, "spec": pods},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service},
    ]
