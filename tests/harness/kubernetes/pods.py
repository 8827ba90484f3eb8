"""Pods as the tests ask for them, and the network namespaces that these have on their nodes."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.harness.kubernetes import images
from tests.harness.runtime.drop_in import PathSpace
from tests.harness.services import offering

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.harness.kubernetes.worker import Worker

PORT = 80


@dataclass(frozen=True)
class RunningPod:
    """A pod as the API shows it."""

    name: str
    node: str
    addresses: tuple[str, ...]


def container(**fields: Any) -> dict[str, Any]:
    """Return a container that does nothing."""
    return {"name": "nothing", "image": images.SANDBOX, "imagePullPolicy": "Never", **fields}


def meta(name: str) -> dict[str, Any]:
    """Return the metadata of an object: everything of an app carries its name."""
    return {"name": name, "labels": {"app": name}}


def template(name: str, *, node: str = "", **fields: Any) -> dict[str, Any]:
    """Return the metadata and the spec of a pod, anywhere or on one node."""
    where = {"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}
    spec = {
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "containers": [container(**fields)],
    }
    return {"metadata": meta(name), "spec": {**spec, **where}}


def pod(name: str, node: str, **fields: Any) -> dict[str, Any]:
    """Return a pod."""
    return {"apiVersion": "v1", "kind": "Pod", **template(name, node=node, **fields)}


def deployment(name: str, replicas: int, *, node: str = "") -> dict[str, Any]:
    """Return a Deployment whose pods are spread over the nodes, or are all on one."""
    inner = template(name, node=node)
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": name}},
    }
    inner["spec"]["topologySpreadConstraints"] = [spread]
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": inner}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta(name), "spec": spec}


def daemon_set(name: str) -> dict[str, Any]:
    """Return a DaemonSet."""
    spec = {"selector": {"matchLabels": {"app": name}}, "template": template(name)}
    return {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": meta(name), "spec": spec}


def service(name: str, families: str = "RequireDualStack") -> dict[str, Any]:
    """Return a Service for the pods of an app, dual-stack unless its policy of families is another."""
    spec = {
        "selector": {"app": name},
        "ipFamilyPolicy": families,
        "ports": [
            {"name": protocol.lower(), "protocol": protocol, "port": PORT} for protocol in ("TCP", "UDP")
        ],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta(name), "spec": spec}


def parse_pods(items: Iterable[dict[str, Any]]) -> list[RunningPod]:
    """Return the pods that run, which is: with addresses, and not about to end."""
    return [
        RunningPod(
            name=item["metadata"]["name"],
            node=item["spec"]["nodeName"],
            addresses=tuple(each["ip"] for each in item["status"]["podIPs"]),
        )
        for item in items
        if item["status"]["phase"] == "Running"
        and item["status"].get("podIPs")
        and "deletionTimestamp" not in item["metadata"]
    ]


def spaces_of(worker: Worker) -> dict[str, PathSpace]:
    """Return the pods' network namespaces on a node, by each address in them."""
    found = {}
    for path in named_namespaces(worker):
        space = PathSpace(name=str(path))
        shown = space.run("ip", "-json", "addr", "show", "scope", "global", check=False).stdout
        links = [link for link in json.loads(shown or "[]") if link]
        found |= {info["local"]: space for link in links for info in link["addr_info"] if info}
    return found


def named_namespaces(worker: Worker) -> list[Path]:
    """List the network namespaces that the runtime keeps for pods."""
    return sorted((worker.host.machine.root / "run/netns").glob("*"))


@contextmanager
def all_offering(spaces: dict[str, PathSpace]) -> Iterator[None]:
    """Answer in every pod, by name, over both families and both protocols."""
    with ExitStack() as stack:
        for name, space in spaces.items():
            stack.enter_context(offering(space, PORT, name=f"{name} "))
        yield
