"""The picture: a group of bars per work, as long as p50 beside that of the baseline, and a whisker to p95.

No background and middle greys, so that it reads on a light page and on a dark one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from bench.contenders import C_SHIM, NO_AGENT, PYTHON_SHIM
from bench.table import name_of

if TYPE_CHECKING:
    from bench.figures import Report, Row

_COLOURS = {C_SHIM: "#2da05f", PYTHON_SHIM: "#4a90d9", NO_AGENT: "#c98a1b"}
_GO_COLOURS = ("#8b949e", "#a9794f", "#9b6fb5")
_TEXT = "#78818b"
_SHOWN = (
    *((work, verb) for verb in ("ADD", "DEL") for work in ("v4", "v6", "dual", "masq", "chain", "one")),
    *((work, verb) for work in ("pods-16", "pods-100") for verb in ("ADD", "DEL")),
    *(("ipam", verb) for verb in ("ADD", "DEL")),
    *(("containerd", verb) for verb in ("RunPodSandbox", "StopPodSandbox")),
)
_LEFT, _UNIT, _MOST = 250, 210, 2.0  # pixels, pixels as long as the baseline, times the baseline
_BAR, _GAP, _TOP = 11, 12, 64
_WIDTH = 860


@dataclass(frozen=True, slots=True)
class _Bar:
    row: Row
    colour: str
    baseline: float


def render_picture(report: Report) -> str:
    """Return the report as SVG."""
    colours = _colours_of(report)
    parts, y = _legend(report, colours), _TOP
    for work, verb in _SHOWN:
        rows = [report.find(work, verb, name) for name in colours]
        present = [row for row in rows if row]
        baseline = report.find(work, verb, report.contenders[0])
        if baseline and len(present) > 1:
            parts.append(_text(_LEFT - 10, y + 15, name_of(baseline), 'text-anchor="end"'))
            for row in present:
                parts += _bar(_Bar(row, colours[row.contender], baseline.p50), y)
                y += _BAR + 1
            y += _GAP
    parts.append(
        _line(
            (_LEFT + _UNIT, _TOP - 6), (_LEFT + _UNIT, y - _GAP + 4), 'stroke-dasharray="3 3" opacity="0.6"'
        )
    )
    size = f'viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}"'
    font = 'font-family="system-ui, sans-serif" font-size="12"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>', *parts, "</svg>", ""])


def _colours_of(report: Report) -> dict[str, str]:
    go = [name for name in report.contenders if name not in _COLOURS]
    colours = {name: _GO_COLOURS[number % len(_GO_COLOURS)] for number, name in enumerate(go)}
    return colours | {
        name: _COLOURS[name] for name in (NO_AGENT, PYTHON_SHIM, C_SHIM) if name in report.contenders
    }


def _legend(report: Report, colours: dict[str, str]) -> list[str]:
    machine = report.machine
    title = f"p50 of each work as long as beside {report.contenders[0]}; whisker: p95; behind it: ratio"
    where = f"{machine['processor']}, {machine['kernel']}, {machine['python']}"
    parts = [_text(10, 18, title, 'font-weight="bold"'), _text(10, 36, where)]
    x = _LEFT
    for name, colour in colours.items():
        words = name if name == NO_AGENT or name not in _COLOURS else f"agent, {name}"
        parts.append(f'<rect x="{x}" y="45" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(x + 15, 54, words))
        x += 15 + 8 * len(words) + 12
    return parts


def _bar(bar: _Bar, y: int) -> list[str]:
    row, middle = bar.row, y + _BAR / 2
    share, most = row.p50 / bar.baseline, (row.p95 or row.p50) / bar.baseline
    end, whisker = (_LEFT + _UNIT * min(value, _MOST) for value in (share, most))
    width = max(end - _LEFT, 1)
    parts = [f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{bar.colour}"/>']
    if share > _MOST:  # the bar is longer than the picture
        parts.append(_text(end + 3, y + 10, "▸"))
        whisker = end + 10
    elif whisker > end:
        parts.append(_line((end, middle), (whisker, middle)))
        parts.append(_line((whisker, y + 3), (whisker, y + _BAR - 3)))
    words = f"{_time(row.p50)}" + (f"  ({row.ratio:.2f})" if row.ratio != 1 else "")
    return [*parts, _text(max(end, whisker) + 6, y + 10, words, 'font-size="10"')]


def _time(ms: float) -> str:
    return f"{ms / 1e3:.2f} s" if ms >= 1e3 else f"{ms:.1f} ms"


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{_TEXT}" {more}>{escape(words)}</text>'


def _line(one: tuple[float, float], other: tuple[float, float], more: str = "") -> str:
    ends = f'x1="{one[0]:.1f}" y1="{one[1]:.1f}" x2="{other[0]:.1f}" y2="{other[1]:.1f}"'
    return f'<line {ends} stroke="{_TEXT}" {more}/>'
