"""A client of the Container Runtime Interface: what a kubelet asks of containerd, as far as pods need it.

The messages are compiled from cri.proto when the module is first used. A call is made by its method's
name; a generated service class would add nothing, and neither is any generated file kept.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from grpc_tools import protoc

if TYPE_CHECKING:
    from types import ModuleType

_SECONDS = 60
_NEEDED = ("RuntimeReady", "NetworkReady")


class RuntimeServiceError(Exception):
    """The runtime's own words when it could not do what was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A running pod as the runtime reports it; `netns` is a path in the runtime's mount namespace."""

    sandbox_id: str
    addresses: tuple[str, ...]
    netns: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a command in a container wrote, and its exit status."""

    exit_code: int
    stdout: str
    stderr: str


class Runtime:
    """A connection to the socket of a container runtime."""

    def __init__(self, socket: Path, *, cgroup_parent: str) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._cgroup_parent = cgroup_parent

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def run_pod_sandbox(
        self, name: str, *port_mappings: dict[str, Any], annotations: dict[str, str] | None = None
    ) -> str:
        """Start the pod, network included, and return its id."""
        wishes = {"port_mappings": port_mappings, "annotations": annotations or {}}
        config = self._pod(name) | wishes
        answer = self._call("RuntimeService/RunPodSandbox", config=config)
        return str(answer.pod_sandbox_id)

    def pod_sandbox_status(self, sandbox_id: str) -> Sandbox:
        """Report the pod's addresses in the runtime's order, and its network namespace."""
        answer = self._call("RuntimeService/PodSandboxStatus", pod_sandbox_id=sandbox_id, verbose=True)
        network = answer.status.network
        namespaces = json.loads(answer.info["info"])["runtimeSpec"]["linux"]["namespaces"]
        return Sandbox(
            sandbox_id=sandbox_id,
            addresses=(network.ip, *(other.ip for other in network.additional_ips)),
            netns=next(namespace["path"] for namespace in namespaces if namespace["type"] == "network"),
        )

    def list_pod_sandbox(self) -> list[str]:
        """List the ids of all pods, stopped ones included."""
        return [pod.id for pod in self._call("RuntimeService/ListPodSandbox").items]

    def stop_pod_sandbox(self, sandbox_id: str) -> None:
        """Stop the pod and take its network away."""
        self._call("RuntimeService/StopPodSandbox", pod_sandbox_id=sandbox_id)

    def remove_pod_sandbox(self, sandbox_id: str) -> None:
        """Forget the pod."""
        self._call("RuntimeService/RemovePodSandbox", pod_sandbox_id=sandbox_id)

    def unready(self) -> list[str]:
        """List what the runtime still lacks before it can start pods; a word on what is old is no lack."""
        try:
            conditions = self._call("RuntimeService/Status").status.conditions
        except RuntimeServiceError as error:
            if "not initialized" not in str(error):
                raise
            return [str(error)]  # the socket is there before what answers on it
        lacking = [one for one in conditions if one.type in _NEEDED and not one.status]
        return [f"{one.type}: {one.reason} {one.message}" for one in lacking]

    def networks(self) -> list[str]:
        """List the names of the CNI networks in use, the loopback's included."""
        info = self._call("RuntimeService/Status", verbose=True).info
        networks = json.loads(info["cniconfig"])["Networks"] if "cniconfig" in info else []
        return [network["Config"]["Name"] for network in networks]

    def has_image(self, image: str) -> bool:
        """Tell whether the runtime has the image."""
        return bool(self._call("ImageService/ImageStatus", image={"image": image}).image.id)

    def start_container(self, name: str, *, sandbox_id: str, image: str) -> str:
        """Start a container in the pod and return its id."""
        config = {"metadata": {"name": name}, "image": {"image": image}}
        created = self._call(
            "RuntimeService/CreateContainer",
            pod_sandbox_id=sandbox_id,
            config=config,
            sandbox_config=self._pod(name),
        )
        self._call("RuntimeService/StartContainer", container_id=created.container_id)
        return str(created.container_id)

    def exec_sync(self, container_id: str, *argv: str) -> Output:
        """Run a command in a container and wait for its end."""
        answer = self._call("RuntimeService/ExecSync", container_id=container_id, cmd=argv, timeout=_SECONDS)
        return Output(
            exit_code=answer.exit_code, stdout=answer.stdout.decode(), stderr=answer.stderr.decode()
        )

    def _pod(self, name: str) -> dict[str, Any]:
        return {
            "metadata": {"name": name, "uid": name, "namespace": "default"},
            "hostname": name,
            # Without servers the runtime copies the machine's resolv.conf, which may be a link into /run.
            "dns_config": {"servers": ["192.0.2.53"]},
            "linux": {"cgroup_parent": self._cgroup_parent},
        }

    def _call(self, method: str, **fields: Any) -> Any:
        known = messages()
        name = method.partition("/")[2]
        call = self._channel.unary_unary(
            f"/runtime.v1.{method}",
            request_serializer=getattr(known, f"{name}Request").SerializeToString,
            response_deserializer=getattr(known, f"{name}Response").FromString,
        )
        try:
            return call(getattr(known, f"{name}Request")(**fields), timeout=_SECONDS)
        except grpc.RpcError as error:
            raise RuntimeServiceError(f"{name}: {error.details()}") from None


@functools.cache
def messages() -> ModuleType:
    """Compile cri.proto. Cached, because protobuf takes a file only once per process."""
    source = Path(__file__).with_name("cri.proto")
    with tempfile.TemporaryDirectory() as directory:
        status = protoc.main(["protoc", f"-I{source.parent}", f"--python_out={directory}", str(source)])
        assert status == 0, f"protoc refuses {source}"
        spec = importlib.util.spec_from_file_location("cri_pb2", Path(directory) / "cri_pb2.py")
        assert spec
        assert spec.loader
        module = sys.modules["cri_pb2"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module
