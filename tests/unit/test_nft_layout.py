"""docs/dataplane.md prints the layout of our nftables; PODWIRE_WRITE_DOCS=1 writes it anew."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cni_plugin.kernel.nft_layout import MARKS, PLACES, RESERVED, Place

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs/dataplane.md"
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
TABLE = re.compile(r"(<!-- layout -->\n)(.*?)(<!-- layout: end -->)", re.DOTALL)


def render() -> str:
    """Return the layout as the page has it: in the order in which a packet passes the hooks."""
    lines = ["| hook | priority | table | chain | what for |", "|---|---|---|---|---|"]
    for place in sorted((*PLACES, *RESERVED), key=order):
        chain = f"`{place.prefix}{'…' if place.prefix.endswith('_') else ''}`" if place.prefix else "reserved"
        table = f"{place.family} {place.table}"
        lines.append(f"| {place.hook} | {place.priority} | {table} | {chain} | {place.purpose} |")
    lines += ["", "| bit of the mark | on a packet that |", "|---|---|"]
    lines += [f"| {bit:#x} | {meaning} |" for bit, meaning in sorted(MARKS.items())]
    return "\n".join(lines) + "\n"


def order(place: Place) -> tuple[bool, int, int, str]:
    return place.family == "bridge", HOOKS.index(place.hook), place.priority, place.purpose


def test_the_page_prints_the_layout() -> None:
    page = PAGE.read_text()
    if os.environ.get("PODWIRE_WRITE_DOCS"):
        PAGE.write_text(TABLE.sub(lambda found: found[1] + render() + found[3], page))
    found = TABLE.search(PAGE.read_text())
    assert found is not None
    assert found[2] == render()


def test_no_other_module_hooks_a_chain_in_or_names_a_mark() -> None:
    """What stands in two places could disagree."""
    words = re.compile(r"type (filter|nat) hook|priority|= 0x(200|400|800|1000)\b")
    texts = {path.relative_to(ROOT): path.read_text() for path in (ROOT / "cni_plugin").rglob("*.py")}
    places = {
        str(path)
        for path, text in texts.items()
        if "nft" in text and any(words.search(line) for line in text.splitlines() if "hook" in line)
    }
    assert places == {"cni_plugin/kernel/nft_layout.py"}


def test_every_bit_is_one_bit_and_one_only() -> None:
    assert [bit.bit_count() for bit in MARKS] == [1] * len(MARKS)


def test_every_chain_belongs_to_one_place() -> None:
    """The longest prefix of a name in its table says which, so that no two may be equal."""
    named = [(place.family, place.table, place.hook, place.prefix) for place in PLACES]
    assert len(set(named)) == len(PLACES)
