"""Nothing leaks when a step fails or the process dies beside it: each step of each verb, on each network, and
of what is done beside the verbs.

The figures are printed at the end of the run; PODWIRE_FAULTS_SEED repeats one. With --long every step fails
in every way, on all networks.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni_plugin.attach import MODES
from cni_plugin.attach.wiring import COMBINED
from cni_plugin.backend import BACKENDS
from cni_plugin.features import FEATURES
from cni_plugin.plugins import PLUGINS
from tests.harness.storm.configurations import FEATURE_KEYS, MODE_KEYS, everything, fresh, ordinary, richest
from tests.harness.storm.jobs import JOBS

if TYPE_CHECKING:
    from collections.abc import Callable

SWEEP, SWEEP_JOBS, TRACED = (
    Path(__file__).parents[1] / "harness/storm" / name for name in ("sweep.py", "sweep_jobs.py", "traced.py")
)
VERBS = ("ADD", "DEL", "GC", "STATUS", "CHECK")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    long = metafunc.config.getoption("--long", default=False)
    if "verbs" in metafunc.fixturenames:
        names = [*everything()] if long else ordinary()
        pairs = [(name, verbs) for name in names for verbs in split(name, long=long)]
        # The longest first, for the workers' sake.
        pairs.sort(key=lambda pair: pair[0] not in richest())
        metafunc.parametrize(("network", "verbs"), pairs)
    elif "traced_network" in metafunc.fixturenames:
        metafunc.parametrize("traced_network", [*everything()] if long else [*sorted(richest()), *CHAINS])


CHAINS = ("conf/10-bridge-drop-in.conflist", "tuning of everything", "addresses of the Go host-local")


def split(name: str, *, long: bool) -> list[str]:
    """Return the verbs to try, each alone where there is much to do."""
    first = ("first ADD",) if long or name in fresh() else ()
    return [*VERBS, *first] if long or name in richest() else [",".join((*VERBS, *first))]


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Callable[[dict[str, Any]], None]:
    return lambda found: record_property("faults", found)


def run(script: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def seed() -> str:
    return os.environ.get("PODWIRE_FAULTS_SEED") or str(random.SystemRandom().randrange(10**6))


def test_any_step_may_fail_or_be_the_last_and_nothing_leaks(
    network: str, verbs: str, request: pytest.FixtureRequest, figures: Callable[[dict[str, Any]], None]
) -> None:
    judge(request, figures, SWEEP, network, verbs)


@pytest.mark.parametrize("job", JOBS)
def test_any_step_of_a_job_may_fail_and_doing_it_again_ends_well(
    job: str, request: pytest.FixtureRequest, figures: Callable[[dict[str, Any]], None]
) -> None:
    judge(request, figures, SWEEP_JOBS, job)


def judge(
    request: pytest.FixtureRequest,
    figures: Callable[[dict[str, Any]], None],
    script: Path,
    *words: str,
) -> None:
    """Run a sweep and fail with what it found."""
    chosen = seed()
    print(f"PODWIRE_FAULTS_SEED={chosen}")
    length = "long" if request.config.getoption("--long", default=False) else "short"
    reports = run(script, *words, chosen, length)
    for report in reports:
        figures({key: report[key] for key in ("verb", "steps", "faults", "kills")} | {"seed": chosen})
    findings = [f"{report['verb']}: {finding}" for report in reports for finding in report["findings"]]
    assert not findings, "\n".join(findings)


def test_the_seam_has_each_change_that_strace_sees_and_no_other(
    traced_network: str, figures: Callable[[dict[str, Any]], None]
) -> None:
    found = run(TRACED, "network", traced_network)
    assert found["findings"] == []
    assert found["counts"]["ADD"]
    figures({"verb": "traced", "steps": sum(found["counts"].values()), "faults": 0, "kills": 0, "seed": ""})


def mode_of(plugin: dict[str, Any]) -> str:
    mode = plugin.get("mode", "bridge")
    return COMBINED[mode][0] if mode in COMBINED else str(mode)


def test_every_mode_feature_and_plugin_is_in_the_networks_that_are_tried() -> None:
    assert MODE_KEYS.keys() == MODES.keys() | COMBINED.keys()
    assert FEATURE_KEYS.keys() == FEATURES.keys()
    plugins = [plugin for name in ordinary() for plugin in everything()[name]]
    joined = {(mode_of(plugin), key) for plugin in plugins for key in BACKENDS if key in plugin}
    assert joined == {(mode, backend) for mode in MODES for backend in BACKENDS}
    assert {mode_of(plugin) for plugin in plugins if not BACKENDS.keys() & plugin} == MODES.keys()
    types = {plugin["type"] for plugin in plugins} | {
        plugin["ipam"]["type"] for plugin in plugins if "ipam" in plugin
    }
    assert types >= PLUGINS.keys()
    for name in FEATURES:
        assert any(asks_for(plugin, FEATURE_KEYS[name]) for plugin in plugins), name


def asks_for(plugin: dict[str, Any], keys: dict[str, Any]) -> bool:
    return all(
        plugin.get(key) == value or (key == "capabilities" and value.items() <= plugin.get(key, {}).items())
        for key, value in keys.items()
    )
