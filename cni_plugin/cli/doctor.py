"""`podwire doctor`: what is wrong, what it means, and what repairs it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from cni_plugin.cli.console import write
from cni_plugin.config.paths import BIN_DIR, CONF_DIR, CONTAINERD_CONFIG, RESULTS_DIR, STATE_FILE

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cni_plugin.doctor.finding import Finding
    from cni_plugin.doctor.site import Examined


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    doctor = commands.add_parser(
        "doctor",
        help="why is this node NotReady, why does that pod have no network",
        epilog="Exit status: 0 nothing found, 1 something, 2 a wrong command line.",
    )
    whom = doctor.add_mutually_exclusive_group()
    whom.add_argument("--pod", default="", metavar="NAMESPACE/NAME", help="look at this pod of the node, too")
    whom.add_argument("--container", default="", metavar="ID", help="or at this sandbox; the id may be cut")
    doctor.add_argument("--conf-dir", help=f"default what containerd says, else {CONF_DIR}")
    doctor.add_argument("--bin-dir", help=f"default what containerd says, else {BIN_DIR}")
    doctor.add_argument("--socket", default="", help="the agent's; default where the executables look for it")
    doctor.add_argument("--state-file", default=STATE_FILE, help=f"default {STATE_FILE}")
    doctor.add_argument("--containerd-config", help="default /etc/containerd/config.toml")
    doctor.add_argument(
        "--runtime-endpoint",
        default="",
        metavar="unix:///PATH",
        help="ask the runtime, too (podwire[runtime])",
    )
    doctor.add_argument("--cache-dir", help="where libcni keeps results; default /var/lib/cni/results")
    doctor.add_argument("--json", action="store_true", help="for scripts")
    doctor.set_defaults(needs_root=True, run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from cni_plugin.doctor.checks import examine  # most commands need none of it

    found = examine(_examined(arguments))
    wrong = [finding for finding in found if finding.severity != "note"]
    if arguments.json:
        write(json.dumps({"healthy": not wrong, "findings": [asdict(each) for each in found]}, indent=4))
    else:
        write(*_render(found))
    return 1 if wrong else 0


def _examined(arguments: argparse.Namespace) -> Examined:
    from cni_plugin.doctor.runtime import Directories, read_directories
    from cni_plugin.doctor.site import Examined

    config = arguments.containerd_config or CONTAINERD_CONFIG
    says = read_directories(config) or Directories()
    return Examined(
        conf_dir=arguments.conf_dir or says.conf_dir or CONF_DIR,
        bin_dir=arguments.bin_dir or next(iter(says.bin_dirs), "") or BIN_DIR,
        socket=arguments.socket,
        containerd_config=config,
        state_file=arguments.state_file,
        cache_dir=arguments.cache_dir or RESULTS_DIR,
        pod=arguments.pod,
        container=arguments.container,
        runtime_endpoint=arguments.runtime_endpoint,
    )


def _render(found: list[Finding]) -> Iterator[str]:
    for finding in found:
        yield f"{finding.severity}: {finding.object}: {finding.found}"
        yield f"  means: {finding.meaning}"
        yield f"  mend:  {finding.remedy}"
    if all(finding.severity == "note" for finding in found):
        yield "nothing is wrong"
