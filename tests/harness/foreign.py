"""A foreign IPAM plugin: a shell script in a CNI_PATH of the test's own, which logs how it is called."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cni_plugin.contract import versions

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Node

ADDRESS = {"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.7/24", "gateway": "10.9.0.1"}]}


@dataclass(frozen=True)
class Foreign:
    """The script, and what it saw of its calls."""

    directory: Path
    name: str
    path: str

    @property
    def environ(self) -> dict[str, str]:
        """Return the CNI_PATH that finds the script."""
        return {"CNI_PATH": self.path}

    @property
    def calls(self) -> list[str]:
        """Return the verbs in the order in which it was called."""
        log = self.directory / "calls"
        return log.read_text().split() if log.exists() else []

    def seen(self, verb: str) -> tuple[dict[str, str], bytes]:
        """Return environment and stdin of the last call of this verb."""
        lines = (self.directory / f"{verb}.environ").read_text().splitlines()
        pairs = (line.partition("=") for line in lines)
        return {key: value for key, _, value in pairs}, (self.directory / f"{verb}.stdin").read_bytes()


def speaks(newest: str) -> str:
    """Return the shell of a VERSION that knows no newer version than this one."""
    known = versions.SUPPORTED[: versions.SUPPORTED.index(newest) + 1]
    return says({"cniVersion": newest, "supportedVersions": list(known)})


def foreign(node: Node, *, name: str = "elsewhere", **verbs: str) -> Foreign:
    """Install a plugin whose verbs (`add`, `delete`, ...) are these lines of shell; absent ones succeed.

    It speaks every version, unless `version` says otherwise.
    """
    verbs.setdefault("version", speaks(versions.NEWEST))
    directory = node.tmp / "plugins"
    directory.mkdir(exist_ok=True)
    (directory / "calls").unlink(missing_ok=True)
    shell = "\n".join(
        f"{ {'delete': 'DEL'}.get(verb, verb.upper()) })\n{lines}\n;;" for verb, lines in verbs.items()
    )
    script = directory / name
    script.write_text(
        f"#!/bin/sh\ncd {directory}\necho $CNI_COMMAND >>calls\nenv >$CNI_COMMAND.environ\n"
        f"cat >$CNI_COMMAND.stdin\ncase $CNI_COMMAND in\n{shell}\nesac\n"
    )
    script.chmod(0o755)
    return Foreign(directory=directory, name=name, path=f"{directory}:{node.bin_dir}")


def says(document: dict[str, Any], status: int = 0) -> str:
    """Return the shell that prints this document and exits."""
    return f"cat <<'EOF'\n{json.dumps(document)}\nEOF\nexit {status}"


def delegated(kind: str = "elsewhere", **keys: Any) -> dict[str, Any]:
    """Return a bridge network whose addresses come from the plugin `kind`."""
    config = {"cniVersion": "1.1.0", "name": "test", "type": "podwire", "bridge": "cni0", "isGateway": True}
    return config | {"ipam": {"type": kind}} | keys
