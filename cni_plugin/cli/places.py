"""Where the runtime's plugins are, for a command that is not told.

Beside the executable that was called, else as is written.
`scripts/install` writes down where it has put them; containerd's own configuration says where it looks.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from cni_plugin.addresses.delegate import OWN_TYPE
from cni_plugin.config.paths import BIN_DIR, CONTAINERD_CONFIG, INSTALLED

if TYPE_CHECKING:
    from collections.abc import Iterator


def find_bin_dir(
    program: str | None = None, containerd_config: str = CONTAINERD_CONFIG, record: str = INSTALLED
) -> str:
    """Return the first directory that there is a reason for, else the specification's usual one."""
    return next(_candidates(program or sys.argv[0], containerd_config, record), BIN_DIR)


def _candidates(program: str, containerd_config: str, record: str) -> Iterator[str]:
    # Not through links: /usr/local/bin/podwire is nowhere near the plugins.
    directory = os.path.dirname(os.path.abspath(program))
    if os.path.exists(os.path.join(directory, OWN_TYPE)):
        yield directory
    from cni_plugin.doctor.runtime import read_directories

    says = read_directories(containerd_config)
    yield from says.bin_dirs if says else ()
    with suppress(FileNotFoundError), open(record, encoding="utf-8") as lines:
        for line in lines:
            kind, _, path = line.rstrip("\n").partition(" ")
            if kind == "executable" and os.path.basename(path) == OWN_TYPE:
                yield os.path.dirname(path)
