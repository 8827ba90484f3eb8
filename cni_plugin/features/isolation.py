"""The feature `portIsolation`: isolated pods of a bridge cannot reach each other.

The mode gives the port the kernel's flag when it makes it. Beside it the port is an element of a set once a
pod with host ports, which must be without the flag, is kept apart by a rule: features/isolated_ports.py.
By hand: `bridge -d link show dev VETH`, `nft list table bridge podwire`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import broken
from cni_plugin.features.elements import claim, is_of, pack_ifname, release_exactly, require
from cni_plugin.features.feature import Feature
from cni_plugin.kernel.link import get_link
from cni_plugin.kernel.nfnetlink import Element
from cni_plugin.kernel.nft import ensure_ruleset, find_difference

if TYPE_CHECKING:
    from contextlib import ExitStack

    from cni_plugin.config.network import Addressing, Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.result import Result
    from cni_plugin.features.feature import DeleteInput, Site
    from cni_plugin.kernel.netns import Namespace
    from cni_plugin.kernel.nft import Ruleset


FAMILY, SET = "bridge", "isolated_ports"


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """The pods of the network are isolated; there is nothing else to say of it."""


def parse(fields: Fields, network: Network, addressing: Addressing) -> Isolation | None:
    """Tell whether it is asked for; a pod without a bridge has nobody to be kept from."""
    del addressing
    return Isolation() if fields.boolean("portIsolation") and network.mode != "routed" else None


def ensure(settings: Isolation, host: Namespace) -> int:
    """Make the rules be as they should where there is a set; return the number of changes."""
    del settings
    if SET not in host.nftables.list_sets(FAMILY):
        return 0
    return sum(ensure_ruleset(host.nftables, ruleset) for ruleset in _plan_rulesets())


def _plan_rulesets() -> list[Ruleset]:
    from cni_plugin.features.isolated_ports import plan_rulesets  # few pods need them, and no DEL

    return plan_rulesets()


def prepare(settings: Isolation, site: Site, undo: ExitStack) -> None:
    """Put the pod's port into the set before its link comes up.

    Whoever makes the set later finds the port by its flag.
    """
    del settings
    own = [_plan_element(site)]
    undo.callback(release_exactly, site, own)
    if SET in site.sets(FAMILY):
        claim(site, own, undo)


def _plan_element(site: Site) -> Element:
    return plan_element(site.attachment.host_ifname, site.label)


def plan_element(host_ifname: str, label: str) -> Element:
    """Return the element of the host's end of a pod's veth."""
    return Element(family=FAMILY, set_name=SET, key=pack_ifname(host_ifname), comment=label)


def add(settings: Isolation, site: Site, result: Result, undo: ExitStack) -> Result:
    """Return the result: everything is there before the link comes up."""
    del settings, site, undo
    return result


def delete(given: DeleteInput, site: Site) -> None:
    """Forget the pod's port."""
    del given
    if SET in site.sets(FAMILY):
        release_exactly(site, [_plan_element(site)])


def check(settings: Isolation, site: Site, result: Result) -> None:
    """Ask for the flag, or for the host ports that are a reason to be without; and for the rule."""
    del settings
    port = get_link(site.host.netlink, site.attachment.host_ifname)
    flagged = port is not None and port.port is not None and port.port.isolated
    if not flagged and not _has_host_ports(site, result):
        raise broken(f"bridge port {site.attachment.host_ifname}: wanted isolated True, found False")
    if flagged and SET not in site.sets(FAMILY):
        return
    for ruleset in _plan_rulesets():
        if chain := find_difference(site.host.nftables, ruleset):
            name = f"{ruleset.family} podwire {chain}"
            raise broken(f"nft chain {name}: wanted the rules of portIsolation, found others")
    require(site, [_plan_element(site)], "portIsolation")


def _has_host_ports(site: Site, result: Result) -> bool:
    """Tell whether a host port leads to the pod, by our plugin portmap in the chain or by the main one."""
    for address in (ip.address.ip for ip in result.addresses_on(site.attachment.ifname)):
        for name in site.sets("inet", f"hostport_pods{address.version}_"):
            found = site.host.nftables.get("inet", name, address.packed * 2)
            if found is not None and is_of(site, found):
                return True
    return False


FEATURE = Feature(
    parse=parse,
    add=add,
    delete=delete,
    guards=True,
    check=check,
    ensure=ensure,
    prepare=prepare,
)
