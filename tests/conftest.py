"""Fixtures of every test: the executables, a node of one's own, and a guard around the machine."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from cni_plugin.kernel.netns import IdleSockets
from ipam.seam import Process, part
from tests.harness.agents import start_agent
from tests.harness.node import Bridges, Node, make_node
from tests.harness.sharing import made_once
from tests.harness.unreleased import list_unreleased

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xdist.remote import Producer

ROOT = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what makes the storms, the fuzzers and the like run for as long as they are worth."""
    parser.addoption("--long", action="store_true", help="the long forms of storms, fuzzing and power cuts")


@pytest.fixture(scope="session")
def bin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the executables once for all workers, from this checkout and this interpreter.

    No agent ever listens where they look for one.
    """
    return made_once(
        tmp_path_factory,
        "podwire-bin",
        lambda staged: install(staged, staged.with_suffix("") / "none.sock"),
    )


@pytest.fixture(scope="session")
def agent_bin_dirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Install both shims for a running agent, which works in the namespace of who calls it."""
    made = tmp_path_factory.mktemp("agent")
    bin_dirs = {"agent": made / "bin", "shim": made / "shim"}
    install(bin_dirs["agent"], made / "a.sock")
    install(bin_dirs["shim"], made / "a.sock", "--shim")
    with start_agent(made / "a.sock") as agent:
        yield bin_dirs
        assert agent.stop() == 0, agent.log.read_text()


def install(bin_dir: Path, socket: Path, *options: str) -> None:
    """Run scripts/install with this checkout and this interpreter."""
    places = ["--bin-dir", str(bin_dir), "--python", sys.executable, "--socket", str(socket)]
    places += ["--record", f"{bin_dir}.installed"]
    subprocess.run([str(ROOT / "scripts/install"), *places, *options], check=True, capture_output=True)


# The ways that a runtime must not tell apart: the executable does the work itself, it finds an
# agent, and it is the C shim. What the two shims do differently shows in the protocol.
WAYS = ("process", "shim")
PROTOCOL_WAYS = ("process", "agent", "shim")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test with a node in each way, unless it names its own."""
    named = any("node" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "node" in metafunc.fixturenames and not named:
        in_protocol = "protocol" in metafunc.definition.path.parts
        metafunc.parametrize("node", PROTOCOL_WAYS if in_protocol else WAYS, indirect=True)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a row of a table by what is in it; numbers, texts and functions pytest names itself."""
    if isinstance(val, (dict, list, tuple, set, frozenset)):
        return re.sub(r"[^\w.:/=+,]+", "-", _show(val)).strip("-")[:60] or "empty"
    return None


def _show(value: object) -> str:
    """Return the same words in every worker: no addresses in memory, no order of a set."""
    if isinstance(value, dict):
        return ",".join(f"{key}={_show(member)}" for key, member in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(map(_show, value))
    if isinstance(value, (set, frozenset)):
        return ",".join(sorted(map(_show, value)))
    known = isinstance(value, (bool, int, float, str, bytes)) or value is None
    return str(value) if known else getattr(value, "__name__", type(value).__name__)


@pytest.fixture
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """Return a node that is a network namespace of this test's own."""
    if request.param == "process":
        bin_dir = request.getfixturevalue("bin_dir")
    else:
        bin_dir = request.getfixturevalue("agent_bin_dirs")[request.param]
    made = make_node(tmp_path, bin_dir)
    yield made
    made.remove()


# For what looks into the process that does the work: its imports, its signals, its mounts.
in_process = pytest.mark.parametrize("node", ["process"], indirect=True)


@pytest.fixture
def plain_node(tmp_path: Path, bin_dir: Path) -> Iterator[Node]:
    """Return a node whose executables do the work themselves; a test may start an agent of its own."""
    made = make_node(tmp_path, bin_dir)
    yield made
    made.remove()


@pytest.fixture(params=[0, 1], ids=["br_netfilter off", "br_netfilter on"])
def filtering(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a test of packets between pods of a bridge with both values of net.bridge.bridge-nf-call-iptables.

    Its nodes are made with the value; else they have what is the machine's default.
    """
    monkeypatch.setattr(Bridges, "filtering", request.param)
    return int(request.param)


both_filterings = pytest.mark.usefixtures("filtering")


@pytest.fixture(autouse=True)
def _own_process() -> Iterator[None]:
    """Let a test remember nothing of another, whether it calls the program's functions or starts an agent."""
    before, mine = Process.current, Process()
    mine.begin()
    yield
    _close_idle_sockets()
    mine.begin()  # where the test began one itself, as an agent does
    _close_idle_sockets()
    before.begin()


def _close_idle_sockets() -> None:
    """Close what is kept for the next call, of which there is none; each holds its namespace."""
    for nftables in chain.from_iterable(part(IdleSockets).nftables.values()):
        nftables.close()


@pytest.fixture(autouse=True)
def _host_untouched() -> Iterator[None]:
    """Fail a test that changes the machine's own links, or its default state directory."""
    before = _host_state()
    yield
    assert _host_state() == before


def _host_state() -> tuple[object, ...]:
    links = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    names = [line.partition(":")[0].strip() for line in links]
    # Other tests' namespaces come and go beside this one, but never a link of the machine's own.
    installed = (
        "/var/lib/cni/networks",
        "/var/lib/podwire",
        "/usr/local/bin/podwire",
        "/usr/local/lib/podwire",
    )
    return " ".join(sorted(names)), [Path(path).exists() for path in installed]


class OneCluster(LoadScopeScheduling):  # type: ignore[misc]
    """Every test goes to whichever worker is free, but those of one cluster go to one, at the beginning."""

    def _split_scope(self, nodeid: str) -> str:
        return "cluster" if nodeid.startswith("tests/kubernetes/") else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneCluster:
    """Let pytest-xdist 3.8 group tests: its own groups are lost with pytest 9.2."""
    return OneCluster(config, log)


# What was there before the first test, and what the workers of a run have left.
_known: set[int] = set()
_unreleased: list[str] = []


def pytest_sessionstart() -> None:
    """Note what is not of tests."""
    _known.update(list_unreleased())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a worker says that its tests have left."""
    _unreleased.extend(getattr(node, "workeroutput", {}).get("unreleased", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run whose tests have left something to the garbage collector, which would only be printed."""
    _close_idle_sockets()
    left = [words for number, words in list_unreleased().items() if number not in _known]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["unreleased"] = left
    elif not hasattr(session.config.option, "numprocesses") or not session.config.option.numprocesses:
        _unreleased.extend(left)  # with workers the processes are these
    if _unreleased and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests measured and counted."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    properties = [each for report in reports for each in report.user_properties]
    measured = [value for key, value in properties if key == "figures"]
    if measured:
        terminalreporter.section("figures")
        for line in measured:
            terminalreporter.line(line)
    if _unreleased:
        terminalreporter.section("left to the garbage collector", red=True)
        for line in _unreleased:
            terminalreporter.line(line)
    _write_faults(terminalreporter, [value for key, value in properties if key == "faults"])


def _write_faults(terminalreporter: pytest.TerminalReporter, found: list[dict[str, Any]]) -> None:
    """Print how many steps were refused and were the last, by verb: see tests/storm/test_faults.py."""
    if not found:
        return
    terminalreporter.section("steps at which a call failed or was killed")
    for verb in dict.fromkeys(each["verb"] for each in found):
        counts = {
            key: sum(e[key] for e in found if e["verb"] == verb) for key in ("steps", "faults", "kills")
        }
        terminalreporter.line(
            f"{verb:10} {counts['steps']:6} steps {counts['faults']:6} failures {counts['kills']:6} kills"
        )
