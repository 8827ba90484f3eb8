"""lock/ has what pyproject.toml asks for, once and with hashes: `scripts/lock` renews it."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
WANTED = {
    "build": PROJECT["build-system"]["requires"],
    "program": PROJECT["project"]["dependencies"],
    **EXTRAS,
    **PROJECT["dependency-groups"],
}
# Every file whose versions must be those of `test`, so that any of them can be installed together.
PARTS = sorted(WANTED.keys() - {"lock", "test"})


def locked(name: str) -> dict[str, str]:
    """Return the versions that a file of the lock names; every one has a hash."""
    text = (ROOT / f"lock/{name}.txt").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert [line for line in lines if "--hash=sha256:" not in line] == []
    requirements = [Requirement(line.partition("--hash")[0]) for line in lines]
    found = {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in requirements}
    assert len(found) == len(lines)
    return found


def test_the_version_is_that_of_the_program() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "cni_plugin.__version__"}


def test_there_is_a_file_for_each_part_of_the_project() -> None:
    assert sorted(path.stem for path in (ROOT / "lock").iterdir()) == sorted(WANTED)


@pytest.mark.parametrize("name", sorted(WANTED))
def test_what_is_locked_is_what_the_project_allows(name: str) -> None:
    versions = locked(name)
    for line in WANTED[name]:
        wanted = Requirement(line)
        if wanted.name == "podwire":
            assert {each for extra in wanted.extras for each in locked(extra)} <= versions.keys()
        else:
            found = versions[canonicalize_name(wanted.name)]
            assert wanted.specifier.contains(found), f"wanted {line}, found {found}: run scripts/lock"


@pytest.mark.parametrize("name", PARTS)
def test_the_parts_go_together(name: str) -> None:
    assert locked(name).items() <= locked("test").items()


def test_the_licence_is_named_as_the_build_wants_it() -> None:
    """From 2027-02 on setuptools refuses a table there."""
    assert PROJECT["project"]["license"] == "MIT"
    (setuptools,) = (Requirement(line) for line in WANTED["build"])
    assert not setuptools.specifier.contains("76.1")
