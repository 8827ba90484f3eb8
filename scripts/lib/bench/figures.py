"""From calls to figures: percentiles, ratios pair by pair, and the report that is written as JSON.

Nothing here measures, and nothing here knows how a figure is shown.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What one piece of work cost, in seconds: on the wall, and on the processors."""

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The figures of one verb of one work by one contender; times in ms.

    `ratio` compares with the baseline and `to_empty` with the same contender on a node without pods.
    """

    work: str
    label: str
    verb: str
    contender: str
    n: int
    p50: float
    p95: float | None
    p99: float | None
    cpu: float
    pods: int
    ratio: float | None
    to_empty: float | None

    @property
    def pods_per_second(self) -> float | None:
        """Return how many pods a second a crowd made; None for a single pod."""
        return self.pods / self.p50 * 1e3 if self.pods > 1 else None

    @property
    def tail(self) -> float | None:
        """Return how much longer than the median the longest of a hundred calls takes."""
        return None if self.p99 is None else self.p99 / self.p50


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """A work that a contender cannot do, and what it said."""

    work: str
    contender: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The memory of one contender after or during something, in KiB."""

    contender: str
    when: str
    kib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that one run found; the first contender is the baseline."""

    machine: dict[str, str]
    contenders: list[str]
    quick: bool
    rows: list[Row] = field(default_factory=list)
    absences: list[Absence] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)

    def find(self, work: str, verb: str, contender: str) -> Row | None:
        """Return the row of one figure."""
        wanted = (work, verb, contender)
        return next((row for row in self.rows if (row.work, row.verb, row.contender) == wanted), None)


def percentile(values: Sequence[float], q: int) -> float | None:
    """Return the q-th percentile by nearest rank; None when too few values lie above it to tell.

    That is: 95 takes 20 values, 99 takes 100.
    """
    if len(values) * (100 - q) < 100:
        return None
    return sorted(values)[-(-len(values) * q // 100) - 1]


def median_ratio(calls: Sequence[Call], others: Sequence[Call]) -> float:
    """Return the median of the ratios pair by pair: what disturbed one turn disturbed both of a pair.

    Who took part in fewer turns did so in the first.
    """
    return statistics.median(one.wall / other.wall for one, other in zip(calls, others, strict=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What the rows of one part of the benchmark have in common."""

    work: str
    label: str
    pods: int
    baseline: str


def rows_of(
    heading: Heading,
    full: Mapping[str, Mapping[str, Sequence[Call]]],
    empty: Mapping[str, Mapping[str, Sequence[Call]]],
) -> list[Row]:
    """Return the rows of calls by verb and contender; `empty` has the same turns on nodes without pods."""
    return [
        _row(heading, (verb, name), calls, by_name.get(heading.baseline), empty.get(verb, {}).get(name))
        for verb, by_name in full.items()
        for name, calls in by_name.items()
    ]


def _row(
    heading: Heading,
    name: tuple[str, str],
    calls: Sequence[Call],
    baseline: Sequence[Call] | None,
    empty: Sequence[Call] | None,
) -> Row:
    walls = [call.wall * 1e3 for call in calls]
    return Row(
        work=heading.work,
        label=heading.label,
        verb=name[0],
        contender=name[1],
        n=len(walls),
        p50=round(statistics.median(walls), 2),
        p95=_rounded(percentile(walls, 95)),
        p99=_rounded(percentile(walls, 99)),
        cpu=round(statistics.mean(call.cpu for call in calls) * 1e3, 2),
        pods=heading.pods,
        ratio=_rounded(median_ratio(calls, baseline) if baseline else None, 3),
        to_empty=_rounded(median_ratio(calls, empty) if empty else None, 3),
    )


def _rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(value, digits)


def render_json(report: Report) -> str:
    """Return the report as JSON text."""
    return json.dumps(asdict(report), indent=1) + "\n"


def parse_json(text: str) -> Report:
    """Return the report that `render_json` wrote."""
    found: dict[str, Any] = json.loads(text)
    return Report(
        machine=found["machine"],
        contenders=found["contenders"],
        quick=found["quick"],
        rows=[Row(**row) for row in found["rows"]],
        absences=[Absence(**absence) for absence in found["absences"]],
        memory=[Memory(**memory) for memory in found["memory"]],
    )
