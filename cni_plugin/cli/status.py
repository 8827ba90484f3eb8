"""`podwire status`: networks, pools, attachments, and what is wrong on this node."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from cni_plugin.cli.console import add_directories, table, write
from cni_plugin.node import report

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("status", help="networks, pools, attachments, and what is wrong")
    add_directories(parser)
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.set_defaults(run=_status)


def _status(arguments: argparse.Namespace) -> int:
    seen = report.look(arguments.conf_dir, arguments.bin_dir, arguments.cache_dir)
    if arguments.json:
        write(json.dumps(asdict(seen), indent=4))
    else:
        write(*_render(seen, arguments.conf_dir))
    return 1 if seen.problems else 0


def _render(seen: report.NodeReport, conf_dir: str) -> Iterable[str]:
    if not seen.networks:
        yield f"no podwire network in {conf_dir}"
    for network in seen.networks:
        yield f"network {network.name}: {network.mode}, addresses from {network.ipam} ({network.file})"
        for pool in network.pools:
            yield f"  pool {pool.ranges}: {pool.used} used, {pool.free} free"
        pods = [a for a in seen.attachments if a.network == network.name]
        rows = [
            (a.pod or a.container_id, a.ifname, a.host_ifname or "-", " ".join(a.addresses)) for a in pods
        ]
        yield from table(("POD", "INTERFACE", "HOST END", "ADDRESSES"), rows)
    yield from (f"wrong: {problem}" for problem in seen.problems)
    if seen.networks and not seen.problems:
        yield "nothing is wrong"
