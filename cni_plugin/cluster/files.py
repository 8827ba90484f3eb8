"""Files that another process reads: replaced whole, by a temporary file in the same directory and rename(2).

The temporary one begins with a dot and ends otherwise than a configuration, so a runtime that watches
the directory passes it over and sees the rename. containerd ignores what is moved in from elsewhere.
"""

from __future__ import annotations

import os


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
    directory, name = os.path.split(path)
    os.makedirs(directory, exist_ok=True)
    staged = os.path.join(directory, f".{name}.new")
    with open(staged, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(staged, path)
    return True
