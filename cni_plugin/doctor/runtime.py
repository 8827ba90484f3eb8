"""Checks the runtime: which directories containerd reads, what it says of its network.

A configuration of version 2 has them below `io.containerd.grpc.v1.cri`, one of version 3 below
`io.containerd.cri.v1.runtime`. Without the file there is nothing to compare with.
"""

from __future__ import annotations

import os
import shlex
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cni_plugin.doctor.executables import check_one
from cni_plugin.doctor.finding import Finding
from cni_plugin.node import runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.doctor.site import Examined

_SECTIONS: Final = ("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri")

_LOOPBACK: Final = {"cni-loopback"}  # what containerd calls the network of lo


@dataclass(frozen=True, slots=True, kw_only=True)
class Directories:
    """Where a runtime looks; empty where it does not say, and `problem` why it cannot be read."""

    conf_dir: str = ""
    bin_dirs: tuple[str, ...] = ()
    problem: str = ""


def read_directories(path: str) -> Directories | None:
    """Return what containerd's configuration says; None when there is none."""
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return Directories(problem=str(error))
    plugins = _table(document, "plugins")
    cni = next((_table(_table(plugins, name), "cni") for name in _SECTIONS if name in plugins), {})
    several = cni.get("bin_dirs")
    bin_dirs = several if isinstance(several, list) else [cni.get("bin_dir", "")]
    return Directories(
        conf_dir=str(cni.get("conf_dir", "")), bin_dirs=tuple(filter(None, map(str, bin_dirs)))
    )


def _table(parent: dict[str, Any], name: str) -> dict[str, Any]:
    found = parent.get(name)
    return found if isinstance(found, dict) else {}


def check(site: Examined) -> Iterator[Finding]:
    """Yield where the runtime looks elsewhere than we do, and what else it needs."""
    directories = read_directories(site.containerd_config)
    if directories is None:
        return
    if directories.problem:
        yield Finding(
            severity="error",
            object=site.containerd_config,
            found=directories.problem,
            meaning="containerd does not start with it",
            remedy=f"correct it: containerd --config {shlex.quote(site.containerd_config)} config dump",
        )
    if directories.conf_dir and not _same(directories.conf_dir, [site.conf_dir]):
        yield _elsewhere(site, "conf_dir", directories.conf_dir, site.conf_dir)
    if directories.bin_dirs and not _same(site.bin_dir, directories.bin_dirs):
        yield _elsewhere(site, "bin_dir", ", ".join(directories.bin_dirs), site.bin_dir)
    # containerd brings up lo with it before any other plugin is asked.
    yield from check_one(site, "loopback")


def check_word(site: Examined) -> Iterator[Finding]:
    """Yield what the runtime itself says against its network; it is asked only where its socket was named."""
    if not site.runtime_endpoint:
        return
    word = runtime.ask(site.runtime_endpoint)
    if word.unready:
        yield Finding(
            severity="error",
            object=site.runtime_endpoint,
            found=f"it says: {word.unready}",
            meaning="kubelet repeats this as the reason why the node is NotReady",
            remedy="mend what else is found here; the runtime then says so within seconds",
        )
        return
    # Only containerd tells its networks.
    ours = next((file for file in site.configured.files if file.mains), None)
    if ours is not None and word.networks and ours.name not in word.networks:
        path = shlex.quote(ours.path)
        yield Finding(
            severity="error",
            object=site.runtime_endpoint,
            found=f"it has loaded {', '.join(sorted(word.networks - _LOOPBACK)) or 'none'}, "
            f"and not {ours.name} of {ours.path}",
            meaning="it has not seen the file: pods get the network that it has loaded",
            remedy=f"cp {path} {path}.new && mv {path}.new {path}",
        )


def _same(path: str, others: list[str] | tuple[str, ...]) -> bool:
    return os.path.realpath(path) in {os.path.realpath(other) for other in others}


def _elsewhere(site: Examined, key: str, theirs: str, ours: str) -> Finding:
    option = "--conf-dir" if key == "conf_dir" else "--bin-dir"
    return Finding(
        severity="error",
        object=site.containerd_config,
        found=f"containerd's {key} is {theirs}, and not {ours}",
        meaning="what is in the one directory is not seen by whoever looks into the other",
        remedy=f"podwire doctor {option} {shlex.quote(theirs.partition(',')[0])}, or install there",
    )
