"""Where every change is made, to kernel, files and by programs, and undone; tests of faults hook in.

In production it is one call more, 0.1 microseconds. A test that starts the program itself sets `hook`
and then sees each step before it is made: it can refuse it, make it and lose the answer, or end
the process on either side of it. Nothing else sets it: no environment variable, no configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

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
