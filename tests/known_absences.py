"""What the machines that run the tests may lack, and how it is verified without it.

The one list of known absences: a test that needs something else fails with what to install.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Absence:
    """A facility of the kernel that may be absent."""

    name: str
    reason: str
    verified_by: str


KNOWN_ABSENCES = (
    Absence(
        name="CONFIG_BRIDGE_VLAN_FILTERING",
        reason="the kernel of the CI machines is built without it: no VLAN can be set on a bridge port",
        verified_by="the refusal, for a new and an existing bridge, in tests/protocol/test_bad_input.py; the "
        "requests, byte for byte those of iproute2, in tests/kernel/test_vlan_requests.py and "
        "tests/unit/test_vlan.py; the gateway of an access VLAN in tests/kernel/test_vlan_gateway.py",
    ),
    Absence(
        name="CONFIG_IP_SCTP",
        reason="the kernel of the CI machines is built without it: no socket can speak SCTP",
        verified_by="the element of an SCTP host port, as nft shows it, in tests/kernel/test_portmap.py; the "
        "rule that looks it up is the one of TCP and UDP",
    ),
)
