"""`podwire gc` as tests run it, and a runtime of which they say what it lists.

The runtime speaks the real protocol over a real socket, and two methods of it.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from tests.harness.networks import eventually
from tests.harness.runtime.cri import messages

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node, Pod

# The C shim is no command line.
GC = (sys.executable, "-Im", "cni_plugin", "gc")


def configure(node: Node, *plugins: dict[str, Any], name: str = "test") -> None:
    """Write a network's file where a runtime would read it."""
    directory = node.tmp / "net.d"
    directory.mkdir(exist_ok=True)
    members = [{k: v for k, v in each.items() if k not in {"name", "cniVersion"}} for each in plugins]
    document = {"cniVersion": "1.0.0", "name": name, "plugins": members}
    (directory / f"10-{name}.conflist").write_text(json.dumps(document))


def run_gc(node: Node, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `podwire gc` without a grace period, unless the words say otherwise."""
    grace = () if "--grace" in words else ("--grace", "0")
    return node.run(*GC, "--conf-dir", str(node.tmp / "net.d"), *grace, *words, check=False, **options)


def gc(node: Node, *words: str) -> dict[str, Any]:
    """Return what it reports; the exit status must agree."""
    done = run_gc(node, "--json", *words)
    report: dict[str, Any] = json.loads(done.stdout or "null") or {}
    assert report, done.stderr
    assert (done.returncode, done.stderr) == (int(report["found"] > report["reclaimed"]), "")
    return report


def counts(report: dict[str, Any]) -> tuple[int, int, int]:
    """Return how many were found dead, reclaimed, and kept without proof."""
    return report["found"], report["reclaimed"], report["kept"]


def kill(node: Node, *pods: Pod) -> None:
    """Let the pods' namespaces vanish, and wait until the kernel has let go of their veths."""
    inside = [link for pod in pods for link in pod.links().values()]
    peers = {link["link_index"] for link in inside if link.get("linkinfo", {}).get("info_kind") == "veth"}
    ends = {name for name, link in node.links().items() if link["ifindex"] in peers}
    for pod in pods:
        pod.remove()
    assert eventually(lambda: ends & set(node.links()), set()) == set()


class Listing:
    """A runtime that uses some networks and lists some sandboxes."""

    def __init__(self, socket: Path, *networks: str) -> None:
        self.endpoint = f"unix://{socket}"
        self.sandboxes: set[str] = set()
        self._networks = networks

    def list_pod_sandbox(self, _: Any, __: Any) -> Any:
        return messages().ListPodSandboxResponse(items=[{"id": each} for each in sorted(self.sandboxes)])

    def status(self, request: Any, _: Any) -> Any:
        assert request.verbose
        networks = [
            {"Config": {"Name": each}, "IFName": "eth0"} for each in ("cni-loopback", *self._networks)
        ]
        return messages().StatusResponse(info={"cniconfig": json.dumps({"Networks": networks}), "other": "x"})


@contextmanager
def listing(socket: Path, *networks: str) -> Iterator[Listing]:
    """Run a block with a runtime that uses these networks."""
    made = Listing(socket, *networks)
    server = grpc.server(ThreadPoolExecutor(2))
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=getattr(messages(), f"{name}Request").FromString,
            response_serializer=getattr(messages(), f"{name}Response").SerializeToString,
        )
        for name, answer in (("ListPodSandbox", made.list_pod_sandbox), ("Status", made.status))
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("runtime.v1.RuntimeService", handlers),)
    )
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield made
    finally:
        server.stop(None).wait()
