"""`podwire probe`: tells whether the agent of this container takes the calls.

A kubelet executes it every two seconds until it succeeds, so it imports little: `__main__` comes here without
the other commands.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from cni_plugin.agent.readiness import find_reasons_here
from cni_plugin.config.paths import SOCKET

if TYPE_CHECKING:
    from collections.abc import Sequence


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    probe = commands.add_parser("probe", help="tell whether the agent of this container takes the calls")
    _add_options(probe)
    probe.set_defaults(run=run)


def main(argv: Sequence[str]) -> int:
    """Run the command with its own words alone and return the exit status."""
    parser = argparse.ArgumentParser(prog="podwire probe")
    _add_options(parser)
    return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
    """Write why not, and return 1 then."""
    reasons = find_reasons_here(arguments.socket)
    sys.stdout.writelines(f"{reason}\n" for reason in reasons)
    return 1 if reasons else 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--socket", default=SOCKET, help=f"default {SOCKET}")
