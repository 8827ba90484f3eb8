"""How fast TCP is between two namespaces, measured with iperf3 for two seconds.

A machine with other work may be too slow for a while, but a limit is never faster than it is.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.harness.node import Space

SECONDS = 2
WITHIN = 0.1
TRIES = 3


def assert_rate(client: Space, server: Space, address: str, wanted: int) -> None:
    """Assert that what arrives is within a tenth of what is wanted (bits/s)."""
    found: list[float] = []
    while not any(abs(rate - wanted) <= WITHIN * wanted for rate in found):
        assert len(found) < TRIES, f"wanted {wanted}, found {found}"
        found.append(measure_rate(client, server, address))
        assert found[-1] <= (1 + WITHIN) * wanted, found


def measure_rate(client: Space, server: Space, address: str) -> float:
    """Return the bits/s that arrive at `address` of the server."""
    command = ["nsenter", f"--net={server.path}", "iperf3", "--server", "--one-off", "--forceflush"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "listening" not in (line := process.stdout.readline()):
            assert line, "iperf3 ended"
        try:
            words = [
                "iperf3",
                "--client",
                address,
                "--time",
                str(SECONDS),
                "--json",
                "--connect-timeout",
                "3000",
            ]
            report = json.loads(client.run(*words).stdout)
        finally:
            process.terminate()
    rate: float = report["end"]["sum_received"]["bits_per_second"]
    return rate
