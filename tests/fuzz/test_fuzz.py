"""The corpus through every target, and a look for more of it: short in every run, long with --long."""

from __future__ import annotations

import base64
import re
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import fuzz
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
SHORT, LONG = 1, 600  # seconds


def test_the_corpus_breaks_nothing(tmp_path: Path) -> None:
    directories = sorted(map(str, CORPUS.iterdir()))
    assert {Path(each).name for each in directories} == TARGETS.keys()
    done = fuzz.run(tmp_path, "replay", *directories)
    assert done.returncode == 0, done.stderr[-4000:]
    sys.stdout.write(done.stdout)


def test_nothing_is_writable_but_the_working_directory(tmp_path: Path) -> None:
    done = fuzz.run(tmp_path, "confinement")
    assert done.stdout == "confined\n", done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_crashes_or_hangs(target: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """What it finds is in the failure, to be put into the corpus: base64 of the input, and the seed."""
    seconds = LONG if request.config.getoption("--long") else SHORT
    seed = time.time_ns() % 2**31 + 1
    new = tmp_path / "new"
    new.mkdir()
    done = fuzz.run(tmp_path, target, str(seconds), str(seed), str(new), str(CORPUS / target))
    found = [base64.b64encode(file.read_bytes()).decode() for file in tmp_path.glob("*-*")]
    assert (done.returncode, found) == (0, []), f"seed {seed}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    runs = re.search(r"Done (\d+) runs", done.stderr)
    coverage = re.findall(r"cov: (\d+) ft: (\d+)", done.stderr)
    assert runs is not None
    assert int(runs[1]) > len(list((CORPUS / target).iterdir()))
    edges, features = coverage[-1]
    sys.stdout.write(
        f"fuzz {target}: seed {seed}, {runs[1]} executions, {edges} edges, {features} features, "
        f"{len(list(new.iterdir()))} new inputs\n"
    )
