"""A node with a network of ours, what the doctor says of it, and doing what he says."""

from __future__ import annotations

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cni_plugin.cli import main
from cni_plugin.kernel.netns import inside
from tests.conftest import ROOT

if TYPE_CHECKING:
    from tests.harness.node import Node

Found = dict[str, Any]


def words(node: Node, *more: str) -> list[str]:
    """Return the command with every place that it would look at on the machine put into the node's own."""
    return [
        *(str(node.bin_dir / "podwire"), "doctor", "--conf-dir", str(conf_dir(node))),
        *("--bin-dir", str(node.bin_dir), "--state-file", str(node.tmp / "cluster.json")),
        *("--containerd-config", str(node.tmp / "config.toml"), "--cache-dir", str(node.tmp / "results")),
        *more,
    ]


def conf_dir(node: Node) -> Path:
    made = node.tmp / "net.d"
    made.mkdir(exist_ok=True)
    return made


def examine(node: Node, *more: str) -> list[Found]:
    """Return the findings of the command, notes left out.

    It runs in a thread inside the node's namespace: a process each would be half of the tests' time.
    """
    text = io.StringIO()
    with redirect_stdout(text), ThreadPoolExecutor(1) as threads:
        status = threads.submit(_run_inside, node, words(node, "--json", *more)[1:]).result()
    said = json.loads(text.getvalue())
    found = [each for each in said["findings"] if each["severity"] != "note"]
    assert said["healthy"] == (status == 0) == (not found)
    return found


def _run_inside(node: Node, argv: list[str]) -> int:
    with Path(node.path).open() as opened, inside(opened.fileno()):
        return main.main(argv)


def the_only(found: list[Found]) -> Found:
    assert len(found) == 1, json.dumps(found, indent=2)
    return found[0]


def mend(node: Node, remedy: str) -> None:
    """Run a remedy as it was printed, in the checkout, with podwire in PATH."""
    path = f"{node.bin_dir}:{os.environ['PATH']}"
    node.run("env", f"PATH={path}", "sh", "-ec", remedy, cwd=ROOT)
