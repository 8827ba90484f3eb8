"""What ours is to reach beside the Go plugins that are compared with: by default the newest.

Those for a dual-stack ADD allow for that these do not wait for addresses to settle, as 1.1.1 does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.contenders import C_SHIM, PYTHON_SHIM

if TYPE_CHECKING:
    from bench.figures import Row

Figure = Literal["ratio", "tail", "to_empty"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The most that a figure of one verb of a work may be, by contender."""

    work: str
    verb: str
    most: dict[str, float]
    figure: Figure = "ratio"


def _ratio(work: str, verb: str, c_shim: float, python_shim: float) -> Target:
    return Target(work=work, verb=verb, most={C_SHIM: c_shim, PYTHON_SHIM: python_shim})


def _of_chain(work: str, verb: str, c_shim: float, figure: Figure = "ratio") -> Target:
    return Target(work=work, verb=verb, most={C_SHIM: c_shim}, figure=figure)


TARGETS = (
    _ratio("v4", "ADD", 0.50, 1.05),
    _ratio("v4", "DEL", 0.90, 1.10),
    _ratio("dual", "ADD", 0.45, 0.90),
    _ratio("dual", "DEL", 0.90, 1.10),
    _ratio("pods-16", "ADD", 0.35, 0.80),
    _ratio("pods-16", "DEL", 0.45, 0.85),
    _ratio("pods-100", "DEL", 0.20, 0.50),
    _ratio("ipam", "ADD", 0.05, 0.08),
    _ratio("ipam", "DEL", 0.05, 0.08),
    *(
        Target(work=work, verb="ADD", most={C_SHIM: 3, PYTHON_SHIM: 3}, figure="tail")
        for work in ("v4", "v6", "dual", "masq")
    ),
    *(
        target
        for work in ("chain", "one")
        for target in (
            _of_chain(work, "ADD", 0.10),
            _of_chain(work, "DEL", 0.15),
            _of_chain(f"{work}-16", "ADD", 0.10),
            _of_chain(f"{work}-16", "DEL", 0.10),
            _of_chain(f"{work}-present", "ADD", 1.3, "to_empty"),
        )
    ),
)


def target_of(row: Row, figure: Figure) -> float | None:
    """Return the most that a figure of this row may be; None when nothing is asked of it."""
    for target in TARGETS:
        if (target.work, target.verb, target.figure) == (row.work, row.verb, figure):
            return target.most.get(row.contender)
    return None
