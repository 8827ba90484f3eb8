"""The report as Markdown: a full table for the terminal, and a short one, a line per work, for the README."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.contenders import C_SHIM, NO_AGENT, PYTHON_SHIM
from bench.place import is_busy
from bench.targets import target_of

if TYPE_CHECKING:
    from bench.figures import Report, Row
    from bench.targets import Figure

_OURS = (C_SHIM, PYTHON_SHIM, NO_AGENT)
# What the README shows; of the others the full table. Times are shown with their ratio.
_SHOWN: tuple[tuple[str, str, Figure], ...] = (
    *((work, verb, "ratio") for work in ("v4", "dual", "masq") for verb in ("ADD", "DEL")),
    *((work, verb, "ratio") for work in ("pods-16", "pods-100", "ipam") for verb in ("ADD", "DEL")),
    *((work, verb, "ratio") for work in ("chain", "chain-16", "one", "one-16") for verb in ("ADD", "DEL")),
    *(("containerd", verb, "ratio") for verb in ("RunPodSandbox", "StopPodSandbox")),
    *((work, "ADD", "tail") for work in ("v4", "dual", "masq")),
    *((work, "ADD", "to_empty") for work in ("present", "chain-present", "one-present")),
)
_FIGURES = {"ratio": "{}", "tail": "{}: p99/p50", "to_empty": "{}: to none there"}
_LEGEND = "Ratios are medians pair by pair; behind a ratio is its target (≤), and bold is what misses it."
_SETTLING = "Dual-stack with Go 1.1.1 is mostly its wait for addresses to settle."


def render_table(report: Report) -> str:
    """Return every figure of the report."""
    baseline = report.contenders[0]
    head = (
        f"work | contender | n | p50 ms | p95 | p99 | p99/p50 | pods/s | to {baseline} | to no pods | CPU ms"
    )
    lines = [
        describe(report),
        "",
        *_head(head),
        *map(_line, report.rows),
        "",
        *_absences(report),
        *_memory(report),
    ]
    return "\n".join([*lines, "", _SETTLING]) + "\n"


def _head(titles: str) -> list[str]:
    return [f"| {titles} |", "|---|---" + "|---:" * (titles.count("|") - 1) + "|"]


def _line(row: Row) -> str:
    # A target is shown where the contender has one.
    cells = [
        name_of(row),
        row.contender,
        str(row.n),
        _number(row.p50),
        _number(row.p95),
        _number(row.p99),
        _against(row, "tail"),
        _number(row.pods_per_second),
        _against(row, "ratio"),
        _against(row, "to_empty"),
        _number(row.cpu or None),
    ]
    return f"| {' | '.join(cells)} |"


def _against(row: Row, figure: Figure) -> str:
    """Return a figure with its target beside it; in bold when it is missed."""
    value: float | None = getattr(row, figure)
    if value is None:
        return ""
    most = target_of(row, figure)
    if most is None:
        return f"{value:.2f}"
    shown = f"{value:.2f}" if value <= most else f"**{value:.2f}**"
    return f"{shown} (≤ {most:.2f})"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def name_of(row: Row) -> str:
    """Return what a row is about: `ADD, v4`."""
    return f"{row.verb}, {row.label}" if row.label else row.verb


def describe(report: Report) -> str:
    """Return machine and load in a sentence."""
    machine = report.machine
    words = f"{machine['processor']}; {machine['kernel']}; {machine['python']}; load {machine['load']} before"
    if is_busy(machine):
        words += ", so other work disturbed it"
    return words + ("; a quick run with few calls." if report.quick else ".")


def _absences(report: Report) -> list[str]:
    """Return a line per reason, as one reason often stands in the way of many."""
    works: dict[tuple[str, str], list[str]] = {}
    for each in report.absences:
        works.setdefault((each.contender, each.why), []).append(each.work)
    return [f"not yet: {name}, {', '.join(found)}: {why}" for (name, why), found in works.items()]


def _memory(report: Report) -> list[str]:
    return [f"memory: {each.contender}, {each.when}: {_kib(each.kib)}" for each in report.memory]


def _kib(kib: int) -> str:
    # The kernel counts pages per processor first, so what has few pages has none.
    return f"{kib:,} KiB" if kib else "less than the kernel counts"


def render_short_table(report: Report) -> str:
    """Return the rows of the README: what both sides can do, a column for each contender."""
    go = [name for name in report.contenders if name not in _OURS]
    ours = [name for name in _OURS if name in report.contenders]
    titles = ["p50 in ms", *go, *(f"{name}: to {go[0]}" for name in ours)]
    lines = [f"| {' | '.join(titles)} |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    for work, verb, figure in _SHOWN:
        rows = {name: report.find(work, verb, name) for name in go + ours}
        cells = {name: _cell(row, figure, name in ours) for name, row in rows.items()}
        if any(cells[name] for name in ours):
            some = next(row for row in rows.values() if row)
            words = [cell or "-" for cell in cells.values()]
            lines.append(f"| {' | '.join([_FIGURES[figure].format(name_of(some)), *words])} |")
    return "\n".join(lines)


def _cell(row: Row | None, figure: Figure, compared: bool) -> str:
    if row is None:
        return ""
    if figure != "ratio":
        return _against(row, figure)
    ratio = _against(row, "ratio") if compared else ""
    return f"{_number(row.p50)}: {ratio}" if ratio else _number(row.p50)


def render_readme(report: Report, picture: str) -> str:
    """Return what the README says about speed."""
    agent = "; ".join(
        f"{each.when} {each.kib / 1024:.0f} MiB" for each in report.memory if each.contender == "agent"
    )
    words = [
        render_short_table(report),
        "",
        f"![Time of each work as a share of what {report.contenders[0]} takes]({picture})",
        "",
        f"{_LEGEND} {describe(report)}",
        *([f"The agent holds {agent}."] if agent else []),
        _SETTLING,
    ]
    return "\n".join(words)
