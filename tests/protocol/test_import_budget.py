"""What a CNI call imports: modules are most of what a short process costs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import in_process
from tests.harness.answers import assert_ok
from tests.harness.networks import dual_stack

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Completed, Node

# Measured with Python 3.11, plus a margin of five. What is over it must be worth its time.
BUDGET = {"VERSION": 91, "ADD": 218, "CHECK": 201, "DEL": 210}
# pyroute2 is for what pods share, subprocess for delegates and nft, vxlan a mode that was not asked for.
NEVER = {
    "argparse",
    "asyncio",
    "cni_plugin.attach.segment",
    "cni_plugin.backend.host_gateway",
    "cni_plugin.backend.vxlan",
    "concurrent.futures",
    "http",
    "multiprocessing",
    "pyroute2",
    "ssl",
    "subprocess",
    "unittest",
}
ONLY_WITH_A_POD = {"ctypes", "ipam", "netaddr"}


@pytest.fixture
def counted(node: Node, tmp_path: Path) -> str:
    """Return the executable under Python's own import log."""
    script = tmp_path / "counted"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -IS -X importtime {node.bin_dir}/podwire\n")
    script.chmod(0o755)
    return str(script)


def imported(answer: Completed) -> set[str]:
    assert answer.status == 0, answer.stdout
    lines = [line for line in answer.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines[1:]}


@in_process
def test_a_call_imports_no_more_than_it_needs(node: Node, counted: str) -> None:
    pod, config = node.pod(), dual_stack(node)
    node.add(config, node.pod())  # the bridge is there, as it is for every pod but the first
    modules = {"VERSION": imported(node.call("VERSION", config, program=counted))}
    added = node.call("ADD", config, pod, program=counted)
    modules |= {"ADD": imported(added)}
    modules |= {"CHECK": imported(node.check(config, added.json, pod, program=counted))}
    modules |= {"DEL": imported(node.call("DEL", config, pod, program=counted))}
    assert {verb: sorted(found & NEVER) for verb, found in modules.items()} == {verb: [] for verb in modules}
    assert modules["VERSION"] & ONLY_WITH_A_POD == set()
    assert {"cni_plugin.kernel.link", "ipam"} <= modules["ADD"]
    over = {verb: len(found) for verb, found in modules.items() if len(found) > BUDGET[verb]}
    assert over == {}


@in_process
def test_a_refusal_by_the_environment_alone_imports_no_plugin(node: Node, counted: str) -> None:
    answer = node.call("ADD", "{}", program=counted, environ={"CNI_CONTAINERID": "x"})
    assert answer.json["code"] == 4
    assert "netaddr" not in answer.stderr
    assert_ok(node.call("DEL", dual_stack(node), node.pod()))
