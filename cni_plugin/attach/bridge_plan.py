"""Parses the keys of the attach mode `bridge`, before anything is made.

Every key of the reference `bridge` at v1.9, with its default and its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.attach.interface import InterfacePlan, plan_interface, refuse_small_mtu
from cni_plugin.config.network import parse_ifname, wants_gateway
from cni_plugin.contract.errors import invalid_config
from cni_plugin.kernel.vlan import Vlan, access_vlan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.backend.backend import Segment
    from cni_plugin.config.network import Addressing, Network
    from cni_plugin.contract.fields import Fields

DEFAULT_BRIDGE = "cni0"
MAX_VLAN = 4094  # 4095 is reserved, IEEE 802.1Q
# The VLAN that untagged frames of a trunk belong to when none is named.
_NATIVE_VLAN = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PortPlan:
    """What the pod's port of the bridge is to be."""

    hairpin: bool
    isolated: bool
    vlans: tuple[Vlan, ...]
    preserve_default_vlan: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPlan:
    """The node as the pods' gateway, if it is to be one."""

    wanted: bool
    default: bool
    """Of the pods' default routes, too."""
    force_address: bool
    ifname: str
    """The link that carries the gateway addresses: the bridge, with an access VLAN a link inside it."""
    vlan: int
    """That VLAN; 0 for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgePlan:
    """What an attachment to a bridge is to be."""

    pod: InterfacePlan
    container_interface_up: bool
    bridge: str
    bridge_mac: str = ""
    """Empty for one of the bridge's own."""
    promisc: bool
    segment: Segment | None = None
    """A port that leads to the other nodes, whose pods are on the same segment."""
    port: PortPlan
    gateway: GatewayPlan


def plan(fields: Fields, network: Network, addressing: Addressing) -> BridgePlan:
    """Return the plan for one attachment, or raise CNIError 7 for what cannot be."""
    bridge = parse_ifname(fields.string("bridge") or DEFAULT_BRIDGE, '"bridge"')
    vlan = fields.integer("vlan", 0, MAX_VLAN) or 0
    made = BridgePlan(
        pod=plan_interface(fields, network, addressing),
        container_interface_up=not fields.boolean("disableContainerInterface"),
        bridge=bridge,
        promisc=fields.boolean("promiscMode"),
        port=PortPlan(
            hairpin=fields.boolean("hairpinMode"),
            isolated=fields.boolean("portIsolation"),
            vlans=tuple(_parse_vlans(fields, vlan)),
            preserve_default_vlan=fields.boolean("preserveDefaultVlan"),
        ),
        gateway=GatewayPlan(
            wanted=wants_gateway(fields),
            default=fields.boolean("isDefaultGateway"),
            force_address=fields.boolean("forceAddress"),
            ifname=f"{bridge}.{vlan}" if vlan else bridge,
            vlan=vlan,
        ),
    )
    _refuse_contradictions(made, network, addressing)
    return made


def _refuse_contradictions(made: BridgePlan, network: Network, addressing: Addressing) -> None:
    if made.port.hairpin and made.promisc:
        raise invalid_config('"hairpinMode" and "promiscMode" exclude each other, found both')
    if network.ipam_type and not made.container_interface_up:
        raise invalid_config(
            f'"disableContainerInterface" and "ipam" exclude each other, found type "{network.ipam_type}"'
        )
    if made.gateway.wanted and addressing.without_gateway:
        raise invalid_config(
            '"isGateway" needs a gateway of its family in every range, found none for '
            f"{addressing.without_gateway}"
        )
    if made.gateway.wanted and made.gateway.vlan:
        parse_ifname(made.gateway.ifname, 'the gateway interface "<bridge>.<vlan>"')
    if network.mtu:
        refuse_small_mtu(network.mtu, addressing.stated_families)


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
