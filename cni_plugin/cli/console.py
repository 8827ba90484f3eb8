"""Shared by the commands: options for directories, and how lines and tables are written."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cni_plugin.cli.places import find_bin_dir
from cni_plugin.config.paths import CONF_DIR, RESULTS_DIR
from cni_plugin.contract.errors import CNIError, invalid_config
from cni_plugin.node.configured import read_configured

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from cni_plugin.contract.request import Request


def add_directories(parser: argparse.ArgumentParser) -> None:
    """Let a command be told where the runtime's files are."""
    add_conf_dir(parser)
    parser.add_argument(
        "--bin-dir", default=find_bin_dir(), help="the runtime's plugins (default here: %(default)s)"
    )
    parser.add_argument("--cache-dir", default=RESULTS_DIR, help="the runtime's records of its pods")


def add_conf_dir(parser: argparse.ArgumentParser) -> None:
    """Let a command be told where the runtime's network configurations are; it looks at the node as root."""
    parser.set_defaults(needs_root=True)
    parser.add_argument("--conf-dir", default=CONF_DIR, help="the runtime's network configurations")


def chosen(arguments: argparse.Namespace, problems: list[CNIError]) -> list[Request]:
    """Return the networks that a command is about; CNIError when there is none."""
    configured = read_configured(arguments.conf_dir, arguments.bin_dir)
    problems += configured.problems
    found = [r for r in configured.ours if arguments.network in (None, r.network)]
    if not found and not problems:
        named = arguments.network or "a network"
        raise invalid_config(f"{arguments.conf_dir}: wanted {named} of podwire's, found none")
    return found


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    """Return the rows under their heads, in columns; nothing when there is no row."""
    if not rows:
        return
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def write(*lines: str) -> None:
    """Write lines to stdout."""
    for line in lines:
        sys.stdout.write(f"{line}\n")
