"""VLANs of bridge ports: `bridge vlan add dev PORT vid VID [pvid] [untagged]`.

The requests are iproute2's, attribute for attribute. Linux: net/bridge/br_netlink.c,
uapi/linux/if_bridge.h.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.kernel import netlink
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.link import link_body, parse_index, read_link
from cni_plugin.kernel.message import AF_BRIDGE, attribute, list_attributes, nested, u32
from cni_plugin.kernel.netlink import Change, Query

if TYPE_CHECKING:
    from cni_plugin.kernel.netlink import Netlink

_IFLA_AF_SPEC, _IFLA_EXT_MASK, _IFLA_BRIDGE_VLAN_INFO = 26, 29, 2
_VLAN_INFO = struct.Struct("=HH")  # struct bridge_vlan_info: flags, vid
_PVID, _UNTAGGED, _RANGE_BEGIN, _RANGE_END = 0x02, 0x04, 0x08, 0x10
_RTEXT_FILTER_BRVLAN = 0x02


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Vlan:
    """One VLAN id, or the range from `vid` to `last`, of a port."""

    vid: int
    last: int
    pvid: bool = False
    untagged: bool = False

    def __str__(self) -> str:
        """Return the words of the `bridge vlan` command."""
        ids = f"vid {self.vid}" if self.vid == self.last else f"vid {self.vid}-{self.last}"
        return ids + (" pvid" if self.pvid else "") + (" untagged" if self.untagged else "")


def access_vlan(vid: int) -> Vlan:
    """Return the VLAN whose frames come and go untagged."""
    return Vlan(vid=vid, last=vid, pvid=True, untagged=True)


def add_vlan(port: str, index: int, vlan: Vlan) -> Change:
    """Return the change that makes the port a member of the VLAN."""
    return Change(f"bridge vlan add dev {port} {vlan}", netlink.RTM_SETLINK, _body(index, vlan))


def delete_vlan(port: str, index: int, vlan: Vlan) -> Change:
    """Return the change that takes the port out of the VLAN."""
    return Change(f"bridge vlan del dev {port} {vlan}", netlink.RTM_DELLINK, _body(index, vlan))


def _body(index: int, vlan: Vlan) -> bytes:
    flags = (_PVID if vlan.pvid else 0) | (_UNTAGGED if vlan.untagged else 0)
    infos = (_VLAN_INFO.pack(*member) for member in _members(vlan, flags))
    spec = nested(_IFLA_AF_SPEC, *(attribute(_IFLA_BRIDGE_VLAN_INFO, info) for info in infos))
    return link_body(spec, index=index, family=AF_BRIDGE)


def _members(vlan: Vlan, flags: int) -> list[tuple[int, int]]:
    if vlan.vid == vlan.last:
        return [(flags, vlan.vid)]
    return [(flags | _RANGE_BEGIN, vlan.vid), (flags | _RANGE_END, vlan.last)]


def list_vlans(nl: Netlink, index: int) -> list[Vlan]:
    """Return the VLANs of the port with this index, one entry per id."""
    body = link_body(u32(_IFLA_EXT_MASK, _RTEXT_FILTER_BRVLAN), family=AF_BRIDGE)
    ports = nl.dump(Query("bridge vlan show", netlink.RTM_GETLINK, body))
    return [vlan for port in ports if parse_index(port) == index for vlan in _parse(port)]


def _parse(port: bytes) -> list[Vlan]:
    infos = list_attributes(read_link(port).get(_IFLA_AF_SPEC, b""))
    found = [_VLAN_INFO.unpack(value) for kind, value in infos if kind == _IFLA_BRIDGE_VLAN_INFO]
    return [
        Vlan(vid=vid, last=vid, pvid=bool(flags & _PVID), untagged=bool(flags & _UNTAGGED))
        for flags, vid in found
    ]


def vlans_can_be_filtered(nl: Netlink) -> bool:
    """Tell whether bridges of this kernel filter VLANs; no VLAN database means that they cannot."""
    body = link_body(family=AF_BRIDGE)
    try:
        nl.dump(Query("bridge vlan global show", netlink.RTM_GETVLAN, body))
    except KernelError as error:
        # Another refusal comes from the VLAN code itself, which is then there.
        return error.errno != errno.EOPNOTSUPP
    return True
