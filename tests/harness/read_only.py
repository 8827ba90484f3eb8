"""podwire where /proc/sys cannot be written to, as in a container that is not privileged."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Node

_SCRIPT = (
    'for path in $1; do mount --bind $path $path; mount -o remount,bind,ro $path; done; shift; exec "$@"'
)


def read_only(*paths: str) -> tuple[str, ...]:
    """Return the words that run a program in a mount namespace where these paths are read-only."""
    return ("unshare", "--mount", "sh", "-ec", _SCRIPT, "sh", " ".join(paths))


def write_program(node: Node, directory: Path, *paths: str) -> str:
    """Return a program that runs podwire so."""
    script = directory / "restricted"
    words = " ".join(f"'{word}'" for word in read_only(*paths))
    script.write_text(f"#!/bin/sh\nexec {words} {node.bin_dir}/podwire\n")
    script.chmod(0o755)
    return str(script)
