"""The hook of the seam: counts steps, refuses one, loses its answer, or ends the process beside it.

One netlink send carries several changes, each a step of its own: the kernel goes on after one that it
refused, so a refusal in the middle is the others made and this one not. A batch of nftables is made
whole or not at all.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from cni_plugin.kernel.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

REFUSALS = ("EPERM", "ENOSPC", "ENOMEM", "EBUSY", "EIO")
LOST = "time-out"  # it was made, and nobody will ever hear of it
FAILURES = (*REFUSALS, LOST)
DEATHS = ("kill before", "kill after")
LATER = "all that follow"


@dataclass(frozen=True)
class Fault:
    """What happens at which steps of a call, by their number from 0; `how` is of FAILURES or DEATHS."""

    at: frozenset[int]
    how: str
    onwards: bool = False
    """At every later step, too."""

    def hits(self, number: int) -> bool:
        return number in self.at or (self.onwards and number > min(self.at))

    @property
    def errno(self) -> int:
        return getattr(errno, self.how, errno.EAGAIN)


@dataclass
class Steps:
    """The hook: calls what it is asked to and keeps what that was, `KIND WORDS` each."""

    fault: Fault | None = None
    made: list[str] = field(default_factory=list)
    struck: list[str] = field(default_factory=list)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, kind: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        words = list(describe(kind, arguments))
        with self.guard:
            first = len(self.made)
            self.made += [f"{kind} {each}" for each in words]
        struck = {i for i in range(len(words)) if self.fault and self.fault.hits(first + i)}
        if not struck or self.fault is None:
            return call(*arguments)
        self.struck += [self.made[first + i] for i in sorted(struck)]
        if kind == "netlink":
            return list(self._send(self.fault, call, arguments, struck))
        return self._strike(self.fault, kind, call, arguments)

    def _send(
        self, fault: Fault, call: Callable[..., Any], changes: Sequence[Any], struck: set[int]
    ) -> Iterator[KernelError]:
        for i, change in enumerate(changes):
            if i not in struck:
                yield from call(change)
            elif fault.how in REFUSALS:
                yield KernelError(change.command, fault.errno)
            elif fault.how == LOST:
                call(*changes[i:])
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            else:
                self._die(fault, lambda: call(change))  # noqa: B023 - it is called at once

    def _strike(self, fault: Fault, kind: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if fault.how in DEATHS:
            self._die(fault, lambda: call(*arguments))
        if kind == "lock":
            # Not had: it would be nobody's to release.
            raise OSError(fault.errno, fault.how) if fault.how in REFUSALS else Timeout("lock")
        if fault.how in REFUSALS:
            raise self._refusal(kind, fault.errno, arguments)
        return _lose(kind, call, arguments)

    @staticmethod
    def _refusal(kind: str, number: int, arguments: tuple[Any, ...]) -> Exception:
        if kind in {"nftables", "conntrack"}:
            return KernelError(next(describe(kind, arguments)), number)
        named = [words for words in arguments[:1] if isinstance(words, str)]
        return OSError(number, os.strerror(number), *named)

    @staticmethod
    def _die(fault: Fault, call: Callable[[], Any]) -> None:
        try:
            if fault.how == "kill after":
                call()
        finally:  # what an earlier death has left may be what is refused
            os.kill(os.getpid(), signal.SIGKILL)


def _lose(kind: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Make it and do not tell: the answer is late, the program is killed, the disk speaks at the end."""
    if kind == "write":
        fd, content = arguments
        return call(fd, content[: len(content) // 2])
    answer = call(*arguments)
    if isinstance(answer, subprocess.CompletedProcess):
        return subprocess.CompletedProcess(answer.args, -signal.SIGKILL, "", "")
    if kind == "program":
        return -signal.SIGKILL, b"", b""
    if kind in {"nftables", "conntrack"}:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    if kind == "create" and isinstance(answer, int):
        os.close(answer)
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def describe(kind: str, arguments: tuple[Any, ...]) -> Iterator[str]:
    """Yield the steps of one call in words, without what differs from run to run."""
    if kind in {"netlink", "nftables"}:
        yield from (change.command for change in arguments)
    elif kind == "program":
        yield " ".join(arguments[0])
    elif kind == "lock":
        yield ""
    elif kind in {"write", "truncate", "mark"} and isinstance(arguments[0], int):
        yield os.readlink(f"/proc/self/fd/{arguments[0]}")
    elif kind in {"link", "rename"}:
        yield f"{arguments[0]} {arguments[1]}"
    else:
        yield str(arguments[0])
