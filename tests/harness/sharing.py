"""What the workers of one run share: the first one makes it, the others find it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the directory or file `name` of this run, which `make` writes to the path it is given."""
    base = factory.getbasetemp()
    # The parent of the workers' directories; without workers it is every run's.
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            staged = shared.with_name(f"{name}.new")
            make(staged)
            staged.rename(shared)
    return shared
