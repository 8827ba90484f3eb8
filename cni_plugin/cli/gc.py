"""`podwire gc`: removes what dead containers have left, and says what and why.

Exit status for scripts: 0 when nothing is left, 1 when something is (a dry run found it, or it could
not be removed), 2 when it could not look.
"""

from __future__ import annotations

import argparse
import json
import select
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cni_plugin.agent.garbage import collector
from cni_plugin.cli.console import add_conf_dir, write
from cni_plugin.contract.errors import CNIError, invalid_config
from cni_plugin.node.configured import read_configured
from cni_plugin.node.gc import GCOptions, reclaim
from ipam.errors import IPAMError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_plugin.agent.children import Child
    from cni_plugin.node.configured import ConfiguredNetwork
    from cni_plugin.node.gc import Item

_GRACE: Final = 60.0  # seconds


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "gc",
        help="reclaim what containers that are no more have left",
        epilog="Exit status: 0 nothing is left, 1 something is, 2 it could not look.",
    )
    parser.add_argument("network", nargs="?", help="one network only, which the runtime uses if it is asked")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be reclaimed, and why")
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument(
        "--grace",
        type=parse_seconds,
        default=_GRACE,
        metavar="SECONDS",
        help=f"between the two looks that must agree (default {_GRACE:.0f})",
    )
    add_endpoint(parser)
    add_conf_dir(parser)
    # The agent holds the other end: nobody reclaims anything for an agent that has ended.
    parser.add_argument("--until-eof", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(run=_run)


def add_agent_options(agent: argparse._ArgumentGroup) -> None:
    """Let the agent be told how to collect."""
    agent.add_argument(
        "--gc-interval",
        type=parse_seconds,
        default=0,
        metavar="SECONDS",
        help="run `podwire gc` so often (default: never)",
    )
    agent.add_argument(
        "--gc-grace",
        type=parse_seconds,
        default=_GRACE,
        metavar="SECONDS",
        help=f"its --grace (default {_GRACE:.0f})",
    )
    add_endpoint(agent)


def children_of(arguments: argparse.Namespace) -> tuple[Child, ...]:
    """Return the process that collects for the agent; none where it is not to."""
    if not arguments.gc_interval:
        return ()
    words = ["--grace", str(arguments.gc_grace), "--conf-dir", arguments.conf_dir]
    if arguments.runtime_endpoint:
        words += ["--runtime-endpoint", arguments.runtime_endpoint]
    return (collector(arguments.gc_interval, tuple(words)),)


def add_endpoint(parser: argparse._ActionsContainer) -> None:
    """Let a command be told of the runtime."""
    parser.add_argument(
        "--runtime-endpoint",
        default="",
        metavar="unix:///PATH",
        help="the CRI socket of the runtime, such as unix:///run/containerd/containerd.sock",
    )


def parse_seconds(text: str) -> float:
    """Return a time that can be waited; ValueError for none."""
    seconds = float(text)
    if not 0 <= seconds <= 86400:
        raise ValueError
    return seconds


def _run(arguments: argparse.Namespace) -> int:
    problems: list[CNIError] = []
    try:
        items = reclaim(_options(arguments, problems), problems)
    except (CNIError, IPAMError) as error:
        sys.stderr.write(f"podwire: {error}\n")
        return 2
    report = Report.of(items)
    if arguments.json:
        write(json.dumps(report.render(dry_run=arguments.dry_run), indent=4))
    else:
        write(*map(_say, items), report.say())
    for problem in problems:
        sys.stderr.write(f"podwire: {problem}\n")
    return 2 if problems else 1 if report.found > report.reclaimed else 0


def _options(arguments: argparse.Namespace, problems: list[CNIError]) -> GCOptions:
    return GCOptions(
        networks=_choose(arguments, problems),
        endpoint=arguments.runtime_endpoint,
        named=[arguments.network] if arguments.network else [],
        pause=lambda: _pause(arguments.grace, until_eof=arguments.until_eof),
        dry_run=arguments.dry_run,
    )


def _choose(arguments: argparse.Namespace, problems: list[CNIError]) -> list[ConfiguredNetwork]:
    configured = read_configured(arguments.conf_dir)
    problems += configured.problems
    found = [each for each in configured.list_networks(problems) if arguments.network in (None, each.name)]
    if not found and arguments.network and not problems:
        raise invalid_config(f"{arguments.conf_dir}: wanted network {arguments.network}, found none")
    return found


def _pause(seconds: float, *, until_eof: bool) -> bool:
    """Wait; False when whoever holds the other end of our stdin is gone."""
    if not until_eof:
        time.sleep(seconds)
        return True
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return not readable


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found dead, what of it was reclaimed, and what is kept without a sign of life."""

    items: Sequence[Item]
    found: int
    reclaimed: int
    kept: int

    @classmethod
    def of(cls, items: Sequence[Item]) -> Report:
        """Count."""
        actions = [each.action for each in items]
        kept = actions.count("kept")
        return cls(items=items, found=len(items) - kept, reclaimed=actions.count("reclaimed"), kept=kept)

    def say(self) -> str:
        """Return one line for a person."""
        return f"{self.found} left by the dead, {self.reclaimed} reclaimed, {self.kept} kept unproven"

    def render(self, *, dry_run: bool) -> dict[str, object]:
        """Return the report for scripts."""
        counts = {"found": self.found, "reclaimed": self.reclaimed, "kept": self.kept}
        return {"dryRun": dry_run, **counts, "items": [_render(each) for each in self.items]}


def _render(item: Item) -> dict[str, object]:
    return {
        "network": item.evidence.network,
        "container_id": item.evidence.container_id,
        "ifname": item.evidence.ifname,
        "kind": item.liveness.proof.value,
        "what": list(item.evidence.what),
        "reason": item.liveness.reason + (f"; {item.refusal}" if item.refusal else ""),
        "action": item.action,
    }


def _say(item: Item) -> str:
    evidence, whose = (
        item.evidence,
        f"{item.evidence.container_id or 'nobody'} {item.evidence.ifname}".rstrip(),
    )
    refusal = f": {item.refusal}" if item.refusal else ""
    return (
        f"network {evidence.network}: {whose}: {item.action}{refusal}: {item.liveness.reason}; "
        f"{', '.join(evidence.what)}"
    )
