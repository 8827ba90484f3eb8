"""The kinds of objects that are watched: where they are in the API, and what is kept of each.

A kind is one value here. Its objects are reduced while they are read; whatever else the API says of
them is dropped at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cni_plugin.cluster.objects import Node, parse_node

if TYPE_CHECKING:
    from collections.abc import Callable

ObjectT = TypeVar("ObjectT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource(Generic[ObjectT]):
    """A kind of objects. `page` is how many of them one answer lists."""

    name: str
    """What errors call it: the resource's name in its path."""
    path: str
    parse: Callable[[dict[str, Any]], ObjectT]
    page: int
    label_selector: str = ""
    field_selector: str = ""
    optional: bool = False
    """The API may not know the kind (a custom one): then there are none of it."""

    @property
    def selection(self) -> list[tuple[str, str]]:
        """Return the part of a query that says which objects are meant."""
        selectors = (("labelSelector", self.label_selector), ("fieldSelector", self.field_selector))
        return [(key, value) for key, value in selectors if value]


def key_of(raw: dict[str, Any]) -> str:
    """Return what an object is known by among its kind: its name, with its namespace if it has one."""
    metadata = raw.get("metadata") or {}
    namespace, name = metadata.get("namespace") or "", metadata.get("name") or ""
    return f"{namespace}/{name}" if namespace else name


# An object is 10 to 20 KB of JSON.
NODES: Resource[Node] = Resource(name="nodes", path="/api/v1/nodes", parse=parse_node, page=100)
