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
from cni_plugin.kernel.message import (
    AF_INET6,
    attribute,
    find_attribute,
    lladdr,
    nested,
    parse_attributes,
    parse_mac,
    parse_number,
    parse_text,
    text,
    u8,
    u32,
)
from cni_plugin.kernel.netlink import HEADER, Change, Query

if TYPE_CHECKING:
    from cni_plugin.kernel.netlink import Netlink

IFF_UP, IFF_PROMISC, _IFF_ALLMULTI = 0x1, 0x100, 0x200
# linux/if_link.h, linux/if.h, linux/veth.h, linux/rtnetlink.h
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, _IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_TXQLEN = 13
_IFLA_LINK_NETNSID, _IFLA_TARGET_NETNSID = 37, 46
_IFLA_OPERSTATE, IFLA_LINKINFO, IFLA_IFALIAS, _IFLA_NET_NS_FD, _IFLA_EXT_MASK = 16, 18, 20, 28, 29
IFLA_GROUP = 27
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_INFO_PEER, _SKIP_STATS = 1, 8
_IFLA_AF_SPEC, _IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_MODE_NONE = 26, 8, 1
_IFLA_BR_VLAN_FILTERING = 7
_IFLA_BRPORT_STATE, IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED = 1, 4, 33
_IF_OPER_UNKNOWN, _IF_OPER_UP = 0, 6
_IFINFOMSG = struct.Struct("=Bxxxi2I")  # family, index, flags and which of them are meant
_WITHOUT_STATS = u32(_IFLA_EXT_MASK, _SKIP_STATS)
ABSENT = frozenset({errno.ENODEV, errno.ENXIO})


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
    tx_queue_length: int
    carrier_seen: bool
    master: int
    peer: int
    peer_nsid: int | None
    """By what number this namespace knows that of the peer; None where they are one."""
    alias: str
    group: int
    vlan_filtering: bool
    port: Port | None

    @property
    def promisc(self) -> bool:
        """Tell whether somebody set promiscuous mode by hand; a bridge sets it by itself, unseen here."""
        return bool(self.flags & IFF_PROMISC)

    @property
    def allmulti(self) -> bool:
        """Tell whether the link takes all multicast frames."""
        return bool(self.flags & _IFF_ALLMULTI)


def get_link(nl: Netlink, name: str) -> Link | None:
    """Return the link called `name`, None when there is none."""
    return _get(nl, f"ip link show {name}", link_body(text(IFLA_IFNAME, name), _WITHOUT_STATS))


def get_link_by_index(nl: Netlink, index: int) -> Link | None:
    """Return the link with this index, None when there is none."""
    return _get(nl, f"ip link show index {index}", link_body(_WITHOUT_STATS, index=index))


def get_other_end(nl: Netlink, link: Link) -> Link | None:
    """Return the other end of a veth; None when it is none, or its other end not in the namespace of `nl`."""
    other = get_link_by_index(nl, link.peer) if link.kind == "veth" else None
    return other if other and other.kind == "veth" and other.peer == link.index else None


def get_far_end(nl: Netlink, link: Link) -> Link | None:
    """Return the other end of a veth in another namespace, seen from here; None when that is gone."""
    if link.peer_nsid is None or link.peer_nsid < 0:
        return None
    where = u32(_IFLA_TARGET_NETNSID, link.peer_nsid)
    command = f"ip -n {link.peer_nsid} link show index {link.peer}"
    try:
        return _get(nl, command, link_body(where, _WITHOUT_STATS, index=link.peer))
    except KernelError as error:
        if error.errno != errno.EINVAL:
            raise
        return None


def _get(nl: Netlink, command: str, body: bytes) -> Link | None:
    try:
        return _parse(nl.get(Query(command, netlink.RTM_GETLINK, body)))
    except KernelError as error:
        if error.errno in ABSENT:
            return None
        raise


def list_links(nl: Netlink, *, master: int = 0, kind: str = "") -> list[Link]:
    """Return all links, or the ports of `master`, or those of one kind; the kernel filters."""
    wanted = [u32(IFLA_MASTER, master)] if master else []
    if kind:
        wanted.append(nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, kind)))
    body = link_body(*wanted, _WITHOUT_STATS)
    return [_parse(raw) for raw in nl.dump(Query("ip link show", netlink.RTM_GETLINK, body))]


def link_body(*attributes: bytes, index: int = 0, flags: int = 0, mask: int = 0, family: int = 0) -> bytes:
    """Return struct ifinfomsg and attributes; `flags` takes effect where `mask` has a one."""
    return _IFINFOMSG.pack(family, index, flags, mask) + b"".join(attributes)


def set_link(name: str, words: str, *attributes: bytes, flags: int = 0, mask: int = 0) -> Change:
    """Return the change `ip link set NAME WORDS`; `flags` are switched on, others of `mask` off."""
    body = link_body(text(IFLA_IFNAME, name), *attributes, flags=flags, mask=flags | mask)
    return Change(f"ip link set {name} {words}", netlink.RTM_NEWLINK, body)


def parse_index(raw: bytes) -> int:
    """Return the index of the link that a message is about."""
    return int(_IFINFOMSG.unpack_from(raw, HEADER.size)[1])


def read_flags(raw: bytes) -> int:
    """Return the flags of the link that a message is about."""
    return int(_IFINFOMSG.unpack_from(raw, HEADER.size)[2])


def read_name(raw: bytes) -> str:
    """Return the name of the link that a message is about."""
    return parse_text(read_link(raw).get(IFLA_IFNAME))


def read_link(raw: bytes) -> dict[int, bytes]:
    """Return the attributes of the link that a message is about."""
    return parse_attributes(raw, HEADER.size + _IFINFOMSG.size)


def _parse(raw: bytes) -> Link:
    _, index, flags, _ = _IFINFOMSG.unpack_from(raw, HEADER.size)
    attributes = read_link(raw)
    info = parse_attributes(attributes.get(IFLA_LINKINFO, b""))
    kind = parse_text(info.get(IFLA_INFO_KIND))
    settings = info.get(IFLA_INFO_DATA, b"") if kind == "bridge" else b""
    return Link(
        index=index,
        name=parse_text(attributes.get(IFLA_IFNAME)),
        kind=kind,
        mac=parse_mac(attributes.get(IFLA_ADDRESS)),
        mtu=parse_number(attributes.get(IFLA_MTU)),
        flags=flags,
        tx_queue_length=parse_number(attributes.get(IFLA_TXQLEN)),
        carrier_seen=parse_number(attributes.get(_IFLA_OPERSTATE)) in {_IF_OPER_UNKNOWN, _IF_OPER_UP},
        master=parse_number(attributes.get(IFLA_MASTER)),
        peer=parse_number(attributes.get(_IFLA_LINK)),
        peer_nsid=_parse_nsid(attributes.get(_IFLA_LINK_NETNSID)),
        alias=parse_text(attributes.get(IFLA_IFALIAS)),
        group=parse_number(attributes.get(IFLA_GROUP)),
        vlan_filtering=bool(parse_number(find_attribute(settings, _IFLA_BR_VLAN_FILTERING))),
        port=_parse_port(info),
    )


def _parse_nsid(value: bytes | None) -> int | None:
    return None if value is None else int.from_bytes(value, sys.byteorder, signed=True)


def _parse_port(info: dict[int, bytes]) -> Port | None:
    if parse_text(info.get(IFLA_INFO_SLAVE_KIND)) != "bridge":
        return None
    settings = parse_attributes(info.get(IFLA_INFO_SLAVE_DATA, b""))
    state = parse_number(settings.get(_IFLA_BRPORT_STATE))
    return Port(
        forwarding=state == 3,  # BR_STATE_FORWARDING, linux/if_bridge.h
        blocked_by_stp=state in {1, 2, 4},  # listening, learning, blocking
        hairpin=bool(parse_number(settings.get(IFLA_BRPORT_MODE))),
        isolated=bool(parse_number(settings.get(IFLA_BRPORT_ISOLATED))),
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
    group: int = 0
    """Of the host's end, until it has an alias."""


def add_veth(nl: Netlink, pair: VethPair) -> None:
    """Make a veth pair, the host's end up and in its bridge, the pod's end down.

    Raises KernelError with EEXIST when either name is taken; the kernel does not say which.
    """
    ends = f"peer name {pair.peer_name} netns POD address {pair.peer_mac}"
    master = f" master index {pair.master}" if pair.master else ""
    group = f" group {pair.group}" if pair.group else ""
    command = f"ip link add {pair.name} address {pair.mac} mtu {pair.mtu}{master}{group} up type veth {ends}"
    peer = link_body(
        text(IFLA_IFNAME, pair.peer_name),
        lladdr(IFLA_ADDRESS, pair.peer_mac),
        u32(IFLA_MTU, pair.mtu),
        u32(_IFLA_NET_NS_FD, pair.peer_netns),
    )
    body = link_body(
        text(IFLA_IFNAME, pair.name),
        lladdr(IFLA_ADDRESS, pair.mac),
        u32(IFLA_MTU, pair.mtu),
        *([u32(IFLA_MASTER, pair.master)] if pair.master else []),
        *([u32(IFLA_GROUP, pair.group)] if pair.group else []),
        nested(
            IFLA_LINKINFO,
            text(IFLA_INFO_KIND, "veth"),
            nested(IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, peer)),
        ),
        flags=IFF_UP,
        mask=IFF_UP,
    )
    nl.change(Change(command, netlink.RTM_NEWLINK, body, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL))


def delete_link(nl: Netlink, name: str) -> bool:
    """Delete the link; return whether there was one."""
    body = link_body(text(IFLA_IFNAME, name))
    return _delete(nl, Change(f"ip link del {name}", netlink.RTM_DELLINK, body))


def delete_listed(nl: Netlink, link: Link) -> bool:
    """Delete this link and no later one of its name; return whether it was still there."""
    return _delete(nl, deletion(link))


def deletion(link: Link) -> Change:
    """Return the change that deletes this link and no later one of its name."""
    return Change(f"ip link del {link.name}", netlink.RTM_DELLINK, link_body(index=link.index))


def _delete(nl: Netlink, change: Change) -> bool:
    try:
        nl.change(change)
    except KernelError as error:
        if error.errno in ABSENT:
            return False
        raise
    return True


def set_up(name: str) -> Change:
    """Return the change that brings a link up."""
    return set_link(name, "up", flags=IFF_UP)


def set_down(name: str) -> Change:
    """Return the change that takes a link down."""
    return set_link(name, "down", mask=IFF_UP)


def set_master(name: str, master: int) -> Change:
    """Return the change that makes a link a port of the bridge with this index."""
    return set_link(name, f"master index {master}", u32(IFLA_MASTER, master))


def set_mtu(name: str, mtu: int) -> Change:
    """Return the change that sets a link's MTU, in bytes."""
    return set_link(name, f"mtu {mtu}", u32(IFLA_MTU, mtu))


def set_promisc(name: str, *, on: bool = True) -> Change:
    """Return the change that switches promiscuous mode."""
    return _set_flag(name, IFF_PROMISC, "promisc", on=on)


def set_allmulti(name: str, *, on: bool) -> Change:
    """Return the change that lets a link take all multicast frames, or only those asked for."""
    return _set_flag(name, _IFF_ALLMULTI, "allmulticast", on=on)


def _set_flag(name: str, flag: int, word: str, *, on: bool) -> Change:
    return set_link(name, f"{word} {'on' if on else 'off'}", flags=flag if on else 0, mask=flag)


def set_tx_queue_length(name: str, packets: int) -> Change:
    """Return the change that sets the length of a link's transmit queue."""
    return set_link(name, f"txqueuelen {packets}", u32(IFLA_TXQLEN, packets))


def drop_link_local(name: str) -> Change:
    """Return the change that spares a link the IPv6 address that it would give itself when it is up.

    EAFNOSUPPORT is what a kernel says to it that has IPv6 switched off.
    """
    inet6 = nested(AF_INET6, u8(_IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_MODE_NONE))
    return set_link(name, "addrgenmode none", nested(_IFLA_AF_SPEC, inet6))


def set_mac(name: str, mac: str) -> Change:
    """Return the change that sets a link's MAC; on a bridge this also pins it."""
    return set_link(name, f"address {mac}", lladdr(IFLA_ADDRESS, mac))


def set_alias(name: str, alias: str) -> Change:
    """Return the change that says whose a link is."""
    return set_link(name, f'alias "{alias}"', text(IFLA_IFALIAS, alias))


def set_owner(name: str, alias: str, group: int = 0) -> Change:
    """Return the change that says whose a link is and takes it out of the group of those without an alias."""
    words = f'alias "{alias}" group {group or "default"}'
    return set_link(name, words, text(IFLA_IFALIAS, alias), u32(IFLA_GROUP, group))


def set_group(name: str, group: int) -> Change:
    """Return the change of a link's group."""
    return set_link(name, f"group {group}", u32(IFLA_GROUP, group))
