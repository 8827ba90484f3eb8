"""A finding of the doctor: what is wrong, what it means to pods, which command repairs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """An `error` keeps pods from starting or from being reached, a `warning` will, a `note` is only said."""

    severity: Severity
    object: str
    found: str
    meaning: str
    remedy: str
