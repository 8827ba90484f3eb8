"""Power loss at any write: the store after it gives each address once, and all of them again.

The file operations of ADD, DEL and GC of the executable, and of the Go host-local beside it, are recorded
with strace and done again up to each of them, losing what a file system may lose. Then the machine is
another boot, and the same verbs must put it right.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from cni_plugin.contract.dispatch import answer
from cni_plugin.plugins import PLUGINS
from ipam import boot_mark
from tests.harness.storm.disk import LOSSES, Operation, after, record
from tests.harness.storm.invariants import find_violations, held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.harness.storm.disk import Disk

GO = "/usr/lib/cni/host-local"
NETNS = "/var/run/netns/none"
ANOTHER_BOOT = b"1b4e28ba-2fa1-11d2-883f-b9a761bde3fb"
# Four of each family, and no more are given together than there are of the smaller.
RANGES = [
    [{"subnet": "10.1.0.0/29", "rangeEnd": "10.1.0.5"}],
    [{"subnet": "fd00::/64", "rangeStart": "fd00::2", "rangeEnd": "fd00::5"}],
]
ALL = sorted(f"{net}{i}" for net in ("10.1.0.", "fd00::") for i in range(2, 6))
TERMS = {"plain": {}, "all terms": {"coolDown": 3600, "sticky": True, "keepForRequests": True}}
AGAIN, NOT_NOW = 11, 50


def configuration(data_dir: Path, **keys: Any) -> bytes:
    plugin = {"type": "host-local", "ranges": RANGES, "dataDir": str(data_dir), **keys}
    return json.dumps({"cniVersion": "1.1.0", "name": "net", "ipam": plugin}).encode()


def environment(command: str, name: str) -> dict[str, str]:
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": name or "-",
        "CNI_NETNS": NETNS,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/nowhere",
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name}",
        "PATH": os.environ["PATH"],
        "PYTHONDONTWRITEBYTECODE": "1",
    }


@dataclass
class Verb:
    """One call of the sequence: its operations, and what had been promised when it was over."""

    operations: list[Operation]
    promised: frozenset[str]
    """The containers whose ADD had been answered, and whose DEL had not begun."""
    going: frozenset[str]
    """The containers that the call is about."""


@pytest.fixture(scope="session", params=TERMS)
def sequence(
    request: pytest.FixtureRequest, bin_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Verb]:
    """Record a life of the store, from its first directory on."""
    tmp_path = tmp_path_factory.mktemp("recorded")
    store = tmp_path / "recorded"
    terms = TERMS[request.param]
    program = [str(bin_dir / "podwire-ipam")]
    verbs: list[Verb] = []

    def run(command: str, name: str, argv: Sequence[str] = program, **keys: Any) -> None:
        stdin = configuration(store, **terms)
        document = json.loads(stdin) | keys | ({"cniVersion": "1.0.0"} if argv[0] == GO else {})
        (tmp_path / "stdin").write_text(json.dumps(document))
        before = verbs[-1].promised if verbs else frozenset()
        with (tmp_path / "stdin").open() as file:
            log = tmp_path / f"{len(verbs)}.strace"
            operations = record(argv, store, log, stdin=file, env=environment(command, name))
        going = frozenset({name} - {""}) if command != "GC" else frozenset({"old"})
        verbs.append(Verb(operations, before | going if command == "ADD" else before - going, going))

    run("ADD", "web")
    run("ADD", "old")
    run("ADD", "go", [GO])
    run("DEL", "web")
    run("ADD", "web2", runtimeConfig={"ips": ["10.1.0.2"]})
    attachments = [{"containerID": name, "ifname": "eth0"} for name in ("go", "web2")]
    run("GC", "", **{"cni.dev/valid-attachments": attachments})
    run("DEL", "go", [GO])
    return verbs


@dataclass
class After:
    """The store after the power has come back."""

    place: Path
    count: int = 0

    def call(self, command: str, name: str = "", **keys: Any) -> dict[str, Any]:
        """Call the address manager; it always answers, with an error that has a code if it fails."""
        stdin = json.loads(configuration(self.place)) | keys
        made = answer(environment(command, name), json.dumps(stdin).encode(), PLUGINS["podwire-ipam"])
        said = json.loads(made.stdout or b"{}")
        assert (made.status == 0) == ("code" not in said)
        assert said.get("code", 0) in {0, AGAIN, NOT_NOW}, said
        return said

    def add(self, **keys: Any) -> tuple[str, list[str]] | None:
        """Add a new pod; None when there is no address for it."""
        self.count += 1
        said = self.call("ADD", f"new{self.count}", **keys)
        ips = [ip["address"].partition("/")[0] for ip in said.get("ips", ())]
        return (f"new{self.count}", ips) if ips else None

    def fill(self) -> dict[str, list[str]]:
        """Add pods until there is no address left."""
        return dict(iter(self.add, None))

    def collect(self, pods: dict[str, list[str]]) -> None:
        """Tell it that only these pods live."""
        attachments = [{"containerID": name, "ifname": "eth0"} for name in pods]
        self.call("GC", **{"cni.dev/valid-attachments": attachments})

    def require_all(self, pods: dict[str, list[str]]) -> None:
        """Require that these pods have all addresses that there are, and that each can be released."""
        assert sorted(ip for ips in pods.values() for ip in ips) == ALL
        attached = {(name, "eth0"): ips for name, ips in pods.items()}
        assert find_violations(self.place, "net", attached) == []
        for name in pods:
            self.call("DEL", name)
        assert find_violations(self.place, "net", {}) == []


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Callable[..., After]]:
    """Return what makes a disk real; there is one at a time."""
    place = tmp_path / "replayed"

    def lay(disk: Disk, loss: Callable[[bytes], bytes], mark: bytes | None) -> After:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        disk.lay_out(
            place,
            loss,
            lambda path, found: mark == b"" or os.setxattr(path, boot_mark.BOOT_MARK, mark or found),
        )
        return After(place)

    yield lay
    shutil.rmtree(place, ignore_errors=True)


def cuts(sequence: Sequence[Verb]) -> Iterator[tuple[list[Operation], Verb, Verb]]:
    """Yield all operations up to each one, with the call that was under way and the one before it."""
    done: list[Operation] = []
    before = Verb([], frozenset(), frozenset())
    for verb in sequence:
        for operation in verb.operations:
            done.append(operation)
            if operation.call != "close":
                yield list(done), verb, before
        before = verb


def unmarked(store: After) -> Counter[bool]:
    """Return how many addresses of each family nothing proves dead: files with a content and no mark."""
    found = [name for name, owner in held(store.place, "net").items() if owner[0]]
    marked = {name for name in found if boot_mark.BOOT_MARK in os.listxattr(store.place / "net" / name)}
    return Counter(":" in name for name in found if name not in marked)


def count(what: str, number: int) -> None:
    sys.stdout.write(f"power loss: {number} {what}\n")


@pytest.mark.parametrize("loss", LOSSES)
def test_after_power_loss_at_any_write_every_address_is_given_once(
    sequence: list[Verb], relay: Callable[..., After], loss: str
) -> None:
    """Ours without any help; of what Go has written nothing proves it dead, so that takes one GC."""
    done = 0
    for operations, _, _ in cuts(sequence):
        disk = after(operations)
        store = relay(disk, LOSSES[loss], ANOTHER_BOOT)
        gos = unmarked(store)
        store.call("STATUS")
        pods = store.fill()
        assert len(pods) == 4 - max(gos.values(), default=0)
        store.collect(pods)
        pods |= store.fill()
        store.require_all(pods)
        done += 1
    count(f"cuts, lost: {loss}", done)


def test_after_power_loss_that_took_the_marks_one_gc_finds_every_address(
    sequence: list[Verb], relay: Callable[..., After]
) -> None:
    done = 0
    for operations, _, _ in cuts(sequence):
        store = relay(after(operations), list(LOSSES.values())[done % len(LOSSES)], b"")
        pods = store.fill()
        store.collect(pods)
        pods |= store.fill()
        store.require_all(pods)
        done += 1
    count("cuts, lost: the marks", done)


def test_after_power_loss_that_took_one_change_of_a_directory_every_address_is_given_once(
    sequence: list[Verb], relay: Callable[..., After], request: pytest.FixtureRequest
) -> None:
    """As without a journal. Which change: each of the last ones; with --long each there was."""
    every, done = request.config.getoption("--long"), 0
    for operations, _, _ in cuts(sequence):
        changes = [i for i, operation in enumerate(operations) if operation.changes_directory]
        for lost in changes if every else changes[-4:-1]:
            store = relay(after(operations, without=lost), LOSSES["nothing"], ANOTHER_BOOT)
            pods = store.fill()
            store.collect(pods)
            pods |= store.fill()
            store.require_all(pods)
            done += 1
    count("cuts, lost: one change of a directory", done)


def test_a_kill_at_any_write_takes_no_address_from_a_living_pod(
    sequence: list[Verb], relay: Callable[..., After]
) -> None:
    """The machine goes on: what was promised stays, and a DEL of what was under way releases the rest."""
    done = 0
    for operations, verb, before in cuts(sequence):
        store = relay(after(operations), LOSSES["nothing"], None)
        living = before.promised - verb.going
        taken = {ip: owner for ip, owner in held(store.place, "net").items() if owner[0] in living}
        assert {owner for owner, _ in taken.values()} == living
        pods = store.fill()
        assert not {ip for ips in pods.values() for ip in ips} & taken.keys()
        for name in verb.going:
            store.call("DEL", name)
        pods |= store.fill()
        pods |= {name: [ip for ip, owner in taken.items() if owner[0] == name] for name in living}
        store.require_all(pods)
        done += 1
    count("cuts, the machine went on", done)
