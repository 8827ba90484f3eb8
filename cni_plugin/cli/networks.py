"""`podwire sync` and `podwire mtu`: one look at each of our networks, or at the one that is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.cli.console import add_directories, chosen, write
from cni_plugin.contract.errors import CNIError, combine
from cni_plugin.plugins import podwire

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

    from cni_plugin.contract.request import Request


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands to the parser."""
    _add(commands, "sync", _sync, "make devices, routes and neighbours equal to the configuration")
    _add(commands, "mtu", _mtu, "explain the MTU of a network's pods")


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    purpose: str,
) -> None:
    parser = commands.add_parser(name, help=purpose)
    parser.add_argument("network", nargs="?", help="one network only")
    add_directories(parser)
    parser.set_defaults(run=run)


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
