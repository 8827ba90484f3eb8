"""Links: reading any, making and deleting veth pairs.

A veth is made with one end in the pod in one request: `ip link add NAME type veth peer name
IFNAME netns POD`. Deleting one end deletes the other. The pod's end cannot be made up (the
kernel answers ENOTCONN); it is brought up afterwards.
"""

from __future__ import annotations

import errno
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.kernel import netlink
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.netlink import Change, Message, Netlink, ifinfmsg, parse_attributes

if TYPE_CHECKING:
    from collections.abc import Sequence

IFF_UP, IFF_PROMISC = 0x1, 0x100
# linux/if_link.h, linux/if.h
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_OPERSTATE, _IFLA_LINKINFO, _IFLA_IFALIAS = 16, 18, 20
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_IFLA_BR_VLAN_FILTERING = 7
_IFLA_BRPORT_STATE, _IFLA_BRPORT_MODE, _IFLA_BRPORT_ISOLATED = 1, 4, 33
_IF_OPER_UNKNOWN, _IF_OPER_UP = 0, 6
_IFINFOMSG = struct.Struct("=16x4xiI4x")  # nlmsghdr, then of ifinfomsg index and flags
_ABSENT = frozenset({errno.ENODEV, errno.ENXIO})


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """What a bridge keeps about one of its ports."""

    forwarding: bool
    blocked_by_stp: bool
    hairpin: bool
    isolated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link as the kernel shows it; `master` and `peer` are indexes, 0 for none. `mtu` in bytes."""

    index: int
    name: str
    kind: str
    mac: str
    mtu: int
    flags: int
    carrier_seen: bool
    master: int
    peer: int
    alias: str
    vlan_filtering: bool
    port: Port | None

    @property
    def promisc(self) -> bool:
        """Tell whether somebody set promiscuous mode by hand; a bridge sets it by itself, unseen here."""
        return bool(self.flags & IFF_PROMISC)


def get_link(nl: Netlink, name: str) -> Link | None:
    """Return the link called `name`, None when there is none."""
    return _get(nl, f"ip link show {name}", ifinfmsg_of(attrs=[("IFLA_IFNAME", name)]))


def get_link_by_index(nl: Netlink, index: int) -> Link | None:
    """Return the link with this index, None when there is none."""
    return _get(nl, f"ip link show index {index}", ifinfmsg_of(index=index))


def _get(nl: Netlink, command: str, message: Message) -> Link | None:
    try:
        return _parse(nl.get_raw(command, message, netlink.RTM_GETLINK))
    except KernelError as error:
        if error.errno in _ABSENT:
            return None
        raise


def list_links(nl: Netlink, *, master: int = 0, kind: str = "") -> list[Link]:
    """Return all links, or the ports of `master`, or those of one kind; the kernel filters."""
    attrs: list[tuple[str, object]] = [("IFLA_MASTER", master)] if master else []
    if kind:
        attrs.append(("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", kind)]}))
    found = nl.dump_raw("ip link show", ifinfmsg_of(attrs=attrs), netlink.RTM_GETLINK)
    return [_parse(raw) for raw in found]


def ifinfmsg_of(
    *, index: int = 0, flags: int = 0, mask: int = 0, attrs: Sequence[tuple[str, object]] = ()
) -> Message:
    """Return a link message; `flags` takes effect where `mask` has a one."""
    message = ifinfmsg()
    message["index"] = index
    message["flags"] = flags
    message["change"] = mask
    message["attrs"] = list(attrs)
    return message


def _parse(raw: bytes) -> Link:
    index, flags = _IFINFOMSG.unpack_from(raw)
    attributes = parse_attributes(raw, _IFINFOMSG.size)
    info = parse_attributes(attributes.get(_IFLA_LINKINFO, b""))
    kind = _text(info.get(_IFLA_INFO_KIND))
    settings = parse_attributes(info.get(_IFLA_INFO_DATA, b"")) if kind == "bridge" else {}
    return Link(
        index=index,
        name=_text(attributes.get(_IFLA_IFNAME)),
        kind=kind,
        mac=attributes.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(attributes.get(_IFLA_MTU)),
        flags=flags,
        carrier_seen=_number(attributes.get(_IFLA_OPERSTATE)) in {_IF_OPER_UNKNOWN, _IF_OPER_UP},
        master=_number(attributes.get(_IFLA_MASTER)),
        peer=_number(attributes.get(_IFLA_LINK)),
        alias=_text(attributes.get(_IFLA_IFALIAS)),
        vlan_filtering=bool(_number(settings.get(_IFLA_BR_VLAN_FILTERING))),
        port=_parse_port(info),
    )


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="replace")


def _number(value: bytes | None) -> int:
    return int.from_bytes(value or b"", sys.byteorder)


def _parse_port(info: dict[int, bytes]) -> Port | None:
    if _text(info.get(_IFLA_INFO_SLAVE_KIND)) != "bridge":
        return None
    settings = parse_attributes(info.get(_IFLA_INFO_SLAVE_DATA, b""))
    state = _number(settings.get(_IFLA_BRPORT_STATE))
    return Port(
        forwarding=state == 3,  # BR_STATE_FORWARDING, linux/if_bridge.h
        blocked_by_stp=state in {1, 2, 4},  # listening, learning, blocking
        hairpin=bool(_number(settings.get(_IFLA_BRPORT_MODE))),
        isolated=bool(_number(settings.get(_IFLA_BRPORT_ISOLATED))),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VethPair:
    """A pair to be made: the host's end with its name, MAC and master, and the pod's end."""

    name: str
    mac: str
    master: int
    mtu: int
    peer_name: str
    peer_mac: str
    peer_netns: int
    """A descriptor of the namespace that the peer is made in."""


def add_veth(nl: Netlink, pair: VethPair) -> None:
    """Make a veth pair, the host's end up and in its bridge, the pod's end down.

    Raises KernelError with EEXIST when either name is taken; the kernel does not say which.
    """
    ends = f"peer name {pair.peer_name} netns POD address {pair.peer_mac}"
    master = f" master index {pair.master}" if pair.master else ""
    command = f"ip link add {pair.name} address {pair.mac} mtu {pair.mtu}{master} up type veth {ends}"
    peer = [
        ("IFLA_IFNAME", pair.peer_name),
        ("IFLA_NET_NS_FD", pair.peer_netns),
        ("IFLA_ADDRESS", pair.peer_mac),
        ("IFLA_MTU", pair.mtu),
    ]
    data = {"attrs": [("VETH_INFO_PEER", {"attrs": peer})]}
    attrs: list[tuple[str, object]] = [
        ("IFLA_IFNAME", pair.name),
        ("IFLA_ADDRESS", pair.mac),
        ("IFLA_MTU", pair.mtu),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", data)]}),
    ]
    if pair.master:
        attrs.append(("IFLA_MASTER", pair.master))
    message = ifinfmsg_of(flags=IFF_UP, mask=IFF_UP, attrs=attrs)
    nl.change(Change(command, message, netlink.RTM_NEWLINK, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL))


def delete_link(nl: Netlink, name: str) -> bool:
    """Delete the link; return whether there was one."""
    message = ifinfmsg_of(attrs=[("IFLA_IFNAME", name)])
    try:
        nl.change(Change(f"ip link del {name}", message, netlink.RTM_DELLINK))
    except KernelError as error:
        if error.errno in _ABSENT:
            return False
        raise
    return True


def set_up(name: str) -> Change:
    """Return the change that brings a link up."""
    message = ifinfmsg_of(flags=IFF_UP, mask=IFF_UP, attrs=[("IFLA_IFNAME", name)])
    return Change(f"ip link set {name} up", message, netlink.RTM_NEWLINK)


def set_mtu(name: str, mtu: int) -> Change:
    """Return the change that sets a link's MTU, in bytes."""
    message = ifinfmsg_of(attrs=[("IFLA_IFNAME", name), ("IFLA_MTU", mtu)])
    return Change(f"ip link set {name} mtu {mtu}", message, netlink.RTM_NEWLINK)


def set_promisc(name: str) -> Change:
    """Return the change that switches promiscuous mode on."""
    message = ifinfmsg_of(flags=IFF_PROMISC, mask=IFF_PROMISC, attrs=[("IFLA_IFNAME", name)])
    return Change(f"ip link set {name} promisc on", message, netlink.RTM_NEWLINK)


def set_mac(name: str, mac: str) -> Change:
    """Return the change that sets a link's MAC; on a bridge this also pins it."""
    message = ifinfmsg_of(attrs=[("IFLA_IFNAME", name), ("IFLA_ADDRESS", mac)])
    return Change(f"ip link set {name} address {mac}", message, netlink.RTM_NEWLINK)


def set_alias(name: str, alias: str) -> Change:
    """Return the change that says whose a link is."""
    message = ifinfmsg_of(attrs=[("IFLA_IFNAME", name), ("IFLA_IFALIAS", alias)])
    return Change(f'ip link set {name} alias "{alias}"', message, netlink.RTM_NEWLINK)
