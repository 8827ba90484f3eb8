"""A Docker for the tests of a file, with the image of a node in it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.kind.docker import ROOT, Docker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the file out that is for --long."""
    is_left_out = collection_path.name == "test_long.py" and not config.getoption("--long", default=False)
    return True if is_left_out else None


_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")


@pytest.fixture(scope="session")
def node_root() -> Path:
    """Return what a node is made of."""
    done = subprocess.run(
        [ROOT / "tests/kind/build-node", "--where"], check=True, capture_output=True, text=True
    )
    path = Path(done.stdout.strip()) / "root.tar"
    assert path.exists(), f"{path} is missing: run tests/kind/build-node as root (scripts/test does)"
    return path


@pytest.fixture
def docker(tmp_path: Path, node_root: Path) -> Iterator[Docker]:
    """Start a Docker that knows the image of a node."""
    limit = int(_INSTANCES.read_text())
    assert limit >= 512, f"{_INSTANCES} is {limit}: kind wants 512 (scripts/test raises it)"
    with Docker(tmp_path / "docker") as made:
        made.load_node(node_root)
        yield made


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return what prints a line at the end of the run."""
    return lambda line: record_property("figures", line)
