"""The presence: when an agent was last here, in a file beside its socket that shims read.

    cat /run/podwire/podwire.sock.seen    # the boot's id, and its seconds (CLOCK_BOOTTIME)

An agent that is away for a moment is waited for, one that never was is not (docs/wire.md). A /run that
outlives its boot and a clock that jumps say nothing wrong: it is the boot's own seconds.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from ipam.boot_mark import boot_id, uptime
from ipam.seam.files import replace_file

PERIOD: Final = 5.0  # seconds from one note to the next; shims count an absence from the last one


def note(path: str) -> None:
    """Say that the agent of the socket `path` is here; what cannot be written costs their patience alone."""
    with suppress(OSError):
        replace_file(f"{path}.seen", f"{boot_id()} {int(uptime())}\n".encode())
