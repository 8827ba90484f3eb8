"""The feature `macspoofchk` and `spoofCheck`: a pod sends only from its own addresses.

What comes in by a checked pod's host end must have the pod's MAC; with `"spoofCheck": "ip"` also its
addresses as IP source, as ARP sender and in neighbour discovery, and is no router advertisement and no
DHCP server's answer. In the bridge family, and for mode `routed` in inet. The chains are static and the
same for all networks (features/spoof_rules.py), a pod is a few elements whose key begins with the name
of its host end. By hand: `nft list table bridge podwire`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from netaddr import EUI, IPAddress, valid_mac

from cni_plugin.contract.errors import broken, invalid_config
from cni_plugin.contract.inet import link_local
from cni_plugin.features.elements import claim, compare_elements, pack_ifname, release, release_exactly
from cni_plugin.features.feature import Feature
from cni_plugin.kernel.nft import ensure_ruleset, require_nft
from cni_plugin.kernel.nft_message import Element

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import ExitStack

    from cni_plugin.config.network import Addressing, Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.result import Interface, Result
    from cni_plugin.features.damage import Damage
    from cni_plugin.features.feature import DeleteInput, Site
    from cni_plugin.kernel.netns import Namespace
    from cni_plugin.kernel.nft import Ruleset

_STRICTNESS = ("none", "mac", "ip")
FAMILIES = ("bridge", "inet")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoofCheck:
    """In which family of tables the pod's packets are seen, and whether `addresses` are compared too."""

    family: str
    addresses: bool


def parse(fields: Fields, network: Network, addressing: Addressing) -> SpoofCheck | None:
    """Return the stricter of what `macspoofchk` and `spoofCheck` ask for."""
    asked = fields.string("spoofCheck") or "none"
    if asked not in _STRICTNESS:
        raise invalid_config(f'"spoofCheck" must be one of {list(_STRICTNESS)}, found "{asked}"')
    if asked == "none" and fields.boolean("macspoofchk"):
        asked = "mac"
    if asked == "none":
        return None
    if asked == "ip" and addressing.layer2:
        raise invalid_config('"spoofCheck" ip: wanted addresses to compare with, found no "ipam"')
    require_nft()
    family = "inet" if network.mode == "routed" else "bridge"
    return SpoofCheck(family=family, addresses=asked == "ip")


def ensure(settings: SpoofCheck, host: Namespace) -> int:
    """Make the chains be as they should; return the number of changes."""
    return int(ensure_ruleset(host.nftables, _plan_ruleset(settings)))


def _plan_ruleset(settings: SpoofCheck) -> Ruleset:
    from cni_plugin.features.spoof_rules import plan_ruleset  # no DEL needs it

    return plan_ruleset(settings.family)


def add(settings: SpoofCheck, site: Site, result: Result, undo: ExitStack) -> Result:
    """Compare what the pod sends from now on."""
    claim(site, _plan_elements(settings, site, result), undo)
    return result


def _plan_elements(settings: SpoofCheck, site: Site, result: Result) -> list[Element]:
    """Return one element for the port, one for its MAC, one per address, and what discovery adds."""
    mac = _find_mac(site, result.interfaces)
    if not mac:
        raise broken(f"prevResult: wanted the MAC of {site.attachment.ifname}, found none")
    addresses = [ip.address.ip for ip in result.addresses_on(site.attachment.ifname)]
    return _render_elements(settings, site, mac, addresses)


def _find_mac(site: Site, interfaces: Iterable[Interface]) -> str:
    own = (each.mac for each in interfaces if each.sandbox and each.name == site.attachment.ifname)
    return next(filter(valid_mac, own), "")


def _render_elements(
    settings: SpoofCheck, site: Site, mac: str, addresses: Iterable[IPAddress]
) -> list[Element]:
    name = pack_ifname(site.attachment.host_ifname)
    ether = name + EUI(mac).packed.ljust(8, b"\0")
    keys = [("spoof_ports", name), ("spoof_mac", ether)]
    if settings.addresses:
        own = dict.fromkeys((*addresses, link_local(mac)))
        keys += [("spoof_addressed", name), ("spoof_option", ether)]
        keys += [(f"spoof_ip{a.version}", name + a.packed) for a in own]
        keys += [("spoof_target", name + a.packed) for a in own if a.version == 6]
    return [
        Element(family=settings.family, set_name=set_name, key=key, comment=site.label)
        for set_name, key in keys
    ]


def delete(given: DeleteInput, site: Site) -> None:
    """Forget the pod's MAC and addresses. Its host end is in every key, so no other pod has them.

    It searches where no address is told, and where a later plugin may have set another MAC than ADD told.
    """
    mac = _find_mac(site, given.interfaces) or "00:00:00:00:00:00"
    for family in FAMILIES:
        settings = SpoofCheck(family=family, addresses=True)
        known = _render_elements(settings, site, mac, given.addresses or ())
        port, ether, addressed = known[:3]
        if _is_there(site, ether) and (given.addresses is not None or not _is_there(site, addressed)):
            release_exactly(site, known)
        elif _is_there(site, port):
            release(site, family, "spoof_")


def _is_there(site: Site, element: Element) -> bool:
    nftables = site.host.nftables
    if element.set_name not in site.sets(element.family):
        return False
    return nftables.get(element.family, element.set_name, element.key) is not None


def compare(settings: SpoofCheck, site: Site, result: Result) -> Iterator[Damage]:
    """Compare the chains and the pod's elements."""
    from cni_plugin.features.damage import compare_ruleset  # no ADD or DEL needs it

    yield from compare_ruleset(site.host.nftables, _plan_ruleset(settings), "the spoof check")
    yield from compare_elements(site, _plan_elements(settings, site, result), "spoofCheck")


FEATURE = Feature(parse=parse, add=add, delete=delete, compare=compare, ensure=ensure)
