"""Parses the keys of the attach mode `bridge`, before anything is made.

Every key of the reference `bridge` at v1.9, with its default and its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.attach.interface import refuse_small_mtu
from cni_plugin.config.network import Addressing, Attachment, parse_ifname, render_alias
from cni_plugin.contract.errors import invalid_config
from cni_plugin.kernel.bridge import random_mac
from cni_plugin.kernel.vlan import Vlan, access_vlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.config.network import Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.result import DNS

DEFAULT_BRIDGE = "cni0"
MAX_VLAN = 4094  # 4095 is reserved, IEEE 802.1Q
# The VLAN that untagged frames of a trunk belong to when none is named.
_NATIVE_VLAN = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgePlan:
    """What an attachment to a bridge is to be; `mtu` in bytes, 0 for automatic."""

    attachment: Attachment
    alias: str
    mac: str
    bridge: str
    mtu: int
    addressing: Addressing
    is_gateway: bool
    is_default_gateway: bool
    force_address: bool
    hairpin: bool
    promisc: bool
    isolated: bool
    vlan: int
    vlans: tuple[Vlan, ...]
    preserve_default_vlan: bool
    dad: bool
    container_interface_up: bool
    dns: DNS
    mtu_overhead: int
    bridge_mac: str = ""
    """Empty for one of the bridge's own."""

    @property
    def gateway_ifname(self) -> str:
        """Return the link that carries the gateway addresses: with an access VLAN one inside it."""
        return f"{self.bridge}.{self.vlan}" if self.vlan else self.bridge


def plan(network: Network, addressing: Addressing) -> BridgePlan:
    """Return the plan for one attachment, or raise CNIError 7 for what cannot be."""
    fields = network.fields
    is_default_gateway = fields.boolean("isDefaultGateway")
    vlan = fields.integer("vlan", 0, MAX_VLAN) or 0
    made = BridgePlan(
        attachment=network.attachment,
        alias=render_alias(network.attachment, network.pod),
        mac=network.mac or random_mac(),
        bridge=parse_ifname(fields.string("bridge") or DEFAULT_BRIDGE, '"bridge"'),
        mtu=network.mtu,
        addressing=addressing,
        is_gateway=fields.boolean("isGateway") or is_default_gateway,
        is_default_gateway=is_default_gateway,
        force_address=fields.boolean("forceAddress"),
        hairpin=fields.boolean("hairpinMode"),
        promisc=fields.boolean("promiscMode"),
        isolated=fields.boolean("portIsolation"),
        vlan=vlan,
        vlans=tuple(_parse_vlans(fields, vlan)),
        preserve_default_vlan=fields.boolean("preserveDefaultVlan"),
        dad=fields.boolean("enabledad"),
        container_interface_up=not fields.boolean("disableContainerInterface"),
        dns=network.dns,
        mtu_overhead=network.mtu_overhead,
    )
    _refuse_contradictions(made, network, addressing)
    return made


def _refuse_contradictions(made: BridgePlan, network: Network, addressing: Addressing) -> None:
    if made.hairpin and made.promisc:
        raise invalid_config('"hairpinMode" and "promiscMode" exclude each other, found both')
    if network.ipam_type and not made.container_interface_up:
        raise invalid_config(
            f'"disableContainerInterface" and "ipam" exclude each other, found type "{network.ipam_type}"'
        )
    if made.is_gateway and addressing.without_gateway:
        raise invalid_config(
            '"isGateway" needs a gateway of its family in every range, found none for '
            f"{addressing.without_gateway}"
        )
    if made.is_gateway and made.vlan:
        parse_ifname(made.gateway_ifname, 'the gateway interface "<bridge>.<vlan>"')
    if made.mtu:
        refuse_small_mtu(made.mtu, addressing.stated_families)


def _parse_vlans(fields: Fields, vlan: int) -> Iterator[Vlan]:
    trunk = sorted(_parse_trunk(fields))
    untagged = vlan or _NATIVE_VLAN
    yield from (member for member in trunk if not member.vid == member.last == untagged)
    if vlan or trunk:
        # Last: a range of the trunk that holds it would make it tagged.
        yield access_vlan(untagged)


def _parse_trunk(fields: Fields) -> Iterator[Vlan]:
    for member in fields.objects("vlanTrunk"):
        vid = member.integer("id", 1, MAX_VLAN)
        first, last = member.integer("minID", 1, MAX_VLAN), member.integer("maxID", 1, MAX_VLAN)
        if vid is not None:
            yield Vlan(vid=vid, last=vid)
        if (first is None) != (last is None) or (vid is None and first is None):
            raise invalid_config(
                f'"{member.path}" must have "id", or "minID" and "maxID", found {dict(member.raw)}'
            )
        if first is not None and last is not None:
            if first > last:
                raise invalid_config(f'"{member.path}": "minID" {first} must not be above "maxID" {last}')
            yield Vlan(vid=first, last=last)
