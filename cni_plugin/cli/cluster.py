"""`podwire cluster`, also run by `podwire agent --kubernetes` as a child process."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

from cni_plugin.agent.children import Child
from cni_plugin.agent.journal import Journal
from cni_plugin.agent.signals import termination
from cni_plugin.config.paths import CLUSTER_SETTINGS, CONF_DIR, RESULTS_DIR, SERVICE_ACCOUNT, STATE_FILE
from cni_plugin.config.state_file import ClusterState
from cni_plugin.contract.errors import CNIError, Code

if TYPE_CHECKING:
    import argparse

    from cni_plugin.cluster.objects import Node
    from cni_plugin.dataplane.follow import Order

_STDIN = 0
# Flag, default, help: the same for both commands.
_FLAGS = (
    (
        "--node-name",
        "",
        "this node's name in the cluster (default: NODE_NAME in the environment, else the hostname)",
    ),
    ("--kubeconfig", "", "how to reach the API (default: the pod's service account)"),
    ("--api-server", "", "the API's URL (default: the kubeconfig's, else KUBERNETES_SERVICE_HOST and _PORT)"),
    ("--service-account", SERVICE_ACCOUNT, "directory of token and ca.crt"),
    ("--settings", CLUSTER_SETTINGS, "the network's settings; may be missing"),
    ("--conf-dir", CONF_DIR, "where the runtime looks for configurations"),
    ("--conflist", "10-podwire.conflist", "the name of ours there"),
    ("--state-file", STATE_FILE, "where to say how it stands"),
    ("--cache-dir", RESULTS_DIR, "the runtime's records of its pods"),
    ("--resync", "60", "seconds after which everything is compared again"),
)


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser("cluster", help="follow the nodes of a Kubernetes cluster")
    add_flags(parser)
    parser.add_argument("--until-eof", action="store_true", help="end when stdin does")
    parser.set_defaults(run=_run)


def add_flags(parser: argparse._ActionsContainer) -> None:
    """Add what both commands understand."""
    for flag, default, purpose in _FLAGS:
        named = f" (default {default})" if default else ""
        parser.add_argument(flag, default=default, help=purpose + named)


def children_of(arguments: argparse.Namespace) -> tuple[Child, ...]:
    """Return the process that follows the cluster for the agent; none where it is not to."""
    if not arguments.kubernetes:
        return ()
    given = [(flag, getattr(arguments, flag[2:].replace("-", "_"))) for flag, _, _ in _FLAGS]
    words = [f"{flag}={value}" for flag, value in given if value]
    return (Child(words=("cluster", *words, "--until-eof")),)


def require_client() -> None:
    """Raise CNIError when the API's client is not installed; it is not imported, because it is large."""
    if importlib.util.find_spec("kubernetes") is None:
        raise CNIError(
            Code.NOT_AVAILABLE,
            "wanted the package kubernetes, found none; install it: scripts/install --with kubernetes",
        )


def require_settings(arguments: argparse.Namespace) -> None:
    """Raise CNIError unless the settings can be read and be."""
    from cni_plugin.cluster.settings import read_settings

    read_settings(arguments.settings)


def _run(arguments: argparse.Namespace) -> int:
    """Follow until SIGTERM, SIGINT, or the end of stdin."""
    require_client()
    from cni_plugin.cluster.api import API, Access
    from cni_plugin.cluster.resources import NODES
    from cni_plugin.cluster.snapshot import Snapshot
    from cni_plugin.cluster.watch import Watch
    from cni_plugin.dataplane.follow import Follower
    from cni_plugin.dataplane.policy.follow import PolicyFollower
    from cni_plugin.dataplane.services.follow import ServicesFollower
    from cni_plugin.kernel.monitor import Monitor
    from cni_plugin.node.loop import Loop

    Journal().install()
    order = _order(arguments)
    access = Access(
        kubeconfig=arguments.kubeconfig, server=arguments.api_server, account=arguments.service_account
    )
    with termination() as terminated:
        endings = (terminated, _STDIN) if arguments.until_eof else (terminated,)
        services = ServicesFollower(order, access)
        policies = PolicyFollower(order, access)
        loop = Loop(order.resync, Monitor(services.bereft | policies.bereft), endings)

        def wake() -> None:
            loop.wake()
            services.wake()

        nodes: Snapshot[Node] = Snapshot(wake)
        Watch(API(access), NODES, nodes).start()
        with services.following(nodes), policies.following():
            loop.run(Follower(order, nodes, API(access)))
    return 0


def _order(arguments: argparse.Namespace) -> Order:
    """Return what to follow; settings that cannot be are said in the state file, too."""
    from cni_plugin.cluster.settings import read_settings
    from cni_plugin.dataplane.follow import Order
    from cni_plugin.dataplane.nodes.published_files import replace_file

    name = find_name(arguments.node_name)
    try:
        settings = read_settings(arguments.settings)
    except CNIError as error:
        replace_file(arguments.state_file, ClusterState(node=name, reasons=(error.msg,)).render())
        raise
    return Order(
        node=name,
        settings=settings,
        conflist=os.path.join(arguments.conf_dir, arguments.conflist),
        state_file=arguments.state_file,
        resync=parse_resync(arguments.resync),
        results_dir=arguments.cache_dir,
    )


def find_name(given: str) -> str:
    """Return the name that the kubelet registers: in lower case, be it the hostname or an override of it."""
    return (given or os.environ.get("NODE_NAME") or os.uname().nodename).strip().lower()


def parse_resync(text: str) -> float:
    """Return seconds; CNIError 7 for what would be no pause, or none that ends."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86400:
        raise CNIError(Code.INVALID_CONFIG, f"--resync: wanted 1 to 86400 seconds, found {text!r}")
    return seconds
