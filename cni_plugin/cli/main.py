"""The command line: its parser, and the commands `status`, `sync` and `mtu`.

Human-readable by default, `--json` for scripts. Exit status 0 when all is well, 1 when
something is wrong, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from cni_plugin import __version__
from cni_plugin.cli import agent, cluster, doctor, gc, install
from cni_plugin.cli import ipam as cli_ipam
from cni_plugin.cli.console import add_directories, chosen, table, write
from cni_plugin.contract.errors import CNIError, combine
from cni_plugin.node import report
from cni_plugin.plugins import podwire
from ipam.errors import IPAMError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cni_plugin.contract.request import Request

_EPILOG = "Without arguments, and with CNI_COMMAND set, this is a CNI plugin: https://www.cni.dev/docs/spec/"


def main(argv: Sequence[str]) -> int:
    """Run one command and return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except (CNIError, IPAMError) as error:
        sys.stderr.write(f"podwire: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"podwire: {error.filename or 'wanted a file'}: {error.strerror}\n")
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="podwire", description="Pod networks of this node.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"podwire {__version__}")
    commands = parser.add_subparsers(title="commands", required=True)
    _add_status(commands)
    _add_networks(commands, "sync", _sync, "make devices, routes and neighbours equal to the configuration")
    _add_networks(commands, "mtu", _mtu, "explain the MTU of a network's pods")
    cli_ipam.add_to(commands)
    doctor.add_to(commands)
    gc.add_to(commands)
    install.add_to(commands)
    cluster.add_to(commands)
    agent.add_to(commands)
    return parser


def _add_status(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = commands.add_parser("status", help="networks, pools, attachments, and what is wrong")
    add_directories(status)
    status.add_argument("--json", action="store_true", help="for scripts")
    status.set_defaults(run=_status)


def _add_networks(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    purpose: str,
) -> None:
    parser = commands.add_parser(name, help=purpose)
    parser.add_argument("network", nargs="?", help="one network only")
    add_directories(parser)
    parser.set_defaults(run=run)


def _status(arguments: argparse.Namespace) -> int:
    seen = report.look(arguments.conf_dir, arguments.bin_dir)
    if arguments.json:
        write(json.dumps(asdict(seen), indent=4))
    else:
        write(*_render_status(seen, arguments.conf_dir))
    return 1 if seen.problems else 0


def _sync(arguments: argparse.Namespace) -> int:
    return _each(
        arguments, lambda request: [f"network {request.network}: {podwire.synchronize(request)} changes"]
    )


def _mtu(arguments: argparse.Namespace) -> int:
    return _each(
        arguments, lambda request: [f"network {request.network}:", *_indent(podwire.explain_mtu(request))]
    )


def _indent(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _each(arguments: argparse.Namespace, explain: Callable[[Request], Iterable[str]]) -> int:
    """Write what there is to say of each network, and raise what went wrong at the end as one error."""
    problems: list[CNIError] = []
    for request in chosen(arguments, problems):
        try:
            write(*explain(request))
        except CNIError as error:
            problems.append(CNIError(error.code, f"network {request.network}: {error.msg}", error.details))
    if problems:
        raise combine(problems)
    return 0


def _render_status(seen: report.NodeReport, conf_dir: str) -> Iterable[str]:
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
