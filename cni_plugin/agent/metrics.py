"""Counters of the agent: plain numbers under one lock, a microsecond for a call.

Nothing here knows how they are shown; `exposition` does, when it is asked. They begin at zero with
the process, as counters of Prometheus do.
"""

from __future__ import annotations

import errno
import threading
from bisect import bisect_left
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from cni_plugin.contract.errors import Code
from cni_plugin.kernel.errors import KernelError
from ipam.seam import part

if TYPE_CHECKING:
    from collections.abc import Iterator

# Upper ends in seconds; a warm ADD takes 4 ms, a deletion 20, a delegate may take seconds.
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SUCCESS, ERROR, ABANDONED = "success", "error", "abandoned"
_VERBS: Final = frozenset({"ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"})
_CODES: Final = frozenset({0, *Code})
# By the first word of the command that does the same by hand.
_SUBSYSTEMS: Final = {
    "ip": "netlink",
    "bridge": "netlink",
    "tc": "netlink",
    "nft": "nft",
    "conntrack": "conntrack",
    "sysctl": "sysctl",
}
_OTHER: Final = "other"


class Operation(NamedTuple):
    """What calls are told apart by. A delegate's own codes are one, so that nobody makes series at will."""

    verb: str
    type: str
    result: str
    code: str


@dataclass(slots=True)
class Histogram:
    """How long calls took: a number for each bucket and one for what is longer, and the sum in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one call."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds


@dataclass(slots=True)
class Numbers:
    """Everything that is counted."""

    operations: Counter[Operation] = field(default_factory=Counter)
    durations: dict[tuple[str, str], Histogram] = field(default_factory=dict)
    """By verb and result."""
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    """What the kernel refused, by subsystem and errno."""
    running: int = 0
    clients_refused: int = 0
    leaked: int = 0
    reclaimed: int = 0
    repairs: Counter[str] = field(default_factory=Counter)
    """What was mended, by kind."""


class _Counters:
    """The numbers of this process, and the lock that they are changed under."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.numbers = Numbers()


@contextmanager
def _changing() -> Iterator[Numbers]:
    counters = part(_Counters)
    with counters.guard:
        yield counters.numbers


def begin_call() -> None:
    """Count a call that has come in."""
    with _changing() as numbers:
        numbers.running += 1


def end_call(operation: Operation, seconds: float) -> None:
    """Count a call that was answered, or given up by its caller, in `seconds`."""
    with _changing() as numbers:
        numbers.running -= 1
        numbers.operations[operation] += 1
        key = (operation.verb, operation.result)
        numbers.durations.setdefault(key, Histogram()).add(seconds)


def count_error(error: BaseException) -> None:
    """Count what the kernel refused, when that is why a call failed."""
    for refusal in _refusals(error):
        with _changing() as numbers:
            numbers.refusals[refusal] += 1


def count_refused_client() -> None:
    """Count a client that found no place, or had no right to one."""
    with _changing() as numbers:
        numbers.clients_refused += 1


def count_garbage(found: int, reclaimed: int) -> None:
    """Count what a collection found left over, and what it reclaimed of that."""
    with _changing() as numbers:
        numbers.leaked += found
        numbers.reclaimed += reclaimed


def count_repair(kind: str) -> None:
    """Count one thing that a running pod or a network had lost, and has again."""
    with _changing() as numbers:
        numbers.repairs[kind] += 1


def snapshot() -> Numbers:
    """Return the numbers of this moment."""
    with _changing() as numbers:
        return Numbers(
            operations=numbers.operations.copy(),
            durations={k: Histogram(list(h.counts), h.total) for k, h in numbers.durations.items()},
            refusals=numbers.refusals.copy(),
            running=numbers.running,
            clients_refused=numbers.clients_refused,
            leaked=numbers.leaked,
            reclaimed=numbers.reclaimed,
            repairs=numbers.repairs.copy(),
        )


def operation(verb: str, plugin_type: str, result: str, code: int) -> Operation:
    """Return what a call counts as."""
    return Operation(
        verb if verb in _VERBS else _OTHER, plugin_type, result, str(code) if code in _CODES else _OTHER
    )


def _refusals(error: BaseException | None) -> Iterator[tuple[str, str]]:
    """Yield the first refusal in a chain of causes."""
    while error is not None:
        program = str(error).partition(" ")[0]
        if isinstance(error, KernelError):
            yield _SUBSYSTEMS.get(program, _OTHER), errno.errorcode.get(error.errno, _OTHER)
            return
        if program == "nft":  # the program, which has words and no number
            yield "nft", "none"
            return
        error = error.__cause__
