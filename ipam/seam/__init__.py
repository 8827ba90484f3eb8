"""The seam: every change outside this process passes `step`, and what calls share hangs on `Process`.

`step` is for the tests of faults. In production it is one call more, 0.1 microseconds. A test that starts
the program itself sets `hook` and then sees each step before it is made: it can refuse it, make it and lose
the answer, or end the process on either side of it. Nothing else sets it: no environment variable, no
configuration. A process of one call has an empty `Process`. An agent has one with the sockets, caches and
counters of all its calls, and while a call waits another computes.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

T = TypeVar("T")

hook: Callable[[str, Callable[..., Any], tuple[Any, ...]], Any] | None = None


def step(kind: str, call: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401 - whatever `call` takes
    """Call `call(*arguments)`, which changes something outside of this process; `kind` says what.

    A kind that takes several changes at once has these alone as its arguments.
    """
    if hook is None:
        return call(*arguments)
    made: T = hook(kind, call, arguments)
    return made


class Process:
    """What one process of ours remembers; a part is made when it is first asked for, by any thread."""

    current: ClassVar[Process]

    def __init__(self, let_others: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Remember nothing yet; `let_others` surrounds each wait of a call."""
        self.let_others = let_others
        self._parts: dict[object, object] = {}

    def begin(self) -> None:
        """Be the object of this process from now on."""
        Process.current = self

    def part(self, make: Callable[[], T]) -> T:
        """Return what `make` made, the same for all who name it."""
        found = self._parts.get(make)
        if found is None:
            # Of two threads that come here together both get what the first has put there.
            found = self._parts.setdefault(make, make())
        return cast("T", found)


Process().begin()


def part(make: Callable[[], T]) -> T:
    """Return what `make` made for this process."""
    return Process.current.part(make)
