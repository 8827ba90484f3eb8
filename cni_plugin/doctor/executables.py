"""Checks the plugins' executables: present, executable, for this machine, of the agent's release."""

from __future__ import annotations

import os
import re
import shlex
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cni_plugin import __version__
from cni_plugin.addresses.delegate import MARKER, OWN_TYPE
from cni_plugin.doctor.finding import Finding
from cni_plugin.plugins import PLUGINS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.doctor.site import Examined

_HEAD: Final = 64 * 1024  # bytes; a whole shim fits
# elf.h: e_machine, by what uname(2) calls it.
_MACHINES: Final = {
    "i686": 3,
    "ppc64le": 21,
    "s390x": 22,
    "armv7l": 40,
    "x86_64": 62,
    "aarch64": 183,
    "riscv64": 243,
}
_VERSION: Final = re.compile(re.escape(MARKER) + rb" ([0-9][0-9A-Za-z.+-]*)")
_SOCKET: Final = re.compile(
    rb"podwire agent at (/[^:\0]+): wanted|^SOCKET = ['\"](/[^'\"]+)['\"]", re.MULTILINE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Executable:
    """One of ours: whether it needs an agent, the socket where it looks for one, its release."""

    path: str
    needs_agent: bool
    socket: str
    version: str


def list_own(site: Examined) -> list[Executable]:
    """Return our executables among those that the configuration names."""
    names = dict.fromkeys(_needed(site))
    return [found for name in names if (found := _read_own(os.path.join(site.bin_dir, name)))]


def _read_own(path: str) -> Executable | None:
    head = _head(path)
    if MARKER not in head:
        return None
    socket, version = _SOCKET.search(head), _VERSION.search(head)
    return Executable(
        path=path,
        needs_agent=head.startswith(b"\x7fELF"),
        socket=os.fsdecode(socket[1] or socket[2]) if socket else "",
        version=version[1].decode() if version else "",
    )


def _head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD)
    except OSError:
        return b""


def _needed(site: Examined) -> list[str]:
    """Return the names of the programs that a runtime, or we ourselves, will execute."""
    ours = [file for file in site.configured.files if file.mains]
    return [name for file in ours for name in (*file.types, *file.ipam_types) if name and name != OWN_TYPE]


def check(site: Examined) -> Iterator[Finding]:
    """Yield what keeps the plugins of our networks from being executed."""
    for name in dict.fromkeys(_needed(site)):
        yield from check_one(site, name)
    for own in list_own(site):
        if own.version and own.version != __version__:
            yield Finding(
                severity="warning",
                object=own.path,
                found=f"it is of podwire {own.version}, this program of {__version__}",
                meaning="an upgrade was not finished: what is new in one of them is not in the other",
                remedy=_install(site, os.path.basename(own.path), shim=own.needs_agent),
            )


def check_one(site: Examined, name: str) -> Iterator[Finding]:
    """Yield what keeps one plugin from being executed."""
    path = os.path.join(site.bin_dir, name)
    wrong = _wrong_with(path)
    if wrong is None:
        return
    found, meaning = wrong
    mended = f"chmod 755 {shlex.quote(path)}" if found == _NOT_EXECUTABLE else _install(site, name)
    yield Finding(severity="error", object=path, found=found, meaning=meaning, remedy=mended)


_NOT_EXECUTABLE: Final = "it is not executable"


def _wrong_with(path: str) -> tuple[str, str] | None:
    """Return what was found and what the runtime makes of it; None when nothing is wrong."""
    if not os.path.isfile(path):
        directory = os.path.dirname(path)
        return (
            "no such file",
            f'the runtime says: failed to find plugin "{os.path.basename(path)}" in path [{directory}]',
        )
    if not os.access(path, os.X_OK):
        return _NOT_EXECUTABLE, "the runtime says: permission denied"
    head = _head(path)
    if head.startswith(b"\x7fELF"):
        return _wrong_machine(head)
    if not head.startswith(b"#!"):
        return "it is no program", "the runtime says: exec format error"
    interpreter = os.fsdecode(head[2:].split(b"\n", 1)[0].split()[0] if head[2:].split() else b"")
    if not os.access(interpreter, os.X_OK):
        return f"its interpreter {interpreter} is not there", "the runtime says: no such file or directory"
    return None


def _wrong_machine(head: bytes) -> tuple[str, str] | None:
    order = ">" if head[5:6] == b"\2" else "<"
    (machine,) = struct.unpack_from(f"{order}H", head, 18)
    here = os.uname().machine
    if here not in _MACHINES or machine == _MACHINES[here]:
        return None
    other = next((name for name, number in _MACHINES.items() if number == machine), f"machine {machine}")
    return f"it is for {other}, this node is {here}", "the runtime says: exec format error"


def _install(site: Examined, name: str, *, shim: bool = False) -> str:
    if name not in PLUGINS:
        return f"install {name} into {site.bin_dir} (the reference's: Debian's containernetworking-plugins)"
    options = " --drop-in" if name not in {"podwire", OWN_TYPE} else ""
    options += " --shim" if shim else ""
    return f"scripts/install --bin-dir {shlex.quote(site.bin_dir)}{options}"
