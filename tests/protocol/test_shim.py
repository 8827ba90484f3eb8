"""The two shims: what they need, and what they answer when the agent does not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOT, install
from tests.harness.agents import start_agent
from tests.harness.networks import network

if TYPE_CHECKING:
    from tests.harness.node import Node


@pytest.fixture(params=["python", "c"])
def shim_node(request: pytest.FixtureRequest, plain_node: Node) -> Node:
    """Return a node whose executables are a shim that looks for an agent at `a.sock` in its directory."""
    plain_node.bin_dir = plain_node.tmp / "bin"
    options = ["--shim"] if request.param == "c" else []
    install(plain_node.bin_dir, plain_node.tmp / "a.sock", *options)
    return plain_node


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a root directory that holds the C shim and nothing else."""
    made = tmp_path / "root"
    made.mkdir()
    install(tmp_path / "bin", Path("/a.sock"), "--shim")
    (tmp_path / "bin/podwire").rename(made / "podwire")
    return made


def in_root(root: Path, command: str) -> dict[str, Any]:
    environ = {"CNI_COMMAND": command}
    done = subprocess.run(
        ["/usr/sbin/chroot", root, "/podwire"], env=environ, input=b"", capture_output=True, check=False
    )
    assert done.stderr == b""
    return json.loads(done.stdout) | {"status": done.returncode}


def test_the_c_shim_works_in_an_empty_root(root: Path) -> None:
    assert [path.name for path in root.iterdir()] == ["podwire"]
    with start_agent(root / "a.sock"):
        answer = in_root(root, "VERSION")
    assert answer["status"] == 0
    assert "1.1.0" in answer["supportedVersions"]


@pytest.mark.parametrize(("command", "code"), [("ADD", 11), ("DEL", 11), ("VERSION", 11), ("STATUS", 50)])
def test_the_c_shim_without_an_agent_names_the_socket(root: Path, command: str, code: int) -> None:
    answer = in_root(root, command)
    assert (answer["status"], answer["code"]) == (1, code)
    assert answer["msg"] == "podwire agent at /a.sock: wanted an answer, found No such file or directory"


def test_the_c_shim_says_that_it_has_no_commands(root: Path) -> None:
    """A script must not take what a runtime gets without a verb for "nothing found"."""
    command = ["/usr/sbin/chroot", str(root), "/podwire", "doctor"]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "has no commands: run `podwire doctor` where its agent runs" in done.stderr


def test_the_c_shim_is_small() -> None:
    assert len((ROOT / "shim/podwire-shim.c").read_text().splitlines()) <= 150


def test_the_python_shim_imports_builtins_only(plain_node: Node) -> None:
    path = plain_node.tmp / "bin"
    install(path, plain_node.tmp / "a.sock")
    with start_agent(plain_node.tmp / "a.sock"):
        imported = [_imports([str(path / "podwire")]), _imports(["-c", "pass"])]
    assert imported[0] - imported[1] <= {*sys.builtin_module_names, "_socket"}


def _imports(arguments: list[str]) -> set[str]:
    command = [sys.executable, "-IS", "-X", "importtime", *arguments]
    environ = os.environ | {"CNI_COMMAND": "VERSION"}
    done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    return set(re.findall(r"\| +(\S+)$", done.stderr.decode(), re.MULTILINE)) - {"package"}


def test_the_wanted_interpreter_flags_and_marker_head_the_executable(bin_dir: Path) -> None:
    head = (bin_dir / "podwire").read_text().splitlines()[:2]
    assert head[0] == f"#!{sys.executable} -IS"
    assert head[1].startswith("# podwire-cni-executable")


def test_an_agent_killed_during_a_call_is_an_error_to_retry(shim_node: Node) -> None:
    node = shim_node
    (node.bin_dir / "slow").write_text("#!/bin/sh\nsleep 20\n")
    (node.bin_dir / "slow").chmod(0o755)
    config, pod = network(node) | {"ipam": {"type": "slow"}}, node.pod()
    with start_agent(node.tmp / "a.sock") as agent, ThreadPoolExecutor() as pool:
        waiting = pool.submit(node.call, "ADD", config, pod)
        time.sleep(0.7)
        agent.kill()
        answer = waiting.result()
    assert (answer.status, answer.json["code"]) == (1, 11)
    assert f"podwire agent at {node.tmp}/a.sock: wanted an answer" in answer.json["msg"]
    with start_agent(node.tmp / "a.sock"):
        node.delete(network(node), pod)
    assert [name for name in node.links() if name.startswith("veth")] == []


def test_a_terminal_as_stdin_is_not_waited_for(shim_node: Node) -> None:
    master, terminal = os.openpty()
    command = [str(shim_node.bin_dir / "podwire")]
    environ = os.environ | {"CNI_COMMAND": "VERSION"}
    try:
        with start_agent(shim_node.tmp / "a.sock"):
            done = subprocess.run(
                command, env=environ, stdin=terminal, capture_output=True, check=True, timeout=20
            )
    finally:
        os.close(master)
        os.close(terminal)
    assert b"supportedVersions" in done.stdout


def test_a_gc_of_megabytes_passes(shim_node: Node) -> None:
    node = shim_node
    attachments = [{"containerID": f"{n:064x}", "ifname": "eth0"} for n in range(30_000)]
    config = network(node, [{"subnet": "10.22.0.0/24"}]) | {"cni.dev/valid-attachments": attachments}
    with start_agent(node.tmp / "a.sock") as agent:
        assert node.call("GC", config).status == 0
        assert "verb=GC" in agent.lines()[-1]


def test_a_silent_agent_is_waited_for(shim_node: Node) -> None:
    """A queue is patience: what limits a call is its runtime, not the shim."""
    with start_agent(shim_node.tmp / "a.sock", "--workers", 1) as agent, ThreadPoolExecutor() as pool:
        os.kill(agent.process.pid, 19)
        waiting = pool.submit(shim_node.call, "VERSION", b"")
        threading.Event().wait(0.5)
        assert not waiting.done()
        os.kill(agent.process.pid, 18)
        assert waiting.result().status == 0
