"""The undo stack: what a failed call takes back, in reverse order, without hiding the first error."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("podwire")
T = TypeVar("T")


class Undo(ExitStack):
    """A stack whose steps may fail: that is logged, the others follow, and the first error stays."""

    def callback(self, call: Callable[..., T], /, *arguments: Any, **keys: Any) -> Callable[..., T]:  # noqa: ANN401
        """Push `call(*arguments, **keys)`."""
        super().callback(_try, call, arguments, keys)
        return call


def _try(call: Callable[..., object], arguments: tuple[Any, ...], keys: dict[str, Any]) -> None:
    try:
        call(*arguments, **keys)
    except Exception as error:  # noqa: BLE001 - whatever it is, the others must be undone
        log.warning("while undoing: %s", error or type(error).__name__)
