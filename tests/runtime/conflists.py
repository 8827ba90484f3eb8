"""The configurations that are shipped, as a test uses them: with the address store in its own directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONF = Path(__file__).parents[2] / "conf"


def shipped() -> list[Path]:
    """Return every shipped network configuration; there must be some."""
    found = sorted(CONF.glob("*.conflist"))
    assert found, f"{CONF} has no conflist"
    return found


def with_families(*families: int) -> Path:
    """Return the shipped configuration that gives a pod an address of just these families."""
    return next(path for path in shipped() if _families(json.loads(path.read_text())) == set(families))


def moved(path: Path, data_dir: Path) -> str:
    """Return the configuration with its address store moved to `data_dir`, and otherwise as shipped."""
    conflist = json.loads(path.read_text())
    for plugin in conflist["plugins"]:
        if "ipam" in plugin:
            plugin["ipam"]["dataDir"] = str(data_dir)
    return json.dumps(conflist)


def _families(conflist: dict[str, Any]) -> set[int]:
    ipam = conflist["plugins"][0]["ipam"]
    ranges = [entry for range_set in ipam.get("ranges", [[ipam]]) for entry in range_set]
    return {6 if ":" in entry["subnet"] else 4 for entry in ranges}
