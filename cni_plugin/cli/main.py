"""The command line: its parser, and how an error ends a command.

Human-readable by default, `--json` for scripts. Exit status 0 when all is well, 1 when
something is wrong, 2 for a wrong command line and for a user who may not look.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from cni_plugin import __version__
from cni_plugin.cli import agent, cluster, doctor, gc, install, networks, probe, services, status
from cni_plugin.cli import ipam as cli_ipam
from cni_plugin.contract.errors import CNIError
from ipam.errors import IPAMError

if TYPE_CHECKING:
    from collections.abc import Sequence


_EPILOG = "Without arguments, and with CNI_COMMAND set, this is a CNI plugin: https://www.cni.dev/docs/spec/"


def main(argv: Sequence[str]) -> int:
    """Run one command and return the exit status."""
    arguments = _parser().parse_args(argv)
    if getattr(arguments, "needs_root", False) and os.geteuid():
        sys.stderr.write(f"podwire: wanted root, found user id {os.geteuid()}: sudo podwire {argv[0]}\n")
        return 2
    try:
        exit_status: int = arguments.run(arguments)
    except (CNIError, IPAMError) as error:
        sys.stderr.write(f"podwire: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"podwire: {error.filename or 'wanted a file'}: {error.strerror}\n")
        return 1
    return exit_status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="podwire", description="Pod networks of this node.", epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"podwire {__version__}")
    commands = parser.add_subparsers(title="commands", required=True)
    status.add_to(commands)
    networks.add_to(commands)
    cli_ipam.add_to(commands)
    doctor.add_to(commands)
    gc.add_to(commands)
    install.add_to(commands)
    services.add_to(commands)
    cluster.add_to(commands)
    agent.add_to(commands)
    probe.add_to(commands)
    return parser
