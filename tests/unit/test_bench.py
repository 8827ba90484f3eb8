"""The pure parts of scripts/bench: figures, tables and the place in the README."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from bench import picture, readme, table
from bench.contenders import C_SHIM, NO_AGENT
from bench.figures import (
    Absence,
    Call,
    Heading,
    Memory,
    Report,
    median_ratio,
    parse_json,
    percentile,
    render_json,
    rows_of,
)
from bench.targets import target_of

from tests.conftest import ROOT

GO = "Go 1.1.1 (Debian)"
HEADING = Heading(work="v4", label="v4", pods=1, baseline=GO)


def calls(*milliseconds: float) -> list[Call]:
    return [Call(wall=ms / 1e3, cpu=ms / 2e3) for ms in milliseconds]


def report() -> Report:
    found = {"ADD": {GO: calls(*[10] * 100), C_SHIM: calls(*[4] * 98, 30, 30)}}
    return Report(
        machine={"processor": "2 cores", "kernel": "Linux 6.18", "python": "Python 3.11", "load": "0.1"},
        contenders=[GO, NO_AGENT, C_SHIM],
        quick=False,
        rows=rows_of(HEADING, found, {}),
        absences=[Absence(work=work, contender=NO_AGENT, why="no Python") for work in ("v4", "v6")],
        memory=[Memory(contender="agent", when="at its start", kib=25600)],
    )


@pytest.mark.parametrize(("q", "expected"), [(50, 50), (95, 95), (99, 99)])
def test_a_percentile_is_the_nearest_rank(q: int, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), q) == expected


def test_a_percentile_takes_enough_calls() -> None:
    assert percentile(range(99), 99) is None
    assert percentile(range(19), 95) is None
    assert percentile(range(20), 95) == 18


def test_a_ratio_is_the_median_of_the_pairs() -> None:
    # The second turn was disturbed for both, which the ratio of the medians would not see.
    assert median_ratio(calls(1, 50, 2), calls(2, 100, 4)) == 0.5
    assert median_ratio(calls(1, 9, 9), calls(10, 10, 10)) == pytest.approx(0.9)


def test_who_took_part_in_fewer_turns_is_compared_in_these() -> None:
    assert median_ratio(calls(30), calls(10, 1000)) == pytest.approx(3)


def test_rows_compare_with_the_baseline_and_with_a_node_without_pods() -> None:
    full, empty = {"ADD": {GO: calls(10), C_SHIM: calls(6)}}, {"ADD": {C_SHIM: calls(5)}}
    go, ours = rows_of(HEADING, full, empty)
    assert (go.ratio, go.to_empty) == (1.0, None)
    assert (ours.p50, ours.ratio, ours.to_empty, ours.cpu) == (6.0, 0.6, 1.2, 3.0)


def test_a_crowd_is_also_told_in_pods_per_second() -> None:
    heading = Heading(work="pods-16", label="100 pods", pods=100, baseline=GO)
    [row] = rows_of(heading, {"ADD": {GO: calls(500)}}, {})
    assert row.pods_per_second == 200


def test_the_report_survives_json() -> None:
    assert parse_json(render_json(report())) == report()


def test_the_table_shows_the_target_beside_the_figure_and_a_miss_in_bold() -> None:
    shown = table.render_table(report())
    assert f"| ADD, v4 | {C_SHIM} | 100 | 4.0 | 4.0 | 30.0 | **7.50** (≤ 3.00) |  | 0.40 (≤ 0.50) |" in shown
    assert f"not yet: {NO_AGENT}, v4, v6: no Python" in shown


def test_the_short_table_has_a_column_for_everybody_and_leaves_out_what_ours_cannot() -> None:
    lines = table.render_short_table(report()).splitlines()
    assert lines[0] == f"| p50 in ms | {GO} | {C_SHIM}: to {GO} | {NO_AGENT}: to {GO} |"
    assert lines[2:] == [
        "| ADD, v4 | 10.0 | 4.0: 0.40 (≤ 0.50) | - |",
        "| ADD, v4: p99/p50 | 1.00 | **7.50** (≤ 3.00) | - |",
    ]


def test_every_target_is_of_a_figure_that_is_measured() -> None:
    [_, ours] = report().rows
    assert target_of(ours, "ratio") == 0.5
    assert target_of(ours, "tail") == 3
    assert target_of(ours, "to_empty") is None


def test_the_picture_is_well_formed_and_names_everybody() -> None:
    root = ET.fromstring(picture.render_picture(report()))
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {GO, "agent, C shim", "ADD, v4", "4.0 ms  (0.40)"} <= set(words)


def test_only_what_is_between_the_markers_is_replaced() -> None:
    text = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"
    expected = f"before\n{readme.BEGIN}\nnew\n{readme.END}\nafter\n"
    assert readme.replace_between_markers(text, "new") == expected


@pytest.mark.parametrize("text", ["", readme.BEGIN, f"{readme.END}{readme.BEGIN}"])
def test_a_text_without_the_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="wanted <!-- bench"):
        readme.replace_between_markers(text, "new")


def test_the_page_of_figures_has_the_markers_and_the_picture() -> None:
    text = (ROOT / "docs/speed.md").read_text()
    readme.replace_between_markers(text, "")
    assert "(bench.svg)" in text
    assert (ROOT / "docs/bench.svg").exists()
