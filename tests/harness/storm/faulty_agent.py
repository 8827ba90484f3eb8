"""An agent whose calls fail or die where a file says: `faulty_agent.py ORDERS python -m cni_plugin agent`.

The file holds a step's number and what happens there; when it is written anew, steps are counted from 0
again. What was made since then is in ORDERS.made, a line each.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[3]))

from cni_plugin.__main__ import main
from ipam import seam
from tests.harness.storm.faulting import Fault, Steps

if TYPE_CHECKING:
    from collections.abc import Callable


class Armed:
    """The hook: steps of calls, which have threads of their own, are counted, the agent's own are not."""

    def __init__(self, orders: Path) -> None:
        self.orders, self.read, self.steps = orders, -1, Steps()

    def __call__(self, kind: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if threading.current_thread() is threading.main_thread():
            return call(*arguments)
        written = self.orders.stat().st_mtime_ns
        if written != self.read:
            at, _, how = self.orders.read_text().partition(" ")
            self.read, self.steps = written, Steps(Fault(frozenset({int(at)}), how))
        try:
            return self.steps(kind, call, arguments)
        finally:
            Path(f"{self.orders}.made").write_text("\n".join(self.steps.made))


if __name__ == "__main__":
    seam.hook = Armed(Path(sys.argv[1]))
    sys.argv = sys.argv[4:]  # from `cni_plugin` on
    sys.exit(main())
