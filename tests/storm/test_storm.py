"""A storm of every call on many pods; whatever it does, what must hold holds.

PODWIRE_STORM_SEED replays one. With `--long` it has 1,000 pods for PODWIRE_STORM_MINUTES (30).
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from tests.conftest import install
from tests.harness.storm.storm import Storm

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Node


@pytest.fixture
def bin_dirs(tmp_path: Path, bin_dir: Path) -> dict[str, Path]:
    """Return the executable that does the work itself, and the C shim of the storm's own agent."""
    install(tmp_path / "agent" / "bin", tmp_path / "agent" / "a.sock", "--shim")
    return {"process": bin_dir, "agent": tmp_path / "agent" / "bin"}


def test_after_a_storm_and_in_the_middle_of_it_everything_is_somebodys(
    plain_node: Node, bin_dirs: dict[str, Path], pytestconfig: pytest.Config
) -> None:
    seed = int(os.environ.get("PODWIRE_STORM_SEED", random.SystemRandom().randrange(10**6)))
    long = pytestconfig.getoption("--long")
    minutes = float(os.environ.get("PODWIRE_STORM_MINUTES", "30"))
    storm = Storm(plain_node, seed, bin_dirs=bin_dirs, pods=1000 if long else 120, workers=8)
    print(f"storm: seed {seed}")
    try:
        storm.run(minutes * 60 if long else 18, between_looks=60 if long else 8)
    finally:
        for slot in storm.slots:
            if slot.space is not None:
                slot.space.remove()
        print(f"storm: seed {seed}: {sum(storm.done.values())} operations: {dict(storm.done)}")
    assert storm.done["look"] >= 2
