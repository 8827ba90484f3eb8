"""Several plugins on one network, called as libcni calls the list of a `.conflist`.

ADD hands the result along, CHECK and DEL have the last one, DEL goes backwards. A plugin gets of the
runtime's words (`runtime`) those whose capability it lists.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.node import Completed, Node, Pod

REFERENCE = "/usr/lib/cni"


@dataclass
class Chain:
    """A network of several plugins, each of the first directory that has its type."""

    node: Node
    plugins: list[dict[str, Any]]
    path: list[str]
    runtime: dict[str, Any] = field(default_factory=dict)
    version: str = "1.0.0"
    name: str = "test"
    environ: dict[str, str | None] = field(default_factory=dict)

    def call(
        self, verb: str, plugin: dict[str, Any], pod: Pod | None, result: dict[str, Any] | None = None
    ) -> Completed:
        """Call one of the plugins."""
        stdin = {**plugin, "name": self.name, "cniVersion": self.version}
        listed = plugin.get("capabilities", {})
        if runtime := {key: value for key, value in self.runtime.items() if listed.get(key)}:
            stdin["runtimeConfig"] = runtime
        if result is not None:
            stdin["prevResult"] = result
        program = next(f"{d}/{plugin['type']}" for d in self.path if _has(d, plugin["type"]))
        environ = {"CNI_PATH": ":".join(self.path), **self.environ}
        return self.node.call(verb, stdin, pod, program=program, environ=environ)

    def try_add(self, pod: Pod) -> Completed:
        """Call ADD of each until one fails; return the last answer."""
        result = None
        for plugin in self.plugins:
            answer = self.call("ADD", plugin, pod, result)
            if answer.status != 0:
                break
            result = answer.json
        return answer

    def add(self, pod: Pod) -> dict[str, Any]:
        """ADD, which must succeed; return the last result."""
        answer = self.try_add(pod)
        assert answer.status == 0, answer.stdout + answer.stderr
        return answer.json

    def check(self, pod: Pod, result: dict[str, Any]) -> Completed:
        """CHECK each until one fails; return the last answer."""
        for plugin in self.plugins:
            answer = self.call("CHECK", plugin, pod, result)
            if answer.status != 0:
                break
        return answer

    def delete(self, pod: Pod, result: dict[str, Any] | None = None) -> None:
        """DEL each, which must succeed."""
        for plugin in reversed(self.plugins):
            answer = self.call("DEL", plugin, pod, result)
            assert (answer.status, answer.stdout) == (0, ""), answer.stdout + answer.stderr


def _has(directory: str, kind: str) -> bool:
    return shutil.which(f"{directory}/{kind}") is not None


def install_as(node: Node, *names: str) -> str:
    """Put our executable under these names into a directory of the node's; return the directory."""
    directory: Path = node.tmp / "named"
    directory.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(node.bin_dir / "podwire", directory / name)
    return str(directory)
