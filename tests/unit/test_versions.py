"""The versions' order and families."""

from __future__ import annotations

from itertools import pairwise

from cni_plugin.contract import versions


def test_versions_are_ordered_as_numbers_are() -> None:
    numbers = [tuple(map(int, version.split("."))) for version in versions.SUPPORTED]
    assert numbers == sorted(numbers)
    for older, newer in pairwise(versions.SUPPORTED):
        assert versions.at_least(newer, older)
        assert versions.at_least(older, older)
        assert not versions.at_least(older, newer)


def test_every_version_is_in_one_family() -> None:
    assert [version for members in versions.FAMILIES for version in members] == list(versions.SUPPORTED)
    assert versions.family("0.4.0") == ("0.3.0", "0.3.1", "0.4.0")
