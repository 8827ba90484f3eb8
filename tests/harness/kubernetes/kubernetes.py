"""A Kubernetes: a control plane, nodes that join and leave, and kubectl."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from tests.harness.cluster import make_cluster
from tests.harness.kubernetes import images
from tests.harness.kubernetes.control import ControlPlane
from tests.harness.kubernetes.host import eventually
from tests.harness.kubernetes.pods import RunningPod, parse_pods, spaces_of
from tests.harness.kubernetes.worker import Worker
from tests.harness.node import make_node

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.harness.runtime import tools
    from tests.harness.runtime.drop_in import PathSpace

# The control plane, and somebody outside: behind the underlay's router.
CONTROL, WORLD = 10, 20
FAMILIES = (4, 6)


class Kubernetes:
    """A cluster on an underlay of its own; node i is `node-i` and has 192.0.2.i and 2001:db8::i.

    Of one family, its machines have no address of the other.
    """

    def __init__(self, directory: Path, families: tuple[int, ...] = FAMILIES, age: tools.Age = "new") -> None:
        self.directory, self.families, self.age = directory, families, age
        self.workers: dict[int, Worker] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.underlay = make_cluster(self.directory, self.directory, 0, behind_router=(WORLD,))
            stack.callback(self.underlay.remove)
            for i in (CONTROL, WORLD):
                self._plug(i)
            address = self.underlay.address(CONTROL, self.families[0])
            self.control = ControlPlane(
                self.underlay.nodes[CONTROL], address, self.directory / "control", self.families, self.age
            )
            stack.callback(self._halt)
            self.control.start()
            self._sandbox = images.write_sandbox(self.directory / "sandbox.tar")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _halt(self) -> None:
        for worker in self.workers.values():
            if worker.host.runs:
                worker.halt()
        if self.control.host.runs:
            self.control.host.halt()

    def _plug(self, i: int) -> None:
        place = self.directory / f"n{i}"
        place.mkdir(exist_ok=True)
        self.underlay.nodes[i] = make_node(place, self.directory)
        self.underlay.plug(i, 1500)
        for version in set(FAMILIES) - set(self.families):
            self.underlay.nodes[i].run("ip", f"-{version}", "address", "flush", "dev", "u0")

    def join(self, i: int, *archives: Path) -> Worker:
        """Start a node and let it register itself."""
        name = f"node-{i}"
        worker = Worker(name, self.control, self.directory / name)
        self.workers[i] = worker
        self.power_on(i)
        for archive in (self._sandbox, *archives):
            worker.import_image(archive)
        eventually(lambda: name in self.nodes(), worker.host.daemons["kubelet"].tail)
        return worker

    def power_on(self, i: int) -> None:
        """Boot a node from the disk that it has."""
        self._plug(i)
        addresses = tuple(self.underlay.address(i, version) for version in self.families)
        self.workers[i].boot(self.underlay.nodes[i], addresses)

    def power_off(self, i: int) -> None:
        """End a node's processes and its network namespace; the disk stays."""
        self.workers[i].halt()
        self.underlay.nodes.pop(i).remove()
        # The kernel empties a namespace in its own time.
        self.underlay.underlay.run("ip", "link", "delete", f"p{i}", check=False)

    def kubectl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.control.kubectl(*words, check=check)

    def get(self, *words: str) -> Any:
        """Return what `kubectl get -o json` prints."""
        return json.loads(self.kubectl("get", *words, "-o", "json").stdout)

    def apply(self, *objects: dict[str, Any]) -> None:
        """Create or change objects."""
        path = self.directory / "objects.json"
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
        self.kubectl("apply", "-f", str(path))

    def delete(self, *words: str) -> None:
        """Ask for objects to be deleted."""
        self.kubectl("delete", *words, "--ignore-not-found", "--wait=false")

    def pods(self, app: str) -> list[RunningPod]:
        """List the running pods of an app."""
        return parse_pods(self.get("pods", "-l", f"app={app}")["items"])

    def await_pods(self, app: str, count: int, *, within: float = 120) -> list[RunningPod]:
        """Wait until an app has just as many pods, all of them running; return them."""
        found: list[dict[str, Any]] = []

        def settled() -> bool:
            found[:] = self.get("pods", "-l", f"app={app}")["items"]
            return len(found) == len(parse_pods(found)) == count

        eventually(
            settled, lambda: self.kubectl("describe", "pods", "-l", f"app={app}").stdout, within=within
        )
        return parse_pods(found)

    def space_of(self, pod: RunningPod) -> PathSpace:
        """Return the network namespace of a pod."""
        return spaces_of(self.worker(pod.node))[pod.addresses[0]]

    def worker(self, name: str) -> Worker:
        """Return a node by its name."""
        return next(worker for worker in self.workers.values() if worker.name == name)

    def nodes(self) -> dict[str, Any]:
        """Return the Node objects by name."""
        return {node["metadata"]["name"]: node for node in self.get("nodes")["items"]}

    def ready_nodes(self) -> set[str]:
        """Return the names of the nodes that are Ready."""
        return {name for name, node in self.nodes().items() if _condition(node, "Ready")}


def _condition(thing: dict[str, Any], kind: str) -> bool:
    conditions = thing.get("status", {}).get("conditions", ())
    return any(one["type"] == kind and one["status"] == "True" for one in conditions)
