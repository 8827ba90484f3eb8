"""Every step of one verb on one network is refused, lost or killed, one after the other.

A script, because it moves into a namespace of its own: prints what it covered and found as JSON.

    python tests/harness/storm/sweep.py NETWORK VERB,VERB... SEED long|short
"""

from __future__ import annotations

import difflib
import json
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.harness.storm.configurations import everything, richest
from tests.harness.storm.faulting import DEATHS, FAILURES, REFUSALS, Fault
from tests.harness.storm.lab import Lab, Outcome, Pod, forked, load_everything

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VERBS = ("ADD", "DEL", "GC", "STATUS", "CHECK", "first ADD")
FEW = 2
DEBRIS = re.compile(r"^\S+\.new( .*)?$", re.MULTILINE)


@dataclass
class Report:
    """What was covered and found."""

    network: str
    verb: str
    steps: int = 0
    faults: int = 0
    kills: int = 0
    tolerated: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


@dataclass
class Case:
    """One fault at one step of one plugin's call."""

    number: int
    at: int
    step: str
    fault: Fault

    def __str__(self) -> str:
        """Return it for a person."""
        more = (
            " and later" if self.fault.onwards else "" if len(self.fault.at) == 1 else " and in the undoing"
        )
        return f"plugin {self.number} step {self.at} ({self.step}) {self.fault.how}{more}"


class Sweep:
    """All cases of one verb on one network."""

    def __init__(self, lab: Lab, report: Report, seed: int, *, long: bool) -> None:
        """Attach and remove a pod once, so that what pods share is there."""
        self.lab, self.report, self.long = lab, report, long
        self.random = random.Random(f"{seed} {report.network} {report.verb}")
        self.thorough = long or report.network in richest()
        self.pod = lab.pod("pod-a")
        self.expect_all("the first ADD", [lab.add(self.pod)])
        self.expect_all("the first CHECK", lab.check(self.pod))
        self.expect_all("the first DEL", lab.delete(self.pod))
        self.before, self.inside = lab.transcript(), lab.transcript_of(self.pod)

    def find(self, what: str) -> None:
        self.report.findings.append(what)

    def expect_all(self, what: object, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.status != 0:
                self.find(f"{what}: wanted success, found {outcome.said} {outcome.unexpected}")

    def cases(self, number: int, steps: list[str]) -> Iterator[Case]:
        """Yield what is tried at the steps of one call."""
        self.report.steps += len(steps)
        every = self.long or len(steps) < FEW
        # Just after a step is just before the next one: a short run dies once between two.
        deaths = DEATHS if self.long else self.random.sample(DEATHS, 1) if self.thorough else ()
        for at, step in enumerate(steps):
            if not (every or self.thorough or self.random.random() < 0.15):
                continue
            ways = FAILURES if every else self.random.sample(FAILURES, 1)
            for how in (*ways, *deaths):
                yield Case(number, at, step, Fault(frozenset({at}), how))
            if self.thorough and self.often():
                yield Case(
                    number, at, step, Fault(frozenset({at}), self.random.choice(REFUSALS), onwards=True)
                )

    def often(self) -> bool:
        """Tell whether to do once more what only a long run does at every step."""
        return self.long or self.random.random() < 0.15

    def count(self, case: Case) -> None:
        if case.fault.how in DEATHS:
            self.report.kills += 1
        else:
            self.report.faults += 1

    def judge(self, case: Case, outcome: Outcome) -> None:
        """Say what is wrong with the answer itself."""
        self.count(case)
        if outcome.status is None:
            if case.fault.how not in DEATHS:
                self.find(f"{case}: it died")
            return
        if not outcome.struck:
            self.find(f"{case}: the step did not come again")
        if outcome.unexpected:
            self.find(f"{case}: unexpected {outcome.said}\n{outcome.unexpected}")
        if outcome.status == 0:
            self.report.tolerated[case.step.split()[0]] += 1

    def compare(self, case: object, before: str, inside: str = "", *, debris: bool = False) -> str:
        """Return the node's state; say how it and the pod's, if that is given, differ from what they were."""
        found = self.lab.transcript()
        seen, wanted = (DEBRIS.sub("", text) if debris else text for text in (found, before))
        differences = _differences(wanted, seen)
        if inside and (others := _differences(inside, self.lab.transcript_of(self.pod))):
            differences += others
            self.pod = self.lab.pod("pod-a")
        if differences:
            self.find(f"{case}:\n" + "\n".join(differences))
        return found

    def restore(self, case: object, *, inside: bool = True) -> None:
        """One DEL, after which nothing is left but perhaps one temporary file; a GC takes that away."""
        self.expect_all(f"{case}, then DEL", self.lab.delete(self.pod))
        found = self.compare(f"{case}, then DEL", self.before, self.inside if inside else "", debris=True)
        if DEBRIS.search(found):
            self.expect_all(f"{case}, then GC", self.lab.collect())
            self.compare(f"{case}, then DEL and GC", self.before)

    # The verbs.

    def add(self) -> None:
        for number in range(len(self.lab.network)):
            self.lab.add(self.pod, upto=number)
            outcome = self.lab.call("ADD", number, self.pod)
            self.lab.delete(self.pod)
            for case in self.cases(number, outcome.steps):
                self.add_one(case)

    def add_one(self, case: Case) -> None:
        lab = self.lab
        before, inside = self.before, self.inside
        if case.number:
            lab.add(self.pod, upto=case.number)
            before, inside = lab.transcript(), lab.transcript_of(self.pod)
        else:
            lab.results.pop(self.pod.name, None)
        outcome = lab.call("ADD", case.number, self.pod, case.fault)
        self.judge(case, outcome)
        if outcome.status == 0:
            self.finish(case, outcome)
        elif outcome.status is not None and not case.fault.onwards:
            self.compare(f"{case}, answered {outcome.said}", before, inside)
            if not case.number and self.thorough and outcome.steps[case.at + 1 :] and self.often():
                self.add_twice(case, outcome)
        self.restore(case)

    def add_twice(self, case: Case, first: Outcome) -> None:
        """Let a step of the undoing fail, too: the error is the first one's, and the rest is undone."""
        again = self.random.randrange(case.at + 1, len(first.steps))
        fault = Fault(frozenset({case.at, again}), case.fault.how)
        twice = Case(case.number, case.at, f"{case.step}; {first.steps[again]}", fault)
        outcome = self.lab.call("ADD", 0, self.pod, fault)
        self.judge(twice, outcome)
        if outcome.status and _plain(outcome.said) != _plain(first.said):
            self.find(f"{twice}: wanted {first.said}, found {outcome.said}")
        self.restore(twice, inside=not any(step.startswith("sysctl") for step in outcome.struck))
        self.pod = self.lab.pod("pod-a")

    def finish(self, case: Case, outcome: Outcome) -> None:
        """An ADD that succeeded all the same has made everything."""
        lab = self.lab
        lab.results[self.pod.name] = outcome.reply
        for number in range(case.number + 1, len(lab.network)):
            done = lab.call("ADD", number, self.pod)
            self.expect_all(f"{case}, then ADD of plugin {number}", [done])
            lab.results[self.pod.name] = done.reply
        self.expect_all(f"{case}, then CHECK", lab.check(self.pod))

    def delete(self) -> None:
        for number in reversed(range(len(self.lab.network))):
            self.lab.add(self.pod)
            outcome = self.lab.delete(self.pod, number)[-1]
            self.lab.delete(self.pod)
            for case in self.cases(number, outcome.steps):
                self.expect_all(f"{case}: ADD before", [self.lab.add(self.pod)])
                self.lab.delete(self.pod, number + 1)
                outcome = self.lab.call("DEL", number, self.pod, case.fault)
                self.judge(case, outcome)
                if outcome.status is not None and not case.fault.onwards and not number:
                    self.kept_going(case, outcome)
                if self.random.random() < 0.5:  # some runtimes remember the result, others do not
                    self.lab.results.pop(self.pod.name, None)
                # What cannot be set back in the pod is left: its namespace goes, and DEL must end.
                self.restore(case, inside=not any(step.startswith("sysctl") for step in outcome.struck))
                self.pod = self.lab.pod("pod-a") if outcome.struck else self.pod

    def kept_going(self, case: Case, outcome: Outcome) -> None:
        """A DEL of which one step failed has done the rest; what that is says the kind of the step."""
        kind = outcome.struck[0].split()[0] if outcome.struck else ""
        left = [line for line in _differences(self.before, self.lab.transcript()) if line[0] == "+"]
        store = [line for line in left if re.match(r"\+networks/test/[0-9a-f]", line)]
        links = [line for line in left if re.match(r"\+(veth|bwp)[0-9a-f]+", line)]
        elements = [line for line in left if 'comment "' in line]
        if store and kind not in {
            "unlink",
            "lock",
            "create",
            "write",
            "mkdir",
            "truncate",
            "rename",
            "program",
        }:
            self.find(f"{case}: the addresses were not released: {store}, answered {outcome.said}")
        if links and kind != "netlink":
            self.find(f"{case}: the links were not deleted: {links}, answered {outcome.said}")
        if elements and kind not in {"nftables", "program"}:
            self.find(f"{case}: the elements were not removed: {elements}, answered {outcome.said}")
        if left and outcome.status == 0:
            self.find(f"{case}: it said that it had succeeded and left {left}")

    def gc(self) -> None:
        lab = self.lab
        other = lab.pod("pod-b")
        if any(
            plugin["type"] == "static" or "portMappings" in plugin.get("capabilities", {})
            for plugin in lab.network
        ) or any(plugin.get("ipam", {}).get("type") == "static" for plugin in lab.network):
            others: tuple[Pod, ...] = ()  # a port or a stated address is for one pod
        else:
            others = (other,)
            self.expect_all("ADD of another pod", [lab.add(other)])
        before = lab.transcript()
        for number in range(len(lab.network)):
            lab.add(self.pod)
            outcome = lab.call("GC", number, None, keep=others)
            lab.collect(*others)
            for case in self.cases(number, outcome.steps):
                self.expect_all(f"{case}: ADD before", [lab.add(self.pod)])
                outcome = lab.call("GC", number, None, case.fault, keep=others)
                self.judge(case, outcome)
                self.expect_all(f"{case}, then GC", lab.collect(*others))
                self.compare(f"{case}, then GC", before)
                self.lab.delete(self.pod)  # the pod's own side is not a GC's to find
        # What an ADD left that was killed is a GC's, too.
        for number in range(len(lab.network)):
            lab.add(self.pod, upto=number)
            steps = lab.call("ADD", number, self.pod).steps
            lab.delete(self.pod)
            for at, step in enumerate(steps):
                if not (self.long or (self.thorough and self.random.random() < 0.3)):
                    continue
                case = Case(number, at, step, Fault(frozenset({at}), DEATHS[1]))
                lab.add(self.pod, upto=number)
                if not number:
                    lab.results.pop(self.pod.name, None)
                self.judge(case, lab.call("ADD", number, self.pod, case.fault))
                self.expect_all(f"ADD {case}, then GC", lab.collect(*others))
                self.compare(f"ADD {case}, then GC", before)
                lab.delete(self.pod)

    def status(self) -> None:
        for number in range(len(self.lab.network)):
            for case in self.cases(number, self.lab.call("STATUS", number, None).steps):
                self.judge(case, self.lab.call("STATUS", number, None, case.fault))
                self.expect_all(f"{case}, then GC", self.lab.collect())
                self.compare(f"{case}, then GC", self.before)

    def check(self) -> None:
        """CHECK changes nothing, so that there is nothing to fail."""
        self.lab.add(self.pod)
        for outcome in self.lab.check(self.pod):
            if changes := [step for step in outcome.steps if not step.startswith("program ")]:
                self.find(f"CHECK made changes: {changes}")
        self.restore("CHECK")


def first_add(directory: Path, report: Report, seed: int, *, long: bool) -> None:
    """The first ADD on a node makes what pods share; whatever stops it, the next one makes it whole."""
    network = everything()[report.network]
    chooser = random.Random(f"{seed} {report.network} first ADD")
    whole = run_cold(directory / "whole", network, None)
    if whole.status != 0:
        report.findings.append(f"the first ADD: {whole.said} {whole.unexpected}")
        return
    reference = whole.reply["transcript"]
    for number, steps in enumerate(whole.reply["steps"]):
        # A short run leaves out what every ADD does, which the sweep over ADD tries.
        again = {_plain(step) for step in whole.reply["again"][number]} if not long else set()
        chosen = [(at, step) for at, step in enumerate(steps) if _plain(step) not in again]
        report.steps += len(chosen)
        for at, step in chosen:
            for how in (*FAILURES, *DEATHS) if long else chooser.sample((*FAILURES, *DEATHS), 1):
                case = Case(number, at, step, Fault(frozenset({at}), how))
                outcome = run_cold(directory / "case", network, case)
                shutil.rmtree(directory / "case")
                report.kills += how in DEATHS
                report.faults += how not in DEATHS
                report.findings += [f"{case}: {finding}" for finding in outcome.reply["findings"]]
                if differences := _differences(reference, outcome.reply["transcript"]):
                    report.findings.append(f"{case}, then DEL, ADD and DEL:\n" + "\n".join(differences))


def run_cold(directory: Path, network: list[dict[str, object]], case: Case | None) -> Outcome:
    """Make a node, let its first ADD meet the fault, DEL, ADD, CHECK and DEL; return its state then."""

    def work() -> Outcome:
        lab = Lab(directory, network)
        pod, findings, steps = lab.pod("pod-a"), [], []
        if case is not None:
            lab.add(pod, upto=case.number)
            if not case.number:
                lab.results.pop(pod.name, None)
            failed = lab.call("ADD", case.number, pod, case.fault)
            findings += [f"unexpected {failed.said}\n{failed.unexpected}"] if failed.unexpected else []
            if failed.status is not None and not failed.struck:
                findings.append("the step did not come again")
            if failed.status == 0:
                lab.results[pod.name] = failed.reply
            findings += [f"then DEL: {o.said}" for o in lab.delete(pod) if o.status]
            lab.results.pop(pod.name, None)
        for number in range(len(network)):
            outcome = lab.call("ADD", number, pod)
            if outcome.status != 0:
                findings.append(f"then ADD: {outcome.said}")
            steps.append(outcome.steps)
            lab.results[pod.name] = outcome.reply
        findings += [f"then CHECK: {o.said}" for o in lab.check(pod) if o.status]
        findings += [f"then DEL: {o.said}" for o in lab.delete(pod) if o.status]
        text = re.sub(r"\S+last_reserved_ip\.\d\n", "", DEBRIS.sub("", lab.transcript()))
        again = [lab.call("ADD", number, pod).steps for number in range(len(network) if case is None else 0)]
        reply = {"transcript": text.replace(str(directory), ""), "findings": findings, "steps": steps}
        reply["again"] = again
        return Outcome(0, reply)

    return forked(work)


# The kernel's choice: MAC addresses, and the index of a pod's link in the comment of its elements.
_CHOSEN = re.compile(r"\b[0-9a-f]{1,2}(:[0-9a-f]{1,2}){5}\b|(?<= test if)\d+(?=[ /])")


def _differences(before: str, after: str) -> list[str]:
    before, after = _CHOSEN.sub("CHOSEN", before), _CHOSEN.sub("CHOSEN", after)
    if before == after:
        return []
    lines = difflib.unified_diff(before.split("\n"), after.split("\n"), lineterm="", n=0)
    return [line for line in lines if line[0] in "+-" and line[:3] not in {"+++", "---"} and len(line) > 1]


def _plain(said: str) -> str:
    """Return an error without what the next address or time makes different."""
    return re.sub(r"[0-9a-f]+", "N", said)


def main(network: str, verbs: str, seed: str, length: str) -> None:
    """Print one report for each of the verbs, which are separated by commas."""
    directory = Path(tempfile.mkdtemp(prefix="podwire-faults-"))
    long = length == "long"
    reports = []
    try:
        for verb in verbs.split(","):
            report = Report(network, verb)
            reports.append(report)
            if verb == "first ADD":
                load_everything()
                first_add(directory / "first", report, int(seed), long=long)
            else:
                forked_into(report, lambda r=report, v=verb: sweep(directory / v, r, int(seed), long=long))
    finally:
        shutil.rmtree(directory)
    print(json.dumps([vars(report) for report in reports]))


def forked_into(report: Report, work: Callable[[], None]) -> None:
    """Do the work, which fills the report, in a process that may go to another namespace."""

    def do() -> Outcome:
        work()
        return Outcome(0, vars(report))

    vars(report).update(forked(do, patience=3600).reply)


def sweep(directory: Path, report: Report, seed: int, *, long: bool) -> None:
    """Sweep over one verb, on a node of its own."""
    load_everything()
    made = Sweep(Lab(directory, everything()[report.network]), report, seed, long=long)
    run = {"ADD": made.add, "DEL": made.delete, "GC": made.gc, "STATUS": made.status, "CHECK": made.check}
    run[report.verb]()


if __name__ == "__main__":
    main(*sys.argv[1:])
