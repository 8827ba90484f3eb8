"""`podwire agent`: the options of the agent and of the child processes that it runs."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.agent import server
from cni_plugin.agent.upkeep import Keeper
from cni_plugin.cli import cluster, gc
from cni_plugin.cli.places import find_bin_dir
from cni_plugin.config.paths import SOCKET

if TYPE_CHECKING:
    import argparse


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    agent = commands.add_parser("agent", help="serve the executables' calls from one warm process")
    # A call waits for the kernel's lock on links most of the time, behind all the others.
    workers = 8 * (os.cpu_count() or 1)
    agent.add_argument("--socket", default=SOCKET, help=f"default {SOCKET}")
    agent.add_argument(
        "--workers", type=_count, default=workers, help=f"calls at once (default 8 a core: {workers})"
    )
    agent.add_argument(
        "--queue",
        type=_count,
        default=server.DEFAULT_QUEUE,
        help=f"calls that may wait; further ones are told to try again (default {server.DEFAULT_QUEUE})",
    )
    agent.add_argument(
        "--http",
        default="",
        metavar="ADDRESS:PORT",
        help="serve /metrics, /healthz and /readyz (default off)",
    )
    agent.add_argument(
        "--take-over",
        action="store_true",
        help="have the agent that runs at the socket hand it over (default: do not start beside it)",
    )
    agent.add_argument(
        "--kubernetes", action="store_true", help="keep `podwire cluster` running, with the options below"
    )
    gc.add_agent_options(agent.add_argument_group("garbage collection"))
    cluster.add_flags(agent.add_argument_group("the cluster, and the networks whose pools are shown"))
    agent.set_defaults(run=_run)


def _count(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _require_settings(arguments: argparse.Namespace) -> None:
    """Raise CNIError for settings that would make the node of an agent that works NotReady."""
    if arguments.kubernetes:
        cluster.require_settings(arguments)


def _keeper(arguments: argparse.Namespace) -> Keeper:
    """Return who mends what pods have lost; in a cluster the child process does."""
    return Keeper(conf_dir=arguments.conf_dir, bin_dir=find_bin_dir(), results_dir=arguments.cache_dir)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.kubernetes:
        # The child would end for this reason again and again.
        cluster.require_client()
    settings = server.AgentSettings(
        socket=os.path.abspath(arguments.socket),
        workers=arguments.workers,
        queue=arguments.queue,
        http=arguments.http,
        conf_dir=arguments.conf_dir,
        state_file=arguments.state_file,
        in_cluster=arguments.kubernetes,
        children=(*gc.children_of(arguments), *cluster.children_of(arguments)),
        keeper=None if arguments.kubernetes else _keeper(arguments),
        resync=cluster.parse_resync(arguments.resync),
        take_over=arguments.take_over,
        before_taking_over=partial(_require_settings, arguments),
    )
    return server.run(settings)
