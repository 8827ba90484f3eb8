"""Waits of a call; in an agent other calls compute meanwhile.

An agent says how (cni_plugin/agent/run_lock.py); in a process of one call there is nobody to let.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

let_others: Callable[[], AbstractContextManager[None]] = nullcontext


def waiting() -> AbstractContextManager[None]:
    """Return what surrounds a wait for the kernel, for another call or for a program."""
    return let_others()


def sleep(seconds: float) -> None:
    """Do nothing for so long."""
    with waiting():
        time.sleep(seconds)
