"""An option whose package is not installed is refused at once, and with the command that installs it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

WITHOUT = (
    "import sys; sys.modules[sys.argv[1]] = None; "
    "from cni_plugin.cli.main import main; sys.exit(main(sys.argv[2:]))"
)


@pytest.mark.parametrize("command", [["agent", "--kubernetes", "--socket"], ["cluster", "--state-file"]])
def test_without_the_client_a_cluster_is_refused_at_once(command: list[str], tmp_path: Path) -> None:
    """An agent would start its child again and again, for ever."""
    words = [sys.executable, "-c", WITHOUT, "kubernetes", *command, str(tmp_path / "a")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 1
    assert "scripts/install --with kubernetes" in done.stderr
    assert not (tmp_path / "a").exists()
