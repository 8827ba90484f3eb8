"""Every step of one job is refused, lost or killed; done again, it ends as if nothing had stopped it.

A script like sweep.py, whose report it prints:

    python tests/harness/storm/sweep_jobs.py JOB SEED long|short
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.harness.storm.jobs import JOBS, perform
from tests.harness.storm.lab import Lab
from tests.harness.storm.sweep import DEBRIS, Report, Sweep, forked_into

if TYPE_CHECKING:
    from tests.harness.storm.jobs import Job


class SweepJob(Sweep):
    """All cases of one job."""

    def run(self, job: Job) -> None:
        self.thorough = True
        job.prepare()
        job.arrange()
        start = self.lab.transcript()
        whole = perform(job.do)
        self.expect_all("nothing in its way", [whole])
        wanted = self.lab.transcript()
        for case in self.cases(0, whole.steps):
            job.arrange()
            outcome = perform(job.do, case.fault)
            self.judge(case, outcome)
            if outcome.status == 0:
                self.compare(f"{case}, which was tolerated", wanted, debris=True)
            elif outcome.status is not None and job.atomic and not case.fault.onwards:
                self.compare(f"{case}, answered {outcome.said}", start)
            self.expect_all(f"{case}, then again", [perform(job.do)])
            if DEBRIS.search(self.compare(f"{case}, then again", wanted, debris=True)):
                self.expect_all(f"{case}, then again, then GC", self.lab.collect(*job.living))
                self.compare(f"{case}, then again, then GC", wanted)


def main(name: str, seed: str, length: str) -> None:
    """Print one report."""
    directory = Path(tempfile.mkdtemp(prefix="podwire-faults-"))
    report = Report(name, name)

    def work() -> None:
        job = JOBS[name]
        lab = Lab(directory / "node", job.network)
        SweepJob(lab, report, int(seed), long=length == "long").run(job(lab))

    try:
        forked_into(report, work)
    finally:
        shutil.rmtree(directory)
    print(json.dumps([vars(report)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
