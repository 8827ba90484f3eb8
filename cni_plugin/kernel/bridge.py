"""Bridges: made with a pinned MAC, brought in line when they are ours alone.

`ip link add NAME address MAC type bridge; ip link set NAME mtu MTU up`. A bridge follows the lowest
MAC and the lowest MTU of its ports unless its own were set, so ours are set from the start. A bridge is
ours alone when every port is the end of a veth; one with another port (an uplink, a tap) belongs to
somebody whose settings we must not change: a difference is then an error,
but an automatic MTU gives way. Linux: net/bridge/br_if.c.
"""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass

from cni_plugin.contract.errors import invalid_config
from cni_plugin.kernel import netlink
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.link import (
    IFF_UP,
    IFLA_BRPORT_ISOLATED,
    IFLA_BRPORT_MODE,
    IFLA_GROUP,
    IFLA_IFALIAS,
    IFLA_INFO_SLAVE_DATA,
    IFLA_INFO_SLAVE_KIND,
    IFLA_LINKINFO,
    Link,
    get_link,
    list_links,
    set_alias,
    set_link,
    set_mac,
    set_mtu,
    set_promisc,
    set_up,
)
from cni_plugin.kernel.message import nested, text, u8, u32
from cni_plugin.kernel.netlink import Change, Netlink
from cni_plugin.kernel.sysctl import get_sysctl, has_sysctl, prefer_sysctl

_OURS = "podwire:"
ALIAS = f"{_OURS} bridge"
MAX_MTU = 65535  # bytes, ETH_MAX_MTU
_NO_MAC = "00:00:00:00:00:00"
_FILTERING = (("IFLA_BR_VLAN_FILTERING", 1),)
# What a bridge does without, and what it costs where it cannot be switched off.
_IPV6 = {
    "accept_ra": "while the node does not forward IPv6 a pod can make itself its router",
    "accept_dad": "IPv6 packets to pods may be lost for two seconds after the bridge was made",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeSpec:
    """What an attachment needs of its bridge; `mtu` in bytes."""

    name: str
    mtu: int
    promisc: bool = False
    vlan_filtering: bool = False
    mac: str = ""
    """Empty for one of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Difference:
    attribute: str
    wanted: object
    found: object
    mend: Change


def random_mac() -> str:
    """Return a random unicast MAC of the locally administered kind."""
    return ":".join(f"{byte:02x}" for byte in bytes([0x02, *os.urandom(5)]))


def ensure_bridge(nl: Netlink, spec: BridgeSpec) -> Link:
    """Make the bridge or bring it in line, and return what the kernel holds.

    Raises CNIError 7 when the name belongs to another kind of link, or when a bridge with
    foreign ports differs; KernelError when the kernel refuses, for one VLAN filtering.
    """
    found = get_link(nl, spec.name) or _add_bridge(nl, spec)
    if found.kind != "bridge":
        kind = f"a {found.kind} device" if found.kind else "a device that is none"
        raise invalid_config(f'"bridge" {spec.name}: wanted a bridge, found {kind} of that name')
    differences = _compare(spec, found)
    if differences:
        _bring_in_line(nl, found, differences)
    if found.mtu > spec.mtu:
        lower_mtu(nl, found, spec.mtu)
    if not _is_dressed(found) and not find_foreign_port(nl, found):
        _adopt(nl, found)
    return found


def attainable_mtu(nl: Netlink, name: str, mtu: int) -> int:
    """Return `mtu`, or the smaller one of a bridge that is not ours to change."""
    found = get_link(nl, name)
    settled = found is not None and found.mtu < mtu and find_foreign_port(nl, found)
    return found.mtu if found and settled else mtu


def _is_dressed(found: Link) -> bool:
    """Tell whether we made the bridge, or adopted it, and nothing was refused."""
    if found.alias != ALIAS:
        return False
    keys = (f"net/ipv6/conf/{found.name}/{key}" for key in _IPV6)
    return all(get_sysctl(key) == "0" for key in keys if has_sysctl(key))


def _adopt(nl: Netlink, found: Link) -> None:
    """Dress a bridge that somebody else made for pods, and pin its MAC; it may still follow its ports'."""
    _prepare_ipv6(found.name)
    # One whose last port left it without having a MAC set shows zeros.
    mac = random_mac() if found.mac == _NO_MAC else found.mac
    nl.change(set_mac(found.name, mac), *([] if found.alias else [set_alias(found.name, ALIAS)]))


def _add_bridge(nl: Netlink, spec: BridgeSpec) -> Link:
    """Make the bridge; of two processes that try at once, one makes it and both go on."""
    mac = spec.mac or _own_mac(nl, spec.name)
    settings = _FILTERING if spec.vlan_filtering else ()
    from cni_plugin.kernel.pyroute import pack_device  # a bridge is made once

    body = pack_device("bridge", settings, IFNAME=spec.name, ADDRESS=mac)
    filtering = " vlan_filtering 1" if spec.vlan_filtering else ""
    command = f"ip link add {spec.name} address {mac} type bridge{filtering}"
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    try:
        nl.change(Change(command, netlink.RTM_NEWLINK, body, flags))
    except KernelError as error:
        if error.errno == errno.EOPNOTSUPP and spec.vlan_filtering:
            raise _no_vlan_filtering(spec.name) from error
        if error.errno != errno.EEXIST:
            raise
    else:
        _dress(nl, spec)
    found = get_link(nl, spec.name)
    if found is None:
        raise KernelError(command, errno.ENODEV, "it was removed again at once")
    return found


def _own_mac(nl: Netlink, name: str) -> str:
    """Return the MAC of a bridge of this node, which pods still know when it was deleted and is made anew."""
    from ipam.boot_mark import boot_id

    try:
        node = f"{boot_id()} {nl.read_cookie()}"
    except OSError:  # a kernel before 5.14 has no names for namespaces
        return random_mac()
    digest = hashlib.sha256(f"{node} {name}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in bytes([0x02, *digest[:5]]))


def _dress(nl: Netlink, spec: BridgeSpec) -> None:
    """Give a bridge that we made its alias and its settings, and bring it up.

    Its MTU too: one that came with the request which made it does not stay when ports come and go.
    """
    _prepare_ipv6(spec.name)
    nl.change(set_alias(spec.name, ALIAS), *_set_mtu_anew(spec.name, spec.mtu), set_up(spec.name))


def _prepare_ipv6(name: str) -> None:
    """Let no router configure the bridge, and its link-local address be usable at once.

    The kernel looks for the neighbour of a packet that it forwards from that address, and while it
    is probed for duplicates it does not look at all: one to two seconds of lost packets.
    """
    try:
        for key, otherwise in _IPV6.items():
            prefer_sysctl(f"net/ipv6/conf/{name}/{key}", 0, otherwise)
    except KernelError as error:
        # A link below 1280 bytes has no IPv6, nor has any where the kernel has it switched off.
        if error.errno != errno.ENOENT:
            raise


def _no_vlan_filtering(name: str) -> KernelError:
    return KernelError(
        f'"vlan" on bridge {name}: wanted VLAN filtering',
        errno.EOPNOTSUPP,
        "this kernel cannot filter VLANs on bridges: CONFIG_BRIDGE_VLAN_FILTERING",
    )


def _compare(spec: BridgeSpec, found: Link) -> list[_Difference]:
    differences = []
    # First what a kernel may not be able to do at all.
    if spec.vlan_filtering and not found.vlan_filtering:
        differences.append(_difference("vlan_filtering", 1, 0, _set_vlan_filtering(spec.name)))
    if found.mtu < spec.mtu:
        differences.append(_difference("mtu", spec.mtu, found.mtu, set_mtu(spec.name, spec.mtu)))
    if spec.promisc and not found.promisc:
        differences.append(_difference("promisc", "on", "off", set_promisc(spec.name)))
    if spec.mac and found.mac != spec.mac:
        differences.append(_difference("mac", spec.mac, found.mac, set_mac(spec.name, spec.mac)))
    if not found.flags & IFF_UP:
        differences.append(_difference("state", "up", "down", set_up(spec.name)))
    return differences


def _difference(attribute: str, wanted: object, found: object, mend: Change) -> _Difference:
    return _Difference(attribute=attribute, wanted=wanted, found=found, mend=mend)


def _set_vlan_filtering(name: str) -> Change:
    from cni_plugin.kernel.pyroute import pack_device  # a bridge is made once

    body = pack_device("bridge", _FILTERING, IFNAME=name)
    return Change(f"ip link set {name} type bridge vlan_filtering 1", netlink.RTM_NEWLINK, body)


def _bring_in_line(nl: Netlink, found: Link, differences: list[_Difference]) -> None:
    foreign = find_foreign_port(nl, found)
    if foreign is not None:
        first = differences[0]
        raise invalid_config(
            f"bridge {found.name}: wanted {first.attribute} {first.wanted}, found {first.found}; "
            f"it is not ours to change while {foreign.name} is one of its ports"
        )
    for difference in differences:
        try:
            nl.change(difference.mend)
        except KernelError as error:
            if difference.attribute == "vlan_filtering" and error.errno == errno.EOPNOTSUPP:
                raise _no_vlan_filtering(found.name) from error
            raise
    # The kernel makes a link's IPv6 settings anew when its MTU grows past 1280 bytes.
    _prepare_ipv6(found.name)


def find_foreign_port(nl: Netlink, bridge: Link) -> Link | None:
    """Return a port that makes the bridge not ours to change, None when there is none."""
    return next(filter(_is_foreign, list_links(nl, master=bridge.index)), None)


def _is_foreign(port: Link) -> bool:
    """Tell whether a port is neither the end of a veth nor a device that podwire made."""
    return port.kind != "veth" and not port.alias.startswith(_OURS)


def lower_mtu(nl: Netlink, bridge: Link, mtu: int) -> None:
    """Lower a bridge that is ours alone to the largest of `mtu` and its ports' MTUs; keep any other's.

    Of two networks on one bridge the larger MTU stays. An ADD of the larger one may be adding
    its port meanwhile: it looks at the bridge after that, and we look at the ports after
    this, so one of the two sees the other.
    """
    ports = list_links(nl, master=bridge.index)
    foreign = any(map(_is_foreign, ports))
    wanted = bridge.mtu if foreign else _largest(mtu, ports)
    if wanted == bridge.mtu:
        nl.change(*_pin_mtu(bridge, ports))
        return
    nl.change(set_mtu(bridge.name, wanted))
    arrived = _largest(wanted, list_links(nl, master=bridge.index))
    if arrived > wanted:
        nl.change(set_mtu(bridge.name, arrived))


def _pin_mtu(bridge: Link, ports: list[Link]) -> list[Change]:
    """Return the changes that keep a bridge's MTU where it is when a port with a smaller one comes.

    A bridge follows its lowest port until its MTU is set, and setting the value that it has is
    nothing to the kernel: so one byte aside and back. One with a lower port is pinned already.
    """
    if any(port.mtu < bridge.mtu for port in ports):
        return []
    return _set_mtu_anew(bridge.name, bridge.mtu)


def _set_mtu_anew(name: str, mtu: int) -> list[Change]:
    """Return the changes that set an MTU which the bridge may have already."""
    aside = mtu + (1 if mtu < MAX_MTU else -1)
    return [set_mtu(name, aside), set_mtu(name, mtu)]


def _largest(mtu: int, ports: list[Link]) -> int:
    return max([mtu, *(port.mtu for port in ports)])


def set_port(name: str, *, alias: str, hairpin: bool, isolated: bool) -> Change:
    """Return the change that gives a bridge port its alias and its flags, as `set_owner` does."""
    info = _port_settings(u8(IFLA_BRPORT_MODE, int(hairpin)), u8(IFLA_BRPORT_ISOLATED, int(isolated)))
    words = f"hairpin {_switch(on=hairpin)} isolated {_switch(on=isolated)}"
    owner = text(IFLA_IFALIAS, alias), u32(IFLA_GROUP, 0)
    return set_link(name, f'alias "{alias}" group default type bridge_slave {words}', *owner, info)


def set_hairpin(name: str) -> Change:
    """Return the change that lets a port send back what came in by it."""
    return _set_port_flag(name, "hairpin", IFLA_BRPORT_MODE, on=True)


def set_isolated(name: str, *, on: bool) -> Change:
    """Return the change that keeps a port apart from other isolated ones, or no longer."""
    return _set_port_flag(name, "isolated", IFLA_BRPORT_ISOLATED, on=on)


def _set_port_flag(name: str, word: str, attribute: int, *, on: bool) -> Change:
    info = _port_settings(u8(attribute, int(on)))
    return set_link(name, f"type bridge_slave {word} {_switch(on=on)}", info)


def _port_settings(*flags: bytes) -> bytes:
    return nested(IFLA_LINKINFO, text(IFLA_INFO_SLAVE_KIND, "bridge"), nested(IFLA_INFO_SLAVE_DATA, *flags))


def _switch(*, on: bool) -> str:
    return "on" if on else "off"
