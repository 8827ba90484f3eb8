"""VLANs of bridge ports: `bridge vlan add dev PORT vid VID [pvid] [untagged]`.

The requests are iproute2's, attribute for attribute. Linux: net/bridge/br_netlink.c,
uapi/linux/if_bridge.h.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from cni_plugin.kernel import netlink
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.link import ifinfmsg_of
from cni_plugin.kernel.netlink import Change, Message, Netlink, ifinfmsg

_AF_BRIDGE = 7
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
    return Change(f"bridge vlan add dev {port} {vlan}", _message(index, vlan), netlink.RTM_SETLINK)


def delete_vlan(port: str, index: int, vlan: Vlan) -> Change:
    """Return the change that takes the port out of the VLAN."""
    return Change(f"bridge vlan del dev {port} {vlan}", _message(index, vlan), netlink.RTM_DELLINK)


def _message(index: int, vlan: Vlan) -> Message:
    message = ifinfmsg_of(index=index)
    message["family"] = _AF_BRIDGE
    flags = (_PVID if vlan.pvid else 0) | (_UNTAGGED if vlan.untagged else 0)
    message["attrs"] = [("IFLA_AF_SPEC", {"attrs": [_info(*member) for member in _members(vlan, flags)]})]
    return message


def _members(vlan: Vlan, flags: int) -> list[tuple[int, int]]:
    if vlan.vid == vlan.last:
        return [(flags, vlan.vid)]
    return [(flags | _RANGE_BEGIN, vlan.vid), (flags | _RANGE_END, vlan.last)]


def _info(flags: int, vid: int) -> tuple[str, dict[str, int]]:
    return "IFLA_BRIDGE_VLAN_INFO", {"flags": flags, "vid": vid}


def list_vlans(nl: Netlink, index: int) -> list[Vlan]:
    """Return the VLANs of the port with this index, one entry per id."""
    message = ifinfmsg()
    message["family"] = _AF_BRIDGE
    message["attrs"] = [("IFLA_EXT_MASK", _RTEXT_FILTER_BRVLAN)]
    ports = nl.dump("bridge vlan show", message, netlink.RTM_GETLINK)
    return [vlan for port in ports if port["index"] == index for vlan in _parse(port)]


def _parse(port: Message) -> list[Vlan]:
    spec = port.get_attr("IFLA_AF_SPEC")
    infos = spec.get_attrs("IFLA_BRIDGE_VLAN_INFO") if spec else []
    return [
        Vlan(
            vid=info["vid"],
            last=info["vid"],
            pvid=bool(info["flags"] & _PVID),
            untagged=bool(info["flags"] & _UNTAGGED),
        )
        for info in infos
    ]


def vlans_can_be_filtered(nl: Netlink) -> bool:
    """Tell whether bridges of this kernel filter VLANs; no VLAN database means that they cannot."""
    message = ifinfmsg()
    message["family"] = _AF_BRIDGE
    try:
        nl.dump("bridge vlan global show", message, netlink.RTM_GETVLAN)
    except KernelError as error:
        # Another refusal comes from the VLAN code itself, which is then there.
        return error.errno != errno.EOPNOTSUPP
    return True
