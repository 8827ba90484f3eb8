"""Fixtures of every test: the executables, a node of one's own, and a guard around the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from tests.node import Node, make_node

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def bin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the executables once for all workers, from this checkout and this interpreter."""
    shared = tmp_path_factory.getbasetemp().parent / "podwire-bin"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            staged = shared.with_suffix(".new")
            install = [str(ROOT / "scripts/install"), "--bin-dir", str(staged), "--python", sys.executable]
            subprocess.run(install, check=True, capture_output=True)
            staged.rename(shared)
    return shared


@pytest.fixture
def node(tmp_path: Path, bin_dir: Path) -> Iterator[Node]:
    """Return a node that is a network namespace of this test's own."""
    made = make_node(tmp_path, bin_dir)
    yield made
    made.remove()


@pytest.fixture(autouse=True)
def _host_untouched() -> Iterator[None]:
    """Fail a test that changes the machine's own links, or its default state directory."""
    before = _host_state()
    yield
    assert _host_state() == before


def _host_state() -> tuple[str, bool]:
    links = subprocess.run(["ip", "-o", "-br", "link"], capture_output=True, text=True, check=True).stdout
    names = [line.split()[0] for line in links.splitlines()]
    # Other tests' namespaces come and go beside this one, but never a link of the machine's own.
    return " ".join(sorted(names)), Path("/var/lib/cni/networks").exists()
