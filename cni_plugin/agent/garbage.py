"""Periodic garbage collection of the agent: `podwire gc` as a child process.

It reclaims nothing once its stdin is closed, which the end of the agent does, however that comes.
"""

from __future__ import annotations

import json

from cni_plugin.agent import metrics
from cni_plugin.agent.children import Child
from cni_plugin.agent.journal import own, render_pairs


def collector(interval: float, words: tuple[str, ...]) -> Child:
    """Return the child that collects: how often, in seconds, and the words behind `podwire gc`."""
    return Child(words=("gc", "--json", "--until-eof", *words), interval=interval, report=_report)


def _report(said: bytes, status: int) -> None:
    """Log what was reclaimed, and what could not be; why is on our stderr already."""
    try:
        report = json.loads(said)
        found, reclaimed, kept = (int(report[key]) for key in ("found", "reclaimed", "kept"))
    except (ValueError, KeyError, TypeError):
        own.warning(render_pairs(gc="failed", status=status))
        return
    metrics.count_garbage(found, reclaimed)
    if found:
        failed = found - reclaimed
        own.info(render_pairs(gc="done", found=found, reclaimed=reclaimed, failed=failed, kept=kept))
