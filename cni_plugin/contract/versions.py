"""The versions of the CNI specification, and what each of them can express.

Membership is by exact string, as in the reference library: "1.0" and "v1.0.0" are refused.
"""

from __future__ import annotations

SUPPORTED = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = SUPPORTED[-1]
# A configuration that names no version speaks the first one.
DEFAULT = SUPPORTED[0]

# The first version that has each verb; ADD, DEL and VERSION are older than the numbers.
FIRST_WITH = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}

# Results convert freely inside a family; between families their shape differs.
FAMILIES = (("0.1.0", "0.2.0"), ("0.3.0", "0.3.1", "0.4.0"), ("1.0.0", "1.1.0"))


def at_least(version: str, wanted: str) -> bool:
    """Tell whether the supported `version` is `wanted` or newer."""
    return SUPPORTED.index(version) >= SUPPORTED.index(wanted)


def family(version: str) -> tuple[str, ...]:
    """Return the versions whose results have the same shape as `version`'s."""
    return next(members for members in FAMILIES if version in members)
