"""Typed access to a JSON object, with errors that name the key.

Keys match as Go's decoder matches them: exactly first, else without regard to case, since
containerd sends `HostPort` and `IngressRate`. `null` leaves the default, unknown keys are
ignored, and a value of another type is an error (code 7) that says what was wanted and found.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from cni_plugin.contract.errors import invalid_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

T = TypeVar("T")

# JSON can say what no name, path or alias can hold: NUL and half of a surrogate pair.
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")

_NAMES = {str: "a string", bool: "true or false", int: "an integer", list: "a list", dict: "an object"}


class Fields:
    """One JSON object and the path that leads to it."""

    __slots__ = ("_names", "path", "raw")

    def __init__(self, raw: Mapping[str, object], path: str = "") -> None:
        """Read `raw`, found at the dotted `path` ("" for the document itself)."""
        self.raw = raw
        self.path = path
        self._names = {name.casefold(): name for name in raw}

    def value(self, key: str) -> object:
        """Return the value under `key` whatever its type, None when absent."""
        if key in self.raw:
            return self.raw[key]
        name = self._names.get(key.casefold())
        return None if name is None else self.raw[name]

    def name(self, key: str) -> str:
        """Return the dotted path of `key`, as error messages show it."""
        return f"{self.path}.{key}" if self.path else key

    def _typed(self, key: str, kind: type[T]) -> T | None:
        value = self.value(key)
        if value is None:
            return None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise invalid_config(f'"{self.name(key)}" must be {_NAMES[kind]}, found {_show(value)}')
        return value

    def string(self, key: str, default: str = "") -> str:
        """Return the string under `key`."""
        value = self._typed(key, str)
        return default if value is None else _text(value, self.name(key))

    def boolean(self, key: str, *, default: bool = False) -> bool:
        """Return the boolean under `key`."""
        value = self._typed(key, bool)
        return default if value is None else value

    def integer(self, key: str, low: int, high: int) -> int | None:
        """Return the integer under `key`, which must lie in low..high; None when absent."""
        value = self._typed(key, int)
        if value is not None and not low <= value <= high:
            raise invalid_config(f'"{self.name(key)}" must be in {low}..{high}, found {value}')
        return value

    def section(self, key: str) -> Fields | None:
        """Return the object under `key`; None when absent."""
        value = self._typed(key, dict)
        return None if value is None else Fields(value, self.name(key))

    def strings(self, key: str) -> list[str]:
        """Return the list of strings under `key`; empty when absent."""
        return [_text(value, f"{self.name(key)}[{i}]") for i, value in enumerate(self.items(key))]

    def objects(self, key: str) -> Iterator[Fields]:
        """Yield the objects of the list under `key`."""
        return objects(self.items(key), self.name(key))

    def items(self, key: str) -> list[object]:
        """Return the list under `key`, its members unread; empty when absent."""
        return self._typed(key, list) or []


def objects(values: list[object], path: str) -> Iterator[Fields]:
    """Yield each member of a list as an object, or say which one is none."""
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise invalid_config(f'"{path}[{index}]" must be an object, found {_show(value)}')
        yield Fields(value, f"{path}[{index}]")


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise invalid_config(f'"{path}" must be a string, found {_show(value)}')
    if _NOT_TEXT.search(value):
        raise invalid_config(f'"{path}" must be Unicode text without NUL, found {value!r}')
    return value


def kind_of_json(value: object) -> str:
    """Return what a value is in JSON's own words."""
    return "null" if value is None else _NAMES.get(type(value), "a number")


def _show(value: object) -> str:
    """Return what an error says was found: the value when it is short, else its kind."""
    kind = kind_of_json(value)
    if isinstance(value, (list, dict)):
        return kind  # it may nest deeper than can be shown
    text = f'"{value}"' if isinstance(value, str) else str(value).lower()
    return text if len(text) <= 60 else kind
