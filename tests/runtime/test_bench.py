"""scripts/bench as a person runs it: its smallest work, and what is left when it is interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path

from bench.contenders import go_contenders
from bench.figures import parse_json
from bench.networks import Chain

from tests.conftest import ROOT
from tests.harness.runtime import tools

BENCH = str(ROOT / "scripts/bench")
NOTHING_LEFT = str(ROOT / "scripts/lib/nothing-left")


def arguments(directory: Path, *more: str) -> list[str]:
    places = ["--json", str(directory / "bench.json"), "--svg", str(directory / "bench.svg")]
    return ["--quick", "--go", str(tools.reference_plugins()), *places, *more]


def test_the_smallest_work_is_measured_for_everybody_and_leaves_nothing(tmp_path: Path) -> None:
    command = [NOTHING_LEFT, BENCH, *arguments(tmp_path, "--only", "version")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = parse_json((tmp_path / "bench.json").read_text())
    assert [row.contender for row in found.rows] == found.contenders
    assert len(found.contenders) == 4
    assert found.contenders[0].startswith("Go 1.")
    assert [row.ratio for row in found.rows if row.contender == found.contenders[0]] == [1.0]
    assert "| VERSION | C shim | 20 |" in done.stdout


def test_go_plugins_that_can_translate_with_nftables_are_measured_with_it_too(tmp_path: Path) -> None:
    found = go_contenders([tools.reference_plugins(version) for version in reversed(tools.PLUGINS)])
    assert [one.name for one in found] == [
        *("Go 1.10.0", "Go 1.10.0, nftables", "Go 1.9.1", "Go 1.9.1, nftables", "Go 1.1.1 (Debian)")
    ]
    bridge, portmap, *_ = Chain()(found[1], tmp_path, 0)
    assert (bridge["ipMasqBackend"], portmap["backend"]) == ("nftables", "nftables")
    bridge, portmap, *_ = Chain()(found[0], tmp_path, 0)
    assert "ipMasqBackend" not in bridge
    assert "backend" not in portmap


def test_each_path_has_a_throughput_and_nothing_is_left() -> None:
    command = [NOTHING_LEFT, str(ROOT / "scripts/bench-throughput"), "1", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stderr  # 1: slower than by hand, which a busy machine may say
    rates = {
        path: float(rate) for path, rate in re.findall(r"^(\S.*?) {2,}(\d+\.\d)", done.stdout, re.MULTILINE)
    }
    assert {"veth by hand", "bridge", "routed", "vxlan flat", "vxlan routed", "host gateway"} <= rates.keys()
    assert all(rate > 0 for rate in rates.values())


def test_the_throughput_is_of_whole_seconds() -> None:
    words = [str(ROOT / "scripts/bench-throughput"), "0"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, "SECONDS" in done.stderr) == (2, True)


def test_figures_of_an_earlier_run_are_shown_without_measuring(tmp_path: Path) -> None:
    document = {"machine": {"processor": "p", "kernel": "k", "python": "p", "load": "0.0"}}
    document |= {"contenders": ["Go 1"], "quick": True, "rows": [], "absences": [], "memory": []}
    (tmp_path / "old.json").write_text(json.dumps(document))
    words = arguments(tmp_path, "--from-json", str(tmp_path / "old.json"))
    done = subprocess.run([BENCH, *words], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("p; k; p; load 0.0 before")
    assert (tmp_path / "bench.svg").read_text().startswith("<svg")


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix="podwire-"))  # a short path: it has sockets in it
    words = arguments(tmp_path, "--only", "version", "--only", "pods")
    environ = os.environ | {"TMPDIR": str(work)}
    with subprocess.Popen([BENCH, *words], stderr=subprocess.PIPE, text=True, env=environ) as bench:
        assert bench.stderr
        while "version: " not in bench.stderr.readline():
            assert bench.poll() is None
        # The crowds have begun: there are namespaces, an agent and a store.
        bench.send_signal(signal.SIGTERM)
        bench.stderr.read()
    assert bench.returncode == 128 + signal.SIGTERM
    work.rmdir()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in running.splitlines() if str(work) in line]


def test_an_unknown_work_is_refused_by_name(tmp_path: Path) -> None:
    words = arguments(tmp_path, "--only", "everything")
    done = subprocess.run([BENCH, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "found everything" in done.stderr
