"""The commands that a page of the documentation says are to be typed."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def find_commands(page: str, words: str) -> list[str]:
    """Return the lines of the page's one block of code that has these words."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    [found] = [block.splitlines() for block in blocks if words in block]
    return [str(line) for line in found]
