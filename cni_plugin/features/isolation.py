"""The feature `portIsolation`: isolated pods of a bridge cannot reach each other.

The mode gives the port the kernel's flag when it makes it. Beside it the port is an element of a set once a
pod with host ports, which must be without the flag, is kept apart by a rule: features/isolated_ports.py.
By hand: `bridge -d link show dev VETH`, `nft list table bridge podwire`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.features.elements import claim, compare_elements, is_of, pack_ifname, release_exactly
from cni_plugin.features.feature import Feature
from cni_plugin.kernel.link import get_link
from cni_plugin.kernel.nft import ensure_ruleset
from cni_plugin.kernel.nft_message import Element

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from cni_plugin.config.network import Addressing, Network
    from cni_plugin.contract.fields import Fields
    from cni_plugin.contract.result import Result
    from cni_plugin.features.damage import Damage
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


def compare(settings: Isolation, site: Site, result: Result) -> Iterator[Damage]:
    """Ask for the flag, or for the host ports that are a reason to be without; and for the rule."""
    del settings
    from cni_plugin.features.damage import Damage, compare_ruleset
    from cni_plugin.kernel.bridge import set_isolated

    name = site.attachment.host_ifname
    port = get_link(site.host.netlink, name)
    flagged = port is not None and port.port is not None and port.port.isolated
    if not flagged and not _has_host_ports(site, result):
        said = f"bridge port {name}: wanted isolated True, found False"
        mend = partial(site.host.netlink.change, set_isolated(name, on=True))
        yield Damage(kind="port", said=said, mend=mend)
        return
    if flagged and SET not in site.host.nftables.list_sets(FAMILY):
        return
    for ruleset in _plan_rulesets():
        yield from compare_ruleset(site.host.nftables, ruleset, "the rules of portIsolation")
    yield from compare_elements(site, [_plan_element(site)], "portIsolation")


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
    compare=compare,
    ensure=ensure,
    prepare=prepare,
)
