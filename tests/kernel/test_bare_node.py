"""A network namespace that never had an address, not even of the loopback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("version", [4, 6])
def test_without_a_main_routing_table_there_is_no_default_route(version: int) -> None:
    """IPv4 makes the table with the first address; until then it is not empty but absent."""
    asked = (
        "from cni_plugin.kernel import netlink, route; "
        f"assert route.list_default_routes(netlink.Netlink(), {version}) == []"
    )
    subprocess.run(["unshare", "--net", sys.executable, "-c", asked], check=True, cwd=ROOT)
