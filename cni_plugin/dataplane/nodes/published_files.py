"""Replaces files that another process reads: a temporary file in the same directory, rename(2).

The temporary one begins with a dot and ends otherwise than a configuration, so a runtime that watches
the directory passes it over and sees the rename. containerd ignores what is moved in from elsewhere.
"""

from __future__ import annotations

import os

from ipam.seam import files


def read_text(path: str) -> str | None:
    """Return a file's text, None when there is none that can be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, ValueError):
        return None


def replace_file(path: str, text: str) -> bool:
    """Make the file hold `text`, surviving a power cut; tell whether it did not before."""
    if read_text(path) == text:
        return False
    files.make_directories(os.path.dirname(path))
    files.replace_file(path, text.encode(), 0o644, published=True)
    return True
