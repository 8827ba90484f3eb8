r"""Sticky addresses: which ones a pod had last, by the name that it keeps when it is made anew.

    <data_dir>/.podwire/<network>.sticky       `<name> <address> <address>\n`, the last line counts

A line is added when a pod gets other addresses than those, and when it leaves, so that a name
is forgotten when a thousand or more others have been in use since.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ipam.address import parse_address, render_address
from ipam.notes import Notes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netaddr import IPAddress

    from ipam.store import Store


def recall(store: Store, name: str) -> frozenset[IPAddress]:
    """Return the addresses that the name had last; none if it is not known. Reads the file, takes no lock."""
    lines = b"\n" + _notes(store).read_all()[0]
    begin = lines.rfind(os.fsencode(f"\n{name} "))
    end = lines.find(b"\n", begin + 1)
    if begin < 0 or end < 0:
        return frozenset()
    words = os.fsdecode(lines[begin:end]).split()[1:]
    return frozenset(address for address in map(parse_address, words) if address is not None)


def keep(store: Store, name: str, addresses: Iterable[IPAddress]) -> None:
    """Remember the addresses as the name's; only under the store's lock."""
    _notes(store).append(" ".join([name, *map(render_address, addresses)]) + "\n")


def touch(store: Store, name: str, addresses: Iterable[IPAddress]) -> None:
    """Remember the name for longer; not if it has other addresses by now. Only under the store's lock."""
    addresses = list(addresses)
    if recall(store, name) in (frozenset(), frozenset(addresses)):
        keep(store, name, addresses)


def _notes(store: Store) -> Notes:
    return Notes(store.hints("sticky"))
