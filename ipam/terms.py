"""What a network may ask of its addresses beyond what host-local does; without it nothing is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On which terms addresses are given; the default is host-local's own."""

    keep_band: bool = False
    """The first addresses of a set go to who requests them, to others only when no other is free."""
