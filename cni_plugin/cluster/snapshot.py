"""What is known of one kind of objects, and which of them have changed since somebody last asked.

A watch fills it from its thread. What is known stays known while the API is away. Whoever waits is
woken when something changed that is kept of the objects: heartbeats change nothing.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic

from cni_plugin.cluster.resources import ObjectT

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class Known(Generic[ObjectT]):
    """What is known of a kind; `objects` is None until all of them have been listed once."""

    objects: dict[str, ObjectT] | None = None
    problem: str = ""
    """Why it may be out of date."""


@dataclass
class Snapshot(Generic[ObjectT]):
    """The objects by their key; `wake` is called, from the watch's thread, when they have become others."""

    wake: Callable[[], None]
    _objects: dict[str, ObjectT] | None = None
    _changed: set[str] = field(default_factory=set)
    _since: float = 0.0
    _problem: str = "the API has not answered yet"
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def known(self) -> Known[ObjectT]:
        """Return what is known now; the caller may keep it."""
        with self._guard:
            objects = None if self._objects is None else dict(self._objects)
            return Known(objects=objects, problem=self._problem)

    @property
    def is_complete(self) -> bool:
        """Tell whether all objects have been listed once."""
        return self._objects is not None

    @property
    def problem(self) -> str:
        """Return why what is known may be out of date; empty when it is not."""
        return self._problem

    @property
    def changed_since(self) -> float:
        """Return when the first change came that nobody has taken yet (time.monotonic), 0 for none."""
        return self._since

    def take_changes(self) -> dict[str, ObjectT | None]:
        """Return the objects that changed since the last call, None for one that is gone."""
        with self._guard:
            changed, self._changed = self._changed, set()
            self._since = 0.0
            objects = self._objects or {}
            return {key: objects.get(key) for key in changed}

    def replace(self, objects: dict[str, ObjectT]) -> None:
        """Take over all objects as they were listed."""
        with self._guard:
            before = self._objects
            known = before or {}
            self._objects = objects
            changed = {key for key, found in objects.items() if known.get(key) != found}
            changed |= known.keys() - objects.keys()
            self._note(changed)
        if changed or before is None:
            self.wake()

    def put(self, key: str, found: ObjectT | None) -> None:
        """Take over one object; None says that it is gone."""
        with self._guard:
            objects = self._objects if self._objects is not None else {}
            if objects.get(key) == found:
                return
            if found is None:
                del objects[key]
            else:
                objects[key] = found
            self._note({key})
        self.wake()

    def _note(self, changed: set[str]) -> None:
        self._changed |= changed
        if changed and not self._since:
            self._since = time.monotonic()

    def say(self, problem: str) -> bool:
        """Take over why it may be out of date; tell whether that is news."""
        with self._guard:
            is_news, self._problem = self._problem != problem, problem
        if is_news:
            self.wake()
        return is_news
