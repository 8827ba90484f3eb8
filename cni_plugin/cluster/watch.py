"""Watches one kind of the cluster's objects in a thread: list, then watch, then list again."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from random import SystemRandom
from typing import TYPE_CHECKING, Generic

from cni_plugin.agent.journal import own, render_pairs
from cni_plugin.cluster.api import APIError, GoneError, NotFoundError
from cni_plugin.cluster.resources import ObjectT, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.cluster.api import API
    from cni_plugin.cluster.resources import Resource
    from cni_plugin.cluster.snapshot import Snapshot

PAUSES = (1.0, 30.0)  # seconds between attempts, from the first to the longest


@dataclass
class Watch(Generic[ObjectT]):
    """Follows the API's objects of a kind and keeps a snapshot of them."""

    api: API
    resource: Resource[ObjectT]
    snapshot: Snapshot[ObjectT]
    _ended: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin; the thread ends with the process, or some time after `stop`."""
        threading.Thread(target=self._run, name=f"watch {self.resource.name}", daemon=True).start()

    def stop(self) -> None:
        """Take over nothing any more; the thread ends when the API next says something."""
        self._ended.set()

    def _run(self) -> None:
        version, pause = "", PAUSES[0]
        while not self._ended.is_set():
            try:
                version = version or self._list()
                for seen in self._follow(version):
                    version, pause = seen, PAUSES[0]
                    if self._ended.is_set():
                        return
            except GoneError:
                version = ""
            except APIError as error:
                pause = min(pause * 2, PAUSES[1])
                self._say(self._forgive(error))
            except Exception as error:  # noqa: BLE001  it is said, and tried again
                # A thread that ends would leave the node with what it knew, and nobody would know.
                own.exception("unexpected")
                self._say(f"{type(error).__name__}: {error}")
                version, pause = "", PAUSES[1]
            # A server that ends every watch at once is not asked in a loop either.
            self._ended.wait(pause * SystemRandom().uniform(0.3, 1))

    def _forgive(self, error: APIError) -> str:
        """Return what is wrong: nothing when the API does not know a kind that it need not know."""
        if not (self.resource.optional and isinstance(error, NotFoundError)):
            return str(error)
        self.snapshot.replace({})
        return ""

    def _list(self) -> str:
        """Take over all objects as they are; return the version to watch from."""
        objects: dict[str, ObjectT] = {}
        version = ""
        for items, version in self.api.list_pages(self.resource):  # noqa: B007  the last one's
            objects.update((key_of(raw), self.resource.parse(raw)) for raw in items)
        self.snapshot.replace(objects)
        return version

    def _follow(self, version: str) -> Iterator[str]:
        """Take over each event and yield the version it leaves the cluster at."""
        for event in self.api.watch(self.resource, version):
            found = event["object"]
            if event["type"] != "BOOKMARK" and not self._ended.is_set():
                gone = event["type"] == "DELETED"
                self.snapshot.put(key_of(found), None if gone else self.resource.parse(found))
            self._say("")
            yield found["metadata"]["resourceVersion"]

    def _say(self, problem: str) -> None:
        if self.snapshot.say(problem):
            own.warning(render_pairs(**{self.resource.name: problem or "followed"}))
