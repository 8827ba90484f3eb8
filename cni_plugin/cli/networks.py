"""`podwire sync` and `podwire mtu`: one look at each of our networks, or at the one that is named."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.cli.console import add_directories, chosen, write
from cni_plugin.contract.errors import CNIError, combine
from cni_plugin.kernel.netns import open_host
from cni_plugin.node import repair
from cni_plugin.node.configured import read_configured
from cni_plugin.plugins import podwire

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

    from cni_plugin.contract.request import Request


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands to the parser."""
    _add(commands, "sync", _sync, "mend what networks and pods lack, and say what that was")
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
    return _each(arguments, partial(_sync_one, arguments))


def _sync_one(arguments: argparse.Namespace, request: Request) -> Iterator[str]:
    """Mend what one network and its pods lack, and yield what that was."""
    configured = read_configured(arguments.conf_dir, arguments.bin_dir)
    with open_host() as host:
        done = repair.mend(configured, arguments.cache_dir, host, request.network)
    changes = len(done.mended) + podwire.synchronize(request)
    yield f"network {request.network}: {changes} changes"
    yield from (f"  mended: {each}" for each in done.mended)
    if done.problems:
        raise combine(done.problems)


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
            for line in explain(request):
                write(line)
        except CNIError as error:
            problems.append(CNIError(error.code, f"network {request.network}: {error.msg}", error.details))
    if problems:
        raise combine(problems)
    return 0
