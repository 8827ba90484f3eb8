"""The images of the cluster's pods: the sandbox and a container that does nothing, and podwire's own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.harness.runtime import image, tools

ROOT = Path(__file__).parents[3]
SANDBOX = image.NAME
AGNHOST, COREDNS = "localhost/agnhost:test", "localhost/coredns:test"


def write_sandbox(target: Path) -> Path:
    """Write the sandbox image, whose /pause is also what the tests' containers run."""
    busybox = tools.installed("busybox", package="busybox-static")
    image.write_image(target, pause=tools.cached("pause"), busybox=busybox)
    return target


def write_podwire(target: Path) -> Path:
    """Write podwire's own image from this checkout."""
    subprocess.run([ROOT / "scripts/image", "--output", target], check=True, capture_output=True)
    return target


def write_agnhost(target: Path) -> Path:
    """Write the image of the program that Kubernetes' own tests run in their pods."""
    image.write_program(target, AGNHOST, tools.kubernetes("new") / "agnhost")
    return target


def write_coredns(target: Path) -> Path:
    """Write the image of the cluster's name server."""
    image.write_program(target, COREDNS, tools.built("coredns") / "coredns")
    return target
