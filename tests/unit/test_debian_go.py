"""What the tests build from the distribution's sources is built by the distribution's compiler."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

BUILDERS = ("tests/runtime/build-cnitool", "tests/kubernetes/build-kubernetes")


@pytest.mark.parametrize("builder", BUILDERS)
def test_another_compiler_first_in_path_is_not_taken(builder: str, tmp_path: Path) -> None:
    """Run the functions of a builder up to where it would begin, with a machine's own Go in the way."""
    other = tmp_path / "go"
    other.write_text("#!/bin/sh\necho the other one\n")
    other.chmod(0o755)
    text = (ROOT / builder).read_text()
    assert text.count("use_debian_go\n") == 1
    assert text.endswith("\nmain\n")
    script = f"cd {ROOT}\n. scripts/lib/debian-go\nuse_debian_go\ngo env GOROOT GOTOOLDIR\n"
    environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "GOROOT": str(tmp_path)}
    done = subprocess.run(["bash", "-ec", script], env=environ, capture_output=True, text=True, check=True)
    assert all(line.startswith("/usr/lib/go") for line in done.stdout.splitlines()), done.stdout
