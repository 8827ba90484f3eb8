"""scripts/image where it cannot write."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.conftest import ROOT


def test_a_cache_that_cannot_be_made_is_named_without_a_traceback() -> None:
    environ = os.environ | {"PODWIRE_CACHE": "/proc/none"}
    words = [sys.executable, ROOT / "scripts/image"]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("scripts/image: /proc/none")
    assert "Traceback" not in done.stderr


def test_a_place_that_cannot_be_written_to_is_named_before_the_work() -> None:
    words = [sys.executable, ROOT / "scripts/image", "--output", "/proc/none/image.tar"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "scripts/image: /proc/none: wanted a directory to write image.tar to\n"
