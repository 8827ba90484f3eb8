"""`CNIError`, the only error that a runtime sees, and the codes of the specification.

Codes 0-99 belong to the specification. `Code.INTERNAL` and `Code.INVALID_NETNS` are the
reference library's. https://www.cni.dev/docs/spec/#error
"""

from __future__ import annotations

import logging
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("podwire")


class Code(IntEnum):
    """The error codes, by the specification's words."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIG = 7
    INVALID_NETNS = 8
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    CHECK_FAILED = 100  # ours, as 100 and above are each plugin's own
    INTERNAL = 999


class CNIError(Exception):
    """A failed call: `msg` names the object, what was wanted and what was found."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        """Keep the three fields that the specification gives an error."""
        super().__init__(msg)
        self.code = int(code)
        self.msg = msg
        self.details = details

    def render(self, cni_version: str) -> dict[str, object]:
        """Return the error object of the specification; an empty `details` is left out."""
        rendered: dict[str, object] = {"cniVersion": cni_version, "code": self.code, "msg": self.msg}
        if self.details:
            rendered["details"] = self.details
        return rendered


def invalid_config(msg: str, details: str = "") -> CNIError:
    """Return the error for a configuration that says something impossible."""
    return CNIError(Code.INVALID_CONFIG, msg, details)


def broken(msg: str) -> CNIError:
    """Return the error of a CHECK that found something other than ADD left it."""
    return CNIError(Code.CHECK_FAILED, msg)


def combine(errors: list[CNIError]) -> CNIError:
    """Return one error for all that went wrong in a verb that keeps going.

    The first error's code speaks for all of them, except that a permanent error outranks
    "try again later": a retry would not mend it. It is the cause, too.
    """
    first = next((e for e in errors if e.code != Code.TRY_AGAIN_LATER), errors[0])
    details = "; ".join(e.details for e in errors if e.details)
    combined = CNIError(first.code, "; ".join(e.msg for e in errors), details)
    combined.__cause__ = first
    return combined


def unexpected(error: Exception) -> CNIError:
    """Return the error for what nobody foresaw."""
    return CNIError(Code.INTERNAL, f"{type(error).__name__}: {error}")


def run_all(*steps: Callable[[], object]) -> None:
    """Run every step and raise what went wrong at the end, as one error."""
    errors = []
    for step in steps:
        try:
            step()
        except CNIError as error:
            errors.append(error)
        except Exception as error:  # what nobody foresaw must not keep the others
            log.exception("unexpected")
            errors.append(unexpected(error))
    if errors:
        raise combine(errors)
