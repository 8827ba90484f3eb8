"""The index as arithmetic: after any changes it says what a dictionary of the same files says."""

from __future__ import annotations

import random

import pytest
from netaddr import IPAddress

from ipam.address import parse_address, render_address
from ipam.index import Index

NAMES = [f"10.1.0.{number}" for number in range(40)] + [f"fd00::{number:x}" for number in range(1, 40)]
OTHERS = ["0.0.0.0", "255.255.255.255", "::", "::102:304", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
FOREIGN = ["10.1.0.02", "FD00::1", "::ffff:10.1.0.1", "notes", "lock", "last_reserved_ip.0", ""]
CONTENTS = [None, b"", b"a\r\neth0", b"a", b"b\r\neth0", b"c\r\neth0"]

Files = dict[str, bytes | None]


def named(files: Files, content: bytes) -> list[str]:
    return sorted(name for name, held in files.items() if held == content and name not in FOREIGN)


def taken(files: Files) -> set[IPAddress | None]:
    return {parse_address(name) for name, held in files.items() if held != b"" and name not in FOREIGN}


def first_free(files: Files, version: int, first: int, last: int) -> int | None:
    used = {int(each) for each in taken(files) if each is not None and each.version == version}
    return next((number for number in range(first, last + 1) if number not in used), None)


def count(files: Files, version: int, first: int, last: int) -> int:
    used = {int(each) for each in taken(files) if each is not None and each.version == version}
    return len([number for number in range(first, last + 1) if number in used])


def assert_same(index: Index, files: Files) -> None:
    assert len(index) == len(taken(files))
    for content in CONTENTS[2:]:
        assert sorted(map(render_address, index.named(content))) == named(files, content)
    for version, base in ((4, 10 << 24 | 1 << 16), (6, 0xFD << 120)):
        for first, last in ((base - 1, base + 50), (base + 3, base + 3), (base + 10, base + 20)):
            assert index.first_free(version, first, last) == first_free(files, version, first, last)
            assert index.count(version, first, last) == count(files, version, first, last)


@pytest.mark.parametrize("seed", range(10))
def test_any_changes_leave_it_equal_to_one_made_anew(request: pytest.FixtureRequest, seed: int) -> None:
    chance = random.Random(seed)
    files: Files = {}
    index = Index(())
    for _ in range(400 if request.config.getoption("long") else 100):
        name, content = chance.choice([*NAMES, *OTHERS, *FOREIGN]), chance.choice(CONTENTS)
        files[name] = content
        index.put(name, content)
        if chance.random() < 0.1:
            assert_same(index, files)
            assert_same(Index(files.items()), files)


def test_the_end_of_a_long_run_is_found_behind_any_of_its_addresses() -> None:
    base = 10 << 24
    index = Index((render_address(IPAddress(base + each)), b"x") for each in range(50_000))
    for start in (0, 1, 49_999):
        assert index.first_free(4, base + start, base + 60_000) == base + 50_000
    assert index.first_free(4, base, base + 49_999) is None
    assert index.first_free(4, base + 50_001, base + 60_000) == base + 50_001
    assert index.first_free(6, base, base) == base
