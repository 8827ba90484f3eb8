"""What a network leaves on a node, read back with iproute2 and from the address store."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path


class Runs(Protocol):
    """Whatever runs commands in a network namespace: a node, a pod."""

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command there and fail the test when it fails."""


def addresses(place: Runs, *interface: str) -> list[str]:
    """List the global addresses, without their prefix length, of all interfaces or of one."""
    links = ip(place, "addr", "show", *interface, "scope", "global")
    return [info["local"] for link in links for info in link.get("addr_info", ()) if info]


def veths(place: Runs) -> list[str]:
    """List the host ends of pods' veths."""
    names = [link["ifname"] for link in ip(place, "link", "show", "type", "veth")]
    return [name for name in names if name.startswith("veth")]


def ip(place: Runs, *argv: str) -> list[dict[str, Any]]:
    """Return what `ip -j` shows."""
    # iproute2 prints nothing instead of an empty list, and {} for what its filter leaves out.
    shown: list[dict[str, Any]] = json.loads(place.run("ip", "-json", *argv).stdout or "[]")
    return [entry for entry in shown if entry]


def reserved(data_dir: Path) -> list[str]:
    """List the reserved addresses of all networks in an address store."""
    files = data_dir.glob("*/*") if data_dir.exists() else ()
    return sorted(file.name for file in files if re.fullmatch("[0-9a-f.:]+", file.name))
