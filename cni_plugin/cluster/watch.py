"""Watches the cluster's nodes in a thread: list, then watch, then list again.

What is known stays known while the API is away. Whoever waits is woken when something changed that
a network can see: heartbeats change nothing.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cni_plugin.agent.journal import own, render_pairs
from cni_plugin.cluster.api import APIError, GoneError
from cni_plugin.cluster.objects import Node, parse_node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni_plugin.cluster.api import API

PAUSES = (1.0, 30.0)  # seconds between attempts, from the first to the longest


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of the cluster; `nodes` is None until all of them have been listed once."""

    nodes: dict[str, Node] | None = None
    problem: str = ""
    """Why it may be out of date."""


@dataclass
class Watch:
    """Follows the API; `wake` is called, from its thread, when `known` has become another."""

    api: API
    wake: Callable[[], None]
    _nodes: dict[str, Node] | None = None
    _problem: str = "the API has not answered yet"
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Begin; the thread ends with the process."""
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def known(self) -> Known:
        """Return what is known now; the caller may keep it."""
        with self._guard:
            nodes = None if self._nodes is None else dict(self._nodes)
            return Known(nodes=nodes, problem=self._problem)

    def _run(self) -> None:
        version, pause = "", PAUSES[0]
        while True:
            try:
                version = version or self._list()
                for seen in self._follow(version):
                    version, pause = seen, PAUSES[0]
            except GoneError:
                version = ""
            except APIError as error:
                self._say(str(error))
                pause = min(pause * 2, PAUSES[1])
            except Exception as error:  # noqa: BLE001  it is said, and tried again
                # A thread that ends would leave the node with what it knew, and nobody would know.
                own.exception("unexpected")
                self._say(f"{type(error).__name__}: {error}")
                version, pause = "", PAUSES[1]
            # A server that ends every watch at once is not asked in a loop either.
            time.sleep(pause * random.uniform(0.3, 1))  # noqa: S311  no secret

    def _list(self) -> str:
        """Take over all nodes as they are; return the version to watch from."""
        nodes: dict[str, Node] = {}
        version = ""
        for items, version in self.api.list_pages():  # noqa: B007  the last one's
            nodes.update((node.name, node) for node in map(parse_node, items))
        with self._guard:
            changed, self._nodes = self._nodes != nodes, nodes
        if changed:
            self.wake()
        return version

    def _follow(self, version: str) -> Iterator[str]:
        """Take over each event and yield the version it leaves the cluster at."""
        for event in self.api.watch(version):
            found = event["object"]
            if event["type"] != "BOOKMARK":
                self._take(parse_node(found), gone=event["type"] == "DELETED")
            self._say("")
            yield found["metadata"]["resourceVersion"]

    def _take(self, node: Node, *, gone: bool) -> None:
        with self._guard:
            nodes = self._nodes if self._nodes is not None else {}
            if nodes.get(node.name) == (None if gone else node):
                return
            if gone:
                del nodes[node.name]
            else:
                nodes[node.name] = node
        self.wake()

    def _say(self, problem: str) -> None:
        with self._guard:
            changed, self._problem = self._problem != problem, problem
        if changed:
            own.warning(render_pairs(nodes=problem or "followed"))
            self.wake()
