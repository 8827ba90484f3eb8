"""The place in the README that the benchmark writes: what is between two markers."""

from __future__ import annotations

BEGIN, END = "<!-- bench: written by scripts/bench --readme -->", "<!-- bench: end -->"


def replace_between_markers(text: str, words: str) -> str:
    """Replace what is between the markers; ValueError unless they are there once each."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"wanted {BEGIN} and behind it {END}, once each")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{words}\n{END}{rest.partition(END)[2]}"
