"""VLAN requests as iproute2 sends them: the kernels of the CI machines cannot take them.

The bytes are linux/if_link.h's and linux/if_bridge.h's: IFLA_AF_SPEC (26) holding one
IFLA_BRIDGE_VLAN_INFO (2) of flags and vid for each VLAN, or two for a range.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from cni_plugin.kernel.netlink import NLM_F_ACK, RTM_DELLINK, RTM_SETLINK, pack
from cni_plugin.kernel.vlan import Vlan, access_vlan, add_vlan, delete_vlan

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_plugin.kernel.netlink import Change

PVID, UNTAGGED, BEGIN, END = 2, 4, 8, 16
AF_BRIDGE = 7


@pytest.mark.parametrize(
    ("vlan", "infos"),
    [
        (access_vlan(10), [(PVID | UNTAGGED, 10)]),
        (Vlan(vid=5, last=5), [(0, 5)]),
        (Vlan(vid=5, last=9), [(BEGIN, 5), (END, 9)]),
    ],
)
@pytest.mark.parametrize(("change", "kind"), [(add_vlan, RTM_SETLINK), (delete_vlan, RTM_DELLINK)])
def test_a_request_holds_the_port_and_one_entry_for_each_end_of_a_range(
    change: Callable[..., Change], kind: int, vlan: Vlan, infos: list[tuple[int, int]]
) -> None:
    made = change("veth0", 7, vlan)
    raw = pack(made.kind, NLM_F_ACK, made.body)
    nested = b"".join(struct.pack("=HHHH", 8, 2, flags, vid) for flags, vid in infos)
    length, found_kind = struct.unpack_from("=IH", raw)
    family, index = struct.unpack_from("=BxxxI", raw, 16)
    assert (length, found_kind, family, index) == (len(raw), kind, AF_BRIDGE, 7)
    size, attribute = struct.unpack_from("=HH", raw, 32)
    assert (size, attribute & 0x3FFF) == (4 + len(nested), 26)
    assert raw[36:] == nested
