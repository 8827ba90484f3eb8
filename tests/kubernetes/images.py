"""The images of the cluster's pods: the sandbox and a container that does nothing, and podwire's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.runtime import image, tools

if TYPE_CHECKING:
    from pathlib import Path

SANDBOX = image.NAME


def write_sandbox(target: Path) -> Path:
    """Write the sandbox image, whose /pause is also what the tests' containers run."""
    busybox = tools.installed("busybox", package="busybox-static")
    image.write_image(target, pause=tools.cached("pause"), busybox=busybox)
    return target
