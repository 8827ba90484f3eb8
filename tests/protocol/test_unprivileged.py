"""What a user of the node without privileges reaches: nothing that he could read, hold or change."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOT
from tests.harness.agents import start_agent
from tests.harness.answers import refusal
from tests.harness.cluster import make_cluster
from tests.harness.networks import V4, dual_stack, network, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import Node

NOBODY = 65534
# Opened for reading is enough to hold a lock of flock(2).
TAKE = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
MEMORY = {"sticky": True, "coolDown": 1, "keepForRequests": True}
POD = {"CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web"}


@pytest.fixture
def careless() -> Iterator[None]:
    """Start everything as a runtime would that takes no permission from what it makes."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def public() -> Iterator[Path]:
    """Return a directory that everybody may enter, as /var/lib and /run are."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_nobody(code: str, *words: object) -> str:
    """Run Python as a user without privileges; return what it complains of, nothing when it succeeds."""
    command = ["/usr/bin/python3", "-IS", "-c", code, *map(str, words)]
    done = subprocess.run(command, check=False, user=NOBODY, group=NOBODY, capture_output=True, text=True)
    return done.stderr


def modes(root: Path) -> dict[str, str]:
    """Return the mode of all that is below, links not followed."""
    found = (path for path in root.rglob("*") if not path.is_symlink())
    return {str(path.relative_to(root)): stat.filemode(path.lstat().st_mode) for path in found}


def open_to_others(root: Path) -> dict[str, str]:
    """Return the directories that others may write to, and the files that they may even read."""
    return {
        name: mode
        for name, mode in modes(root).items()
        if (mode[0] == "d" and "w" in mode[4:]) or (mode[0] != "d" and mode[4:] != "------")
    }


@pytest.mark.parametrize("command", ["status", "doctor", "sync", "mtu", "gc", "uninstall", "ipam check"])
def test_a_user_who_may_not_look_is_told_so_and_nothing_else(command: str) -> None:
    """Without its right to look a command would say that there is no network, or nothing wrong."""
    # A user namespace without a mapping: the id is nobody's, and Python can still read its own files.
    words = ["unshare", "--user", sys.executable, "-m", "cni_plugin", *command.split()]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    asked = command.partition(" ")[0]
    assert done.stderr == f"podwire: wanted root, found user id {NOBODY}: sudo podwire {asked}\n"


@pytest.mark.usefixtures("careless")
def test_files_are_their_makers_alone_whatever_the_umask(plain_node: Node) -> None:
    node, pod = plain_node, plain_node.pod()
    config = dual_stack(node, ipMasq=True, sysctl={"net.core.somaxconn": "99"})
    config["ipam"] |= MEMORY
    node.add(config, pod, environ=POD)
    assert len(modes(node.data_dir)) > 8
    assert open_to_others(node.data_dir) == {}
    node.delete(config, pod, environ=POD)
    assert open_to_others(node.data_dir) == {}


@pytest.mark.usefixtures("careless")
def test_what_a_sync_remembers_is_its_makers_alone_too(tmp_path: Path, bin_dir: Path) -> None:
    """Who could write the stamp could name a peer: it keeps the last good words of a peers file."""
    cluster = make_cluster(tmp_path, bin_dir, 2)
    try:
        cluster.start_pods("flat")
        for node in cluster.nodes.values():
            assert ".podwire/test.peers" in modes(node.data_dir)
            assert open_to_others(node.data_dir) == {}
    finally:
        cluster.remove()


@pytest.mark.usefixtures("careless")
def test_what_tuning_keeps_is_its_makers_alone(plain_node: Node, public: Path) -> None:
    node, pod = plain_node, plain_node.pod()
    result = node.add(dual_stack(node), pod)
    directory = public / "cni/tuning"
    config = {"cniVersion": "1.1.0", "name": "test", "type": "tuning", "dataDir": str(directory)}
    config |= {"sysctl": {"net.core.somaxconn": "99"}, "prevResult": result}
    named = node.tmp / "tuning"
    named.write_bytes((node.bin_dir / "podwire").read_bytes())
    named.chmod(0o755)
    node.add(config, pod, program=str(named))
    assert list(modes(directory)) == [f"{pod.container_id}_eth0.json"]
    assert open_to_others(public) == {}
    assert "Permission denied" in as_nobody("import os, sys; os.listdir(sys.argv[1])", directory)


@pytest.mark.parametrize("made_by", ["ours", "Go"])
def test_nobody_else_can_hold_the_lock_of_the_store(plain_node: Node, public: Path, made_by: str) -> None:
    """One who may read it could hold it for ever: every ADD would wait in vain. Go's is readable by all."""
    lock = public / "networks/test/lock"
    if made_by == "Go":
        lock.parent.mkdir(parents=True)
        lock.touch(0o644)
        assert as_nobody(TAKE, lock) == ""
    config: dict[str, Any] = network(plain_node, V4)
    config["ipam"]["dataDir"] = str(public / "networks")
    plain_node.add(config, plain_node.pod())
    assert "Permission denied" in as_nobody(TAKE, lock)
    assert "Permission denied" in as_nobody("import sys; open(sys.argv[1])", lock.parent / "10.22.0.2")


@pytest.mark.usefixtures("careless")
def test_nobody_else_can_keep_the_agent_from_starting(public: Path) -> None:
    directory = public / "run"
    directory.mkdir(mode=0o755)
    connect = "import socket, sys; socket.socket(1).connect(sys.argv[1])"
    with start_agent(directory / "a.sock") as agent:
        assert "Permission denied" in as_nobody(connect, agent.socket)
        assert "Permission denied" in as_nobody(TAKE, f"{agent.socket}.lock")
        wait_for(Path(f"{agent.socket}.seen"))
        made = {name: mode for name, mode in modes(directory).items() if not name.endswith(".log")}
        sockets = dict.fromkeys(("a.sock", "a.sock.next"), "srw-------")
        assert made == sockets | dict.fromkeys(("a.sock.lock", "a.sock.seen"), "-rw-------")
        assert agent.stop() == 0


@pytest.mark.parametrize(
    "name",
    [
        "test/lock",
        "test/10.22.0.2",
        "test/last_reserved_ip.0",
        ".podwire/test.new",
        ".podwire/test.released",
        ".podwire/test.sticky",
        ".podwire/tuning/POD_eth0.json.new",
    ],
)
def test_no_link_in_the_store_leads_a_write_out_of_it(plain_node: Node, name: str) -> None:
    node, pod = plain_node, plain_node.pod()
    config = network(node, V4, sysctl={"net.core.somaxconn": "99"})
    config["ipam"] |= MEMORY
    outside, link = node.tmp / "outside", node.data_dir / name.replace("POD", pod.container_id)
    outside.write_text("as it was")
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    answer = node.call("ADD", config, pod, environ=POD)
    if answer.status != 0:
        assert refusal(answer)[0] in {5, 11}
    node.call("DEL", config, pod, environ=POD)
    assert outside.read_text() == "as it was"
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644


def test_the_image_is_made_by_a_user_to_whom_the_tests_environment_is_closed(public: Path) -> None:
    """Root's run of the tests leaves an environment in the checkout that may lead below /root."""
    closed = public / "closed"
    (closed / "bin").mkdir(parents=True)
    (closed / "bin/python").symlink_to("/usr/bin/python3")
    closed.chmod(0o700)
    checkout = public / "checkout"
    shutil.copytree(ROOT / "scripts", checkout / "scripts")
    shutil.copy(ROOT / "pyproject.toml", checkout)
    (checkout / "cni_plugin").mkdir()
    shutil.copy(ROOT / "cni_plugin/__init__.py", checkout / "cni_plugin")  # where the version stands
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to(closed / "bin/python")
    command = ["/usr/bin/python3", checkout / "scripts/image", "--help"]
    done = subprocess.run(command, check=False, user=NOBODY, group=NOBODY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
