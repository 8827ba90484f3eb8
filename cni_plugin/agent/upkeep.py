"""Keeps what running pods need: mends what they have lost, at the kernel's news and from time to time.

The agent does it in a thread of its own; on a node of a cluster `podwire cluster` does it, with the same
function, beside all that it asks of the node.
"""

from __future__ import annotations

import os
import threading
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cni_plugin.agent import metrics
from cni_plugin.agent.journal import own, render_pairs
from cni_plugin.contract.errors import CNIError
from cni_plugin.kernel.monitor import Monitor
from cni_plugin.kernel.netns import open_host
from cni_plugin.node.configured import read_configured
from cni_plugin.node.loop import Loop
from cni_plugin.node.repair import mend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.node.repair import Wrong


@dataclass
class Keeper:
    """Takes the steps; says what was mended, and once what cannot be."""

    conf_dir: str
    bin_dir: str
    results_dir: str
    _said: frozenset[str] = field(default=frozenset())

    def step(self) -> bool:
        """Mend what can be mended; tell whether nothing was refused."""
        try:
            self.mend()
        except (CNIError, OSError) as error:
            own.warning(render_pairs(repair=str(error)))
            return False
        except Exception:  # noqa: BLE001  a thread that ends would mend nothing more, and nobody would know
            own.exception("unexpected")
            return False
        return True

    def mend(self) -> list[Wrong]:
        """Mend what can be mended and return it."""
        with open_host() as host:
            done = mend(read_configured(self.conf_dir, self.bin_dir), self.results_dir, host)
        for wrong in done.mended:
            own.info(render_pairs(mended=str(wrong), kind=wrong.damage.kind))
            metrics.count_repair(wrong.damage.kind)
        left = frozenset(map(str, done.left))
        for words in sorted(left - self._said):
            own.warning(render_pairs(wrong=words))
        self._said = left
        return done.mended


@contextmanager
def keeping(keeper: Keeper | None, resync: float) -> Iterator[None]:
    """Keep this node's pods during the block, looking at everything each `resync` seconds; None for not."""
    if keeper is None:
        yield
        return
    ended = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    with closing(Monitor()) as monitor, closing(Loop(resync, monitor, (ended,))) as loop:
        thread = threading.Thread(target=loop.run, args=(keeper,), name="upkeep", daemon=True)
        thread.start()
        try:
            yield
        finally:
            os.eventfd_write(ended, 1)
            thread.join()
            os.close(ended)
