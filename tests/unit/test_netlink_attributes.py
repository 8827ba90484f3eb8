"""Netlink attributes as the kernel pads and flags them."""

from __future__ import annotations

import pytest

from cni_plugin.kernel.message import parse_attributes


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ("", {}),
        ("0800 0100 01000000", {1: b"\1\0\0\0"}),
        ("0500 0100 41 000000 0600 0280 4243 0000", {1: b"A", 2: b"BC"}),  # padding, NLA_F_NESTED
        ("0400 0300", {3: b""}),
        ("0000 0100 0500 0200 41", {1: b"", 2: b"A"}),  # a length that is none does not stop the walk
        ("ff00 0100 41", {1: b"A"}),
    ],
)
def test_attributes_are_found_by_number(raw: str, found: dict[int, bytes]) -> None:
    assert parse_attributes(bytes.fromhex(raw)) == found
