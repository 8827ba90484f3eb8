"""The programs that a kind node is made of, by the directories that tests/go/build made."""

from __future__ import annotations

import sys

from tests.harness.runtime import tools


def directories() -> dict[str, str]:
    """Return the directory of each, by the module's name there."""
    names = ("containerd", "cri-tools", "etcd", "coredns", "kubernetes")
    found = {name: tools.built(name) for name in names}
    found["plugins"] = tools.reference_plugins(tools.NEW_PLUGINS)
    found["kind"] = tools.built("kind", "kind")
    return {name: str(place) for name, place in found.items()}


if __name__ == "__main__":
    sys.stdout.writelines(f"{name} {place}\n" for name, place in directories().items())
