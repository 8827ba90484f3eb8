"""Debian's packages and all that they depend on, fetched by apt as if nothing were installed."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from ociimage.tree import Tree

if TYPE_CHECKING:
    from pathlib import Path

# libstdc++6 is what wheels take to be everywhere.
PACKAGES = ("libpython3-stdlib", "libstdc++6", "nftables", "python3-minimal")


def fetch(cache: Path) -> tuple[Tree, list[str]]:
    """Return the files of the packages, and the packages as NAME_VERSION."""
    try:
        paths = _download(cache)
    except subprocess.CalledProcessError:
        # There are no lists yet, or they name what the archive has replaced.
        subprocess.run([*_apt(cache), "update"], check=True)
        paths = _download(cache)
    tree = Tree()
    for path in paths:
        tree.add_tar(_output("dpkg-deb", "--fsys-tarfile", str(path)))
    return tree, [path.name.rpartition("_")[0].replace("%3a", ":") for path in paths]


def _download(cache: Path) -> list[Path]:
    """Fetch what is not there yet; return the packages in the order of their names."""
    for directory in ("lists/partial", "debs/partial"):
        (cache / directory).mkdir(parents=True, exist_ok=True)
    (cache / "status").write_text("")
    wanted = ["--no-install-recommends", "--yes", "install", *PACKAGES]
    simulated = _output(*_apt(cache), "--simulate", *wanted).decode()
    _output(*_apt(cache), "--download-only", *wanted)
    found = re.findall(r"^Inst (\S+) \((\S+) ", simulated, flags=re.MULTILINE)
    names = [f"{name}_{version.replace(':', '%3a')}_*.deb" for name, version in sorted(found)]
    return [next((cache / "debs").glob(name)) for name in names]


def _apt(cache: Path) -> list[str]:
    """Return apt-get for an empty system, with lists of its own."""
    settings = {
        "Dir::State::status": cache / "status",
        "Dir::State::lists": cache / "lists",
        "Dir::Cache::archives": cache / "debs",
        "Dir::Cache::pkgcache": "",
        "Dir::Cache::srcpkgcache": "",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "1",
    }
    return ["apt-get", "--quiet", "--quiet", *(f"-o{key}={value}" for key, value in settings.items())]


def _output(*argv: str) -> bytes:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout
