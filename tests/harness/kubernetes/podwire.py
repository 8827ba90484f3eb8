"""podwire on the cluster: its manifests, its pods, and what it keeps on a node."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.harness.kubernetes.host import eventually
from tests.harness.kubernetes.pods import named_namespaces
from tests.harness.runtime import state, tools

if TYPE_CHECKING:
    from tests.harness.kubernetes.kubernetes import Kubernetes
    from tests.harness.kubernetes.worker import Worker

CONF = Path(__file__).parents[3] / "conf"
LABEL = "app.kubernetes.io/name=podwire"
IMAGE, NEXT_IMAGE = "localhost/podwire:0.1.0", "localhost/podwire:next"
_SHIM = "opt/cni/bin/podwire"
NAMESPACE = "--namespace=kube-system"


def apply(kubernetes: Kubernetes) -> None:
    """Apply the manifests as shipped; what is the cluster's own is where its API is, as conf/kind says it."""
    place = kubernetes.directory / "manifests"
    if not place.exists():
        shutil.copytree(CONF, place)
        patch = place / "kind/api.yaml"
        patch.write_text(patch.read_text().replace("kind-control-plane", kubernetes.control.address))
    words = ("-f", _render_old(place)) if kubernetes.age == "old" else ("-k", str(place / "kind"))
    kubernetes.kubectl("apply", *words)


def _render_old(place: Path) -> str:
    """Return the manifests for an older API as one file, since its kubectl has no `patches`."""
    kustomization = place / "kind/kustomization.yaml"
    kustomization.write_text(kustomization.read_text().replace("../kubernetes", "../overlays/before-1.22"))
    words = (tools.kubernetes("new") / "kubectl", "kustomize", kustomization.parent)
    rendered = place / "rendered.yaml"
    rendered.write_bytes(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
    return str(rendered)


def configure(kubernetes: Kubernetes, **settings: object) -> None:
    """Change the network's settings as a person does, and wait until every agent has taken them over."""
    path = kubernetes.directory / "manifests/kubernetes/cluster.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    apply(kubernetes)
    await_agents(kubernetes)


def agents(kubernetes: Kubernetes) -> list[dict[str, Any]]:
    """Return the agents' pods."""
    found: list[dict[str, Any]] = kubernetes.get("pods", NAMESPACE, "-l", LABEL)["items"]
    return found


def await_agents(kubernetes: Kubernetes) -> None:
    """Wait until every node has a ready agent of the manifest's newest version."""
    words = ("rollout", "status", NAMESPACE, "daemonset/podwire", "--timeout=20s")
    eventually(
        lambda: kubernetes.kubectl(*words, check=False).returncode == 0,
        lambda: explain(kubernetes),
        within=150,
    )
    # A DaemonSet is rolled out when the old pods are about to end.
    eventually(
        lambda: all(len(list_processes(worker)) == 2 for worker in kubernetes.workers.values()),
        lambda: explain(kubernetes),
    )


def explain(kubernetes: Kubernetes) -> str:
    """Return what podwire's pods and the nodes say."""
    look = [
        ("get", "pods", "-A", "-o", "wide"),
        ("describe", "nodes"),
        ("logs", NAMESPACE, "-l", LABEL, "--tail=40"),
    ]
    return "\n".join(kubernetes.kubectl(*words, check=False).stdout for words in look)


def processes(worker: Worker) -> dict[str, int]:
    """Return the pids of the agent and of its child, as their machine numbers them, by command."""
    found = list_processes(worker)
    assert len(found) == len(dict(found)), f"an agent that is about to end: {found}"
    return dict(found)


def list_processes(worker: Worker) -> list[tuple[str, int]]:
    """Return the command and the pid of each; in a rollout there are two agents for a moment."""
    found = []
    for command in (worker.host.machine.root / "proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().split(b"\0")
        except OSError:
            continue
        if (
            b"cni_plugin" in words[:4]
            or words[1:2] == [b"/usr/bin/podwire"]
            or b"/usr/bin/podwire" in words[:3]
        ):
            name = next((each for each in ("agent", "cluster") if each.encode() in words), "")
            found += [(name, int(command.parent.name))] if name else []
    return found


def used(worker: Worker) -> dict[str, tuple[float, float]]:
    """Return what the agent and its child have used: the most MiB resident, and seconds of processor time."""
    found = {}
    for name, pid in processes(worker).items():
        place = worker.host.machine.root / f"proc/{pid}"
        [peak] = [line for line in (place / "status").read_text().splitlines() if line.startswith("VmHWM")]
        user, system = (place / "stat").read_text().rpartition(")")[2].split()[11:13]
        found[name] = (int(peak.split()[1]) / 1024, (int(user) + int(system)) / os.sysconf("SC_CLK_TCK"))
    return found


def kill_agent(worker: Worker) -> None:
    """Kill the agent as the kernel does when memory is short."""
    pid = processes(worker)["agent"]
    worker.host.machine.run("kill", "-9", str(pid))
    eventually(lambda: not answers(worker), "an agent that was killed still answers")


def answers(worker: Worker) -> bool:
    """Tell whether the agent takes calls."""
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(worker.host.machine.root / "run/podwire/podwire.sock")) == 0


def left(worker: Worker) -> dict[str, Any]:
    """Return what pods leave on a node when they are not removed well."""
    ruleset = worker.space.run("nft", "list", "table", "inet", "podwire", check=False).stdout
    return {
        "veths": state.veths(worker.space),
        "addresses": state.reserved(worker.host.disk / "var/lib/cni/networks"),
        "namespaces": [path.name for path in named_namespaces(worker)],
        "elements": [line for line in ruleset.splitlines() if "eth0" in line],
    }


def assert_nothing_left(worker: Worker) -> None:
    """Assert that no pod has left anything; the runtime may take a moment."""
    nothing: dict[str, Any] = {"veths": [], "addresses": [], "namespaces": [], "elements": []}
    eventually(lambda: left(worker) == nothing, lambda: f"left behind: {left(worker)}", within=120)


def make_shim_old(worker: Worker) -> None:
    """Let the node have an executable of another version, which works as well."""
    path = worker.host.disk / _SHIM
    staged = path.with_name(".podwire.old")
    staged.write_bytes(path.read_bytes() + b"old")
    staged.chmod(0o755)
    staged.rename(path)


def has_old_shim(worker: Worker) -> bool:
    """Tell whether the executable is still that one."""
    return (worker.host.disk / _SHIM).read_bytes().endswith(b"old")


def restart(kubernetes: Kubernetes) -> None:
    """Have every agent replaced, as a person does who has no better idea."""
    kubernetes.kubectl("rollout", "restart", NAMESPACE, "daemonset/podwire")


def set_image(kubernetes: Kubernetes, image: str) -> None:
    """Upgrade, all nodes at once."""
    containers = {"containers": [{"name": "agent", "image": image}]}
    first = {"initContainers": [{"name": "install-shim", "image": image}]}
    spec = {
        "updateStrategy": {"rollingUpdate": {"maxSurge": "100%"}},
        "template": {"spec": {**containers, **first}},
    }
    kubernetes.kubectl("patch", NAMESPACE, "daemonset/podwire", "--patch", json.dumps({"spec": spec}))


def uninstall(kubernetes: Kubernetes) -> None:
    """Do what docs/kubernetes.md says, from the point where no pod is left."""
    place = kubernetes.directory / "manifests"
    kubernetes.kubectl("delete", "-k", str(place / "kind"), "--timeout=60s")
    agents = ("pod", "-l", "app.kubernetes.io/name=podwire", "--timeout=60s")
    kubernetes.kubectl("wait", NAMESPACE, "--for=delete", *agents)
    kubernetes.kubectl("apply", "-k", str(place / "kubernetes/uninstall"))
    words = ("rollout", "status", NAMESPACE, "daemonset/podwire-uninstall", "--timeout=55s")
    done = kubernetes.kubectl(*words, check=False)
    assert done.returncode == 0, explain(kubernetes)
    kubernetes.kubectl("delete", "-k", str(place / "kubernetes/uninstall"), "--timeout=55s")
