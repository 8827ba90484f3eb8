"""Our executables under the reference plugins' names, and the world outside of the node that they serve."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.conftest import install
from tests.harness.cluster import Cluster, make_cluster
from tests.harness.networks import calm, eventually
from tests.harness.node import Space

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node


class PathSpace(Space):
    """A network namespace that is known by its path."""

    @property
    def path(self) -> str:
        return self.name


def install_drop_in(node: Node) -> Path:
    """Install under every name of the reference that is built, into a directory that holds nothing else."""
    directory = node.tmp / "drop-in"
    install(directory, node.tmp / "none.sock", "--drop-in")
    return directory


@contextmanager
def node_in_the_world(tmp: Path, bin_dir: Path) -> Iterator[Cluster]:
    """One node, with addresses and default routes in a network where others are."""
    made = make_cluster(tmp, bin_dir, 1)
    try:
        yield made
    finally:
        made.remove()


def footprint(node: Node, *directories: Path) -> dict[str, list[str]]:
    """Return what pods may leave on a node: links, addresses, routes, nftables, queues, files."""
    return {
        "kernel": calm(node).splitlines(),
        "queues": node.run("tc", "qdisc", "show").stdout.splitlines(),
        "files": sorted(str(path) for each in directories for path in each.rglob("*") if path.is_file()),
    }


def assert_footprint(node: Node, wanted: dict[str, list[str]], *directories: Path) -> None:
    """Assert that the node is as it was; the kernel may take a moment to see a carrier go."""
    found = eventually(lambda: footprint(node, *directories), wanted)
    for key, lines in wanted.items():
        changed = sorted({*found[key]} ^ {*lines})
        assert found[key] == lines, f"{key}: {changed}"
