"""Debian's packages and all that they depend on, fetched by apt as if nothing were installed.

They are of the release that this machine has, for any architecture. When nft is too old there, it and the C
library come from a later one: below 1.1.2 nft ends with a segmentation fault where a newer one has written a
set (nftables, be737a1986bf).
"""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ociimage.tree import Tree

# libstdc++6 is what wheels take to be everywhere.
PACKAGES = ("libpython3-stdlib", "libstdc++6", "nftables", "python3-minimal")
# Built in a later release, this nft wants that one's C library, with which everything else runs, too.
_NFT = ("libc-bin", "nftables")
_LEAST_NFT = (1, 1, 2)
# Where the later nft is from, by the distribution.
_LATER = {"debian": "trixie", "ubuntu": "devel"}
_APT = Path("/etc/apt")


def fetch(cache: Path, architecture: str) -> tuple[Tree, list[str]]:
    """Return the files of the image's packages, and the packages as NAME_VERSION."""
    own = Archive(cache=cache / architecture, architecture=architecture)
    tree, versions = own.fetch(PACKAGES)
    if _numbers(versions["nftables"]) < _LEAST_NFT:
        suite = _LATER[_release()["ID"]]
        later = Archive(cache=cache / f"{architecture}-{suite}", architecture=architecture, suite=suite)
        newer, newer_versions = later.fetch(_NFT)
        tree |= newer
        versions |= newer_versions
    if _numbers(versions["nftables"]) < _LEAST_NFT:
        raise LookupError(f"wanted nftables 1.1.2 or newer, found {versions['nftables']}")
    return tree, sorted(f"{name}_{version}" for name, version in versions.items())


def native() -> str:
    """Return the machine's architecture as Debian and images call it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A distribution's packages for an architecture, of the machine's release or of another suite."""

    cache: Path
    architecture: str
    suite: str = ""

    def fetch(self, packages: tuple[str, ...]) -> tuple[Tree, dict[str, str]]:
        """Return the files of packages with all that they need, and the versions by the packages' names."""
        try:
            paths = self._download(packages)
        except subprocess.CalledProcessError:
            # There are no lists yet, or they name what the archive has replaced.
            subprocess.run([*self._apt(), "update"], check=True)
            paths = self._download(packages)
        tree = Tree()
        versions = {}
        for path in paths:
            tree.add_tar(_output("dpkg-deb", "--fsys-tarfile", str(path)))
            name, version, _ = path.name.split("_")
            versions[name] = version.replace("%3a", ":")
        return tree, versions

    def _download(self, packages: tuple[str, ...]) -> list[Path]:
        """Fetch what is not there yet; return the packages in the order of their names."""
        for directory in ("lists/partial", "debs/partial"):
            (self.cache / directory).mkdir(parents=True, exist_ok=True)
        (self.cache / "status").write_text("")
        wanted = ["--no-install-recommends", "--yes", "install", *packages]
        simulated = _output(*self._apt(), "--simulate", *wanted).decode()
        found = re.findall(r"^Inst (\S+) \((\S+) ", simulated, flags=re.MULTILINE)
        names = [f"{name}_{version.replace(':', '%3a')}_*.deb" for name, version in sorted(found)]
        places = self.cache / "debs"
        if not all(any(places.glob(name)) for name in names):
            _output(*self._apt(), "--download-only", *wanted)
        return [next(places.glob(name)) for name in names]

    def _apt(self) -> list[str]:
        """Return apt-get for an empty system, with lists of its own."""
        settings = {
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "Dir::State::status": self.cache / "status",
            "Dir::State::lists": self.cache / "lists",
            "Dir::Cache::archives": self.cache / "debs",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "APT::Sandbox::User": "",
            "Debug::NoLocking": "1",
            **(self._sources() if self.suite else {}),
        }
        return ["apt-get", "--quiet", "--quiet", *(f"-o{key}={value}" for key, value in settings.items())]

    def _sources(self) -> dict[str, Path]:
        """Write the machine's own sources with the other suite; return apt's settings for them."""
        directory = self.cache / "sources"
        (directory / "sources.list.d").mkdir(parents=True, exist_ok=True)
        release = _release()
        codename = release.get("UBUNTU_CODENAME") or release["VERSION_CODENAME"]
        # A word of its own, or followed by -updates or -security.
        word = re.compile(rf"(?<=\s){codename}(?=[-\s])")
        for path in (_APT / "sources.list", *(_APT / "sources.list.d").glob("*.[ls]*")):
            if path.exists():
                (directory / path.relative_to(_APT)).write_text(word.sub(self.suite, path.read_text()))
        return {
            "Dir::Etc::sourcelist": directory / "sources.list",
            "Dir::Etc::sourceparts": directory / "sources.list.d",
        }


def _release() -> dict[str, str]:
    return platform.freedesktop_os_release()


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with; an epoch is none of them."""
    found = re.match(r"(?:\d+:)?([\d.]+)", version)
    return tuple(int(each) for each in found[1].split(".") if each) if found else ()


def _output(*argv: str) -> bytes:
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout
