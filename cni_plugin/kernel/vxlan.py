"""VXLAN devices: `ip link add NAME type vxlan id VNI dev UNDERLAY local ADDRESS dstport PORT`.

A device of ours carries an alias, its MAC is set from the start so that udev leaves it
alone, and its MTU is read back, because the kernel cuts one that is too large without a word. What
cannot be changed on a living device makes it be made anew. Linux: drivers/net/vxlan/vxlan_core.c.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netaddr import IPAddress

from cni_plugin.contract.errors import CNIError, invalid_config
from cni_plugin.kernel import netlink
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.link import (
    IFF_UP,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MASTER,
    Link,
    delete_link,
    get_link,
    link_body,
    list_links,
    read_link,
    set_link,
    set_mac,
    set_mtu,
    set_owner,
    set_up,
)
from cni_plugin.kernel.message import parse_address, parse_attributes, parse_number, parse_text, text, u32
from cni_plugin.kernel.netlink import Change, Query
from cni_plugin.kernel.pyroute import pack_device

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni_plugin.kernel.netlink import Netlink

ALIAS = "podwire: vxlan"
_MAX_ALIAS = 255  # bytes, IFALIASZ less the terminating zero; a network's name is ASCII


@dataclass(frozen=True, slots=True, kw_only=True)
class VxlanSpec:
    """A VXLAN device; `underlay` is an index, `mtu` in bytes, `ageing` in seconds."""

    name: str
    network: str
    vni: int
    port: int
    underlay: int
    local: IPAddress
    mac: str
    mtu: int
    group: IPAddress | None = None
    learning: bool = False
    ttl: int = 0
    tos: int = 0
    ageing: int = 300
    unnamed: int
    """The link group that it is in until it has its alias."""

    @property
    def alias(self) -> str:
        """Return what the device says of itself: one network has it, its peers are no other's."""
        return f"{ALIAS} {self.network}"[:_MAX_ALIAS]


def ensure_vxlan(nl: Netlink, spec: VxlanSpec) -> tuple[Link, bool]:
    """Make the device or bring it in line; return it and whether anything had to be done.

    Raises CNIError 7 when name, VNI or port belong to a device that is not ours, or when the
    underlay cannot carry the MTU.
    """
    found = get_link(nl, spec.name)
    if found is not None and not found.alias and found.group == spec.unnamed:
        delete_link(nl, spec.name)  # whoever made it came no further
        found = None
    if found is not None and found.alias != spec.alias:
        owner = _owner(found)
        other = f"that of network {owner}" if owner else "another link of that name"
        raise invalid_config(f"{spec.name}: wanted the VXLAN device of network {spec.network}, found {other}")
    if found is not None and _settings(nl, spec.name) != _wanted(spec):
        delete_link(nl, spec.name)
        found = None
    made = found is None
    found = found or _add_vxlan(nl, spec)
    changes = list(_mend(spec, found))
    if changes:
        try:
            nl.change(*changes)
        except KernelError as error:
            if made:
                delete_link(nl, spec.name)
            # The socket is opened when the link goes up.
            if error.errno == errno.EADDRINUSE:
                raise _in_use(spec, error) from error
            raise
        found = _require(nl, spec.name)
    if found.mtu != spec.mtu:
        raise invalid_config(
            f'"mtu" of {spec.name}: wanted {spec.mtu}, found that the kernel allows {found.mtu}'
        )
    return found, made or bool(changes)


def find_vxlan(nl: Netlink, spec: VxlanSpec) -> Link | None:
    """Return the device when it is exactly as wanted, else None."""
    found = get_link(nl, spec.name)
    if found is None or found.alias != spec.alias or _mend(spec, found):
        return None
    return found if _settings(nl, spec.name) == _wanted(spec) else None


def find_local(nl: Netlink, name: str) -> IPAddress | None:
    """Return the address that a VXLAN device has as its own end; None when there is no such device."""
    found = _settings(nl, name) if get_link(nl, name) else None
    said = [value for key, value in (found or {}).items() if key.startswith("IFLA_VXLAN_LOCAL")]
    return IPAddress(str(said[0])) if said else None


def _require(nl: Netlink, name: str) -> Link:
    found = get_link(nl, name)
    if found is None:
        raise KernelError(f"ip link show {name}", errno.ENODEV)
    return found


def list_devices(nl: Netlink, network: str) -> list[str]:
    """Return the names of the VXLAN devices that are a network's, whatever their number."""
    return [link.name for link in list_links(nl, kind="vxlan") if _owner(link) == network]


def _owner(link: Link) -> str:
    return link.alias.removeprefix(ALIAS).strip() if link.alias.startswith(ALIAS) else ""


def _mend(spec: VxlanSpec, found: Link) -> list[Change]:
    """Return what brings a living device in line."""
    changes = []
    if found.mac != spec.mac:
        changes.append(set_mac(spec.name, spec.mac))
    if found.mtu != spec.mtu:
        changes.append(set_mtu(spec.name, spec.mtu))
    if not found.flags & IFF_UP:
        changes.append(set_up(spec.name))
    return changes


def ensure_master(nl: Netlink, device: Link, bridge: Link) -> bool:
    """Make the device a port of the bridge; tell whether it was none."""
    if device.master == bridge.index:
        return False
    nl.change(set_link(device.name, f"master {bridge.name}", u32(IFLA_MASTER, bridge.index)))
    return True


def _wanted(spec: VxlanSpec) -> dict[str, object]:
    """Return the attributes of the kernel that cannot differ, as pyroute2 writes them."""
    six = "6" if spec.local.version == 6 else ""
    group = {f"IFLA_VXLAN_GROUP{six}": str(spec.group)} if spec.group else {}
    return group | {
        "IFLA_VXLAN_ID": spec.vni,
        "IFLA_VXLAN_PORT": spec.port,
        "IFLA_VXLAN_LINK": spec.underlay,
        f"IFLA_VXLAN_LOCAL{six}": str(spec.local),
        "IFLA_VXLAN_LEARNING": int(spec.learning),
        "IFLA_VXLAN_TTL": spec.ttl,
        "IFLA_VXLAN_TOS": spec.tos,
        "IFLA_VXLAN_AGEING": spec.ageing,
        **_CHECKSUMS,
    }


# The outer checksum is on, which is also the kernel's default. Kernels before 5.7 that translate (NAT) an
# outer packet without one write a checksum into it that is wrong while the inner one is offloaded, and
# the tunnel's packets are dropped at the other end: kubernetes#88986, net/netfilter/nf_nat_proto.c.
_CHECKSUMS: Mapping[str, object] = {
    "IFLA_VXLAN_UDP_CSUM": 1,
    "IFLA_VXLAN_UDP_ZERO_CSUM6_TX": 0,
    "IFLA_VXLAN_UDP_ZERO_CSUM6_RX": 0,
}


# linux/if_link.h
_NUMBERS: Mapping[str, int] = {
    "IFLA_VXLAN_ID": 1,
    "IFLA_VXLAN_GROUP": 2,
    "IFLA_VXLAN_LINK": 3,
    "IFLA_VXLAN_LOCAL": 4,
    "IFLA_VXLAN_TTL": 5,
    "IFLA_VXLAN_TOS": 6,
    "IFLA_VXLAN_LEARNING": 7,
    "IFLA_VXLAN_AGEING": 8,
    "IFLA_VXLAN_PORT": 15,
    "IFLA_VXLAN_GROUP6": 16,
    "IFLA_VXLAN_LOCAL6": 17,
    "IFLA_VXLAN_UDP_CSUM": 18,
    "IFLA_VXLAN_UDP_ZERO_CSUM6_TX": 19,
    "IFLA_VXLAN_UDP_ZERO_CSUM6_RX": 20,
}


def _settings(nl: Netlink, name: str) -> dict[str, object] | None:
    """Return the same attributes as the kernel holds them; None for another kind of link."""
    body = link_body(text(IFLA_IFNAME, name))
    link = read_link(nl.get(Query(f"ip -d link show {name}", netlink.RTM_GETLINK, body)))
    info = parse_attributes(link.get(IFLA_LINKINFO, b""))
    if parse_text(info.get(IFLA_INFO_KIND)) != "vxlan":
        return None
    data = parse_attributes(info.get(IFLA_INFO_DATA, b""))
    found = {name: _parse(name, data.get(number)) for name, number in _NUMBERS.items()}
    return {name: value for name, value in found.items() if value is not None}


def _parse(name: str, value: bytes | None) -> object:
    """Return an attribute as pyroute2 writes it."""
    if value is None:
        return None
    if name.startswith(("IFLA_VXLAN_LOCAL", "IFLA_VXLAN_GROUP")):
        return str(parse_address(value))
    return int.from_bytes(value, "big") if name == "IFLA_VXLAN_PORT" else parse_number(value)


def _add_vxlan(nl: Netlink, spec: VxlanSpec) -> Link:
    group = f" group {spec.group}" if spec.group else ""
    command = (
        f"ip link add {spec.name} address {spec.mac} mtu {spec.mtu} group {spec.unnamed} "
        f"type vxlan id {spec.vni} dev index {spec.underlay} local {spec.local}{group} dstport {spec.port}"
        f" udpcsum{' learning' if spec.learning else ' nolearning'}"
    )
    attributes = {"IFNAME": spec.name, "ADDRESS": spec.mac, "MTU": spec.mtu, "GROUP": spec.unnamed}
    body = pack_device("vxlan", _wanted(spec).items(), **attributes)
    flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    try:
        nl.change(
            Change(command, netlink.RTM_NEWLINK, body, flags),
            set_owner(spec.name, spec.alias),
        )
    except KernelError as error:
        if error.errno == errno.EEXIST:
            raise _in_use(spec, error) from error
        raise
    return _require(nl, spec.name)


def _in_use(spec: VxlanSpec, error: KernelError) -> CNIError:
    return invalid_config(
        f'"vxlan": wanted VNI {spec.vni} on port {spec.port} for {spec.name}, '
        "found it in use by something that is not podwire's",
        error.msg,
    )
