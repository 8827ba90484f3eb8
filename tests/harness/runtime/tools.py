"""The programs that the runtime tests need: a missing one fails the test and says what to do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def cached(name: str) -> Path:
    """Return a program that scripts/test builds outside the tree."""
    path = Path(os.environ.get("PODWIRE_CACHE", "/var/cache/podwire")) / "bin" / name
    assert path.exists(), f"{path} is missing: run tests/runtime/build-{name} as root (scripts/test does)"
    return path


def installed(name: str, *, package: str) -> Path:
    """Return a program of the machine."""
    path = shutil.which(name)
    assert path, f"{name} is missing: apt-get install {package} (scripts/test does)"
    return Path(path)


def reference_plugins() -> Path:
    """Return the directory of the reference plugins."""
    directory = Path("/usr/lib/cni")
    assert (directory / "bridge").exists(), (
        f"{directory}/bridge is missing: apt-get install containernetworking-plugins (scripts/test does)"
    )
    return directory
