"""The programs that the runtime tests need: a missing one fails the test and says what to do.

What runtimes and plugins there are has two ends: the distribution's ("old") and today's ("new"), which
tests/go/build makes, at the versions that the go.mod files there name.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Literal

Age = Literal["old", "new"]
AGES: tuple[Age, ...] = ("old", "new")
# The reference plugins: Debian's, and those of tests/go.
OLD_PLUGINS, NEW_PLUGINS = "1.1", "1.10"
PLUGINS = (OLD_PLUGINS, "1.9", NEW_PLUGINS)
_GO = Path(__file__).parents[2] / "go"
_MODULES = {
    "plugins": "github.com/containernetworking/plugins",
    "cni": "github.com/containernetworking/cni",
    "containerd": "github.com/containerd/containerd/v2",
    "cri-tools": "sigs.k8s.io/cri-tools",
    "etcd": "go.etcd.io/etcd/server/v3",
    "coredns": "github.com/coredns/coredns",
    "kubernetes": "k8s.io/kubernetes",
    "kind": "sigs.k8s.io/kind",
}


def cache() -> Path:
    """Return where scripts/test keeps what it builds outside the tree."""
    return Path(os.environ.get("PODWIRE_CACHE", "/var/cache/podwire"))


def cached(name: str) -> Path:
    """Return a program that scripts/test builds from the distribution's sources or from ours."""
    path = cache() / "bin" / name
    assert path.exists(), f"{path} is missing: run tests/runtime/build-{name} as root (scripts/test does)"
    return path


def installed(name: str, *, package: str) -> Path:
    """Return a program of the machine."""
    path = shutil.which(name)
    assert path, f"{name} is missing: apt-get install {package} (scripts/test does)"
    return Path(path)


def built(name: str, within: str = "cluster") -> Path:
    """Return the directory of what tests/go/build made from the go.mod in a directory there."""
    directory = cache() / f"{name}-{module_version(name, within)}"
    assert directory.exists(), (
        f"{directory} is missing: run tests/go/build {name} as root (scripts/test does)"
    )
    return directory


def module_version(name: str, within: str = "cluster") -> str:
    """Return the version that a go.mod requires."""
    path = _GO / within / "go.mod"
    found = re.search(rf"^(?:require)?\s+{re.escape(_MODULES[name])} v(\S+)", path.read_text(), re.MULTILINE)
    assert found, f"{path} does not require {_MODULES[name]}"
    return found[1]


def containerd(age: Age) -> Path:
    """Return the directory of a containerd, its shim and ctr: 1.6, or 2."""
    return built("containerd") if age == "new" else installed("containerd", package="containerd").parent


def kubernetes(age: Age) -> Path:
    """Return the directory of a Kubernetes: 1.20, or today's."""
    if age == "new":
        return built("kubernetes")
    directory = cache() / "kubernetes/bin"
    assert directory.exists(), (
        f"{directory} is missing: run tests/kubernetes/build-kubernetes (scripts/test does)"
    )
    return directory


def etcd(age: Age) -> Path:
    """Return the store of a Kubernetes."""
    return built("etcd") / "etcd" if age == "new" else installed("etcd", package="etcd-server")


def cnitool(age: Age) -> Path:
    """Return the reference runtime of CNI."""
    return built("cni", f"plugins-{NEW_PLUGINS}") / "cnitool" if age == "new" else cached("cnitool")


def nft(age: Age) -> Path:
    """Return the program of nftables: the machine's, or today's."""
    if age == "old":
        return installed("nft", package="nftables")
    path = cache() / "nftables/bin/nft"
    assert path.exists(), f"{path} is missing: run tests/runtime/fetch-nftables as root (scripts/test does)"
    return path


def reference_plugins(version: str = OLD_PLUGINS) -> Path:
    """Return the directory of the reference plugins."""
    if version != OLD_PLUGINS:
        return built("plugins", f"plugins-{version}")
    directory = Path("/usr/lib/cni")
    assert (directory / "bridge").exists(), (
        f"{directory}/bridge is missing: apt-get install containernetworking-plugins (scripts/test does)"
    )
    return directory
