"""The run itself, inside namespaces of its own: every work in turn, every contender in every turn.

The contenders take turns call by call and change their order, so that a machine that gets slower is slow for
all of them.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.contenders import C_SHIM, NO_AGENT, go_contenders, our_contenders
from bench.figures import Absence, Call, Heading, Report, Row, rows_of
from bench.lanes import Lane
from bench.memory import measure_agent, measure_peaks
from bench.sandboxes import MissingError
from bench.works import all_works

if TYPE_CHECKING:
    from pathlib import Path

    from bench.contenders import Contender
    from bench.works import Part, Sizes, Work

    Found = dict[str, dict[str, list[Call]]]  # by verb and contender

MEMORY = "memory"
_WARM_UP = 2  # turns that fill caches and are not counted


def names_of(sizes: Sizes) -> list[str]:
    """Return the names of all works."""
    return [*(work.key for work in all_works(sizes)), MEMORY]


def measure(work_directory: Path, go: list[Path], sizes: Sizes, only: list[str], report: Report) -> Report:
    """Measure the works named, all when none is, and return the report with what was found."""
    contenders = [*go_contenders(go), *our_contenders(work_directory)]
    bench = Bench(work_directory, contenders, sizes)
    for work in all_works(sizes):
        if not only or work.key in only:
            bench.measure(work)
    memory = []
    if not only or MEMORY in only:
        _say("memory")
        memory = measure_peaks(work_directory, contenders) + measure_agent(work_directory, contenders, sizes)
    names = [contender.name for contender in contenders]
    return replace(report, contenders=names, rows=bench.rows, absences=bench.absences, memory=memory)


class Bench:
    """What was found so far."""

    def __init__(self, directory: Path, contenders: list[Contender], sizes: Sizes) -> None:
        """Begin with nothing found."""
        self.rows: list[Row] = []
        self.absences: list[Absence] = []
        self._directory = directory
        self._contenders = contenders
        self._sizes = sizes

    def measure(self, work: Work) -> None:
        """Measure one work by everybody who can do it."""
        begun = time.monotonic()
        with ExitStack() as stack:
            lanes = [lane for lane in self._lanes(work, stack) if self._is_able(lane, work, stack)]
            empty = []
            if work.present:
                self._fill(lanes, work.present)
                empty = self._lanes(work, stack, [lane.contender for lane in lanes])
            for part in work.parts:
                self.rows += self._measure(part, lanes, empty if part.beside_empty else [])
                _say(f"{part.key}: {time.monotonic() - begun:.0f} s")

    def _lanes(self, work: Work, stack: ExitStack, contenders: list[Contender] | None = None) -> list[Lane]:
        kind = "full" if contenders is None else "empty"
        lanes = []
        able = [each for each in self._contenders if _has_part(each, work)]
        for contender in able if contenders is None else contenders:
            lanes.append(Lane(contender, f"{work.key}-{kind}-{contender.key}", self._directory, work.network))
            stack.callback(lanes[-1].close)
        return lanes

    def _is_able(self, lane: Lane, work: Work, stack: ExitStack) -> bool:
        try:
            if work.prepare:
                work.prepare(lane, stack)
            why = lane.probe(work.evidence if lane.contender.ours else {})
        except MissingError as error:
            why = str(error)
        if why:
            self.absences.append(Absence(work=work.key, contender=lane.contender.name, why=why))
        return not why

    def _fill(self, lanes: list[Lane], present: int) -> None:
        # Who of ours attaches the pods that are only there makes no difference, but in time.
        quick = next(contender for contender in self._contenders if contender.name == C_SHIM)
        first = self._sizes.pods
        for lane in lanes:
            lane.fill(range(first, first + present), quick if lane.contender.ours else lane.contender)

    def _measure(self, part: Part, lanes: list[Lane], empty: list[Lane]) -> list[Row]:
        found: tuple[Found, Found] = {}, {}
        entries = [(lane, found[0]) for lane in lanes] + [(lane, found[1]) for lane in empty]
        for turn in range(-min(_WARM_UP, part.rounds // 10), part.rounds):
            if turn == part.slow_rounds:
                entries = [(lane, calls) for lane, calls in entries if lane.contender.name != NO_AGENT]
            first = turn % len(entries) if entries else 0
            for lane, calls in entries[first:] + entries[:first]:
                took = part.act(lane, turn)
                for verb, call in took.items() if turn >= 0 else ():
                    calls.setdefault(verb, {}).setdefault(lane.contender.name, []).append(call)
        baseline = self._contenders[0].name
        heading = Heading(work=part.key, label=part.label, pods=part.pods, baseline=baseline)
        return rows_of(heading, *found)


def _has_part(contender: Contender, work: Work) -> bool:
    """Tell whether it is measured at all: another backend only where there is something to translate."""
    if contender.backend and not work.network.translates:
        return False
    return contender.ours or not work.ours_alone


def _say(words: str) -> None:
    sys.stderr.write(f"scripts/bench: {words}\n")
