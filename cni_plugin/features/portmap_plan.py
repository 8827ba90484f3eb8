"""Plans the host ports of an attachment: nftables elements, from its addresses and its veth.

The elements, the chains they belong to, and the two switches that the kernel needs: route_localnet on the
interface to the pod, and hairpin on its port where br_netfilter translates inside the bridge.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.features.hostports import pack_target, render_holder
from cni_plugin.features.portmap_rules import GUARD, Treatment, plan_ruleset
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.link import get_link, get_link_by_index, get_other_end
from cni_plugin.kernel.nft_message import Element
from cni_plugin.kernel.route import find_path
from cni_plugin.kernel.sysctl import get_sysctl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from netaddr import IPAddress

    from cni_plugin.contract.result import Result
    from cni_plugin.features.feature import Site
    from cni_plugin.features.hostports import HostPort
    from cni_plugin.kernel.link import Link
    from cni_plugin.kernel.nft import Ruleset

_FILTERED = {4: "net/bridge/bridge-nf-call-iptables", 6: "net/bridge/bridge-nf-call-ip6tables"}


@dataclass(frozen=True, slots=True, kw_only=True)
class VethPlace:
    """Where a pod is on the node: the host's end of its veth, and the name of the link routed through."""

    end: Link | None = None
    link: str = ""
    shared: bool = False
    """Others are behind the link too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortmapPlan:
    """What an attachment gets, now that its addresses are known."""

    treatment: Treatment
    ports: Mapping[HostPort, Element]
    pods: tuple[Element, ...]
    link: str
    """The interface that the pod is routed through; empty where there is no such way."""
    local_link: str
    """The interface that must let packets for 127.0.0.0/8 through; empty for none."""
    bridge_port: Link | None
    """The pod's port in a bridge which br_netfilter translates in, that needs hairpin and no flag `isolated`.

    None without `snat`: answers to neighbours would go past the node.
    """

    @property
    def rulesets(self) -> tuple[Ruleset, ...]:
        """Return the static rules that the elements need."""
        return *([GUARD] if self.local_link else ()), plan_ruleset(self.treatment)

    @property
    def elements(self) -> tuple[Element, ...]:
        """Return all of them."""
        return *self.ports.values(), *self.pods


def plan_host_ports(
    wanted: Mapping[HostPort, int], treatment: Treatment, site: Site, result: Result
) -> PortmapPlan | None:
    """Return what to make of the pod's port behind each host port; None when it has no such family."""
    found = _pick_addresses(result, site.attachment.ifname)
    asked = {port: target for port, target in wanted.items() if port.version in found}
    if not asked:
        return None
    targets = {version: found[version] for version in sorted({port.version for port in asked})}
    place = _locate(site, next(iter(targets.values())))
    # A quote would end the name in the rule.
    segment = place.link if place.shared and '"' not in place.link else ""
    treatment = replace(treatment, segment=segment)
    comment = render_holder(site.label, place.end.index if place.end else 0, len(asked))
    element = partial(Element, family="inet", comment=comment)
    return PortmapPlan(
        treatment=treatment,
        ports={
            port: element(
                set_name=f"{port.kind}{treatment.scope}",
                key=port.key,
                data=pack_target(targets[port.version], target),
            )
            for port, target in asked.items()
        },
        pods=tuple(
            element(set_name=f"hostport_pods{version}_{treatment.scope}", key=address.packed * 2)
            for version, address in targets.items()
        ),
        link=place.link,
        local_link=place.link if treatment.snat and 4 in targets else "",
        bridge_port=_find_bridge_port(site, place, targets) if treatment.snat else None,
    )


def _pick_addresses(result: Result, ifname: str) -> dict[int, IPAddress]:
    """Return the first address of each family that is the pod's interface's, or nobody's in particular."""
    picked: dict[int, IPAddress] = {}
    for ip in result.addresses_on(ifname):
        picked.setdefault(ip.address.version, ip.address.ip)
    return picked


def _locate(site: Site, address: IPAddress) -> VethPlace:
    host = site.host.netlink
    end = _find_end(site)
    path = find_path(host, address)
    near = path is not None and path.gateway is None and not path.local
    link = get_link_by_index(host, path.index) if path and near else None
    return VethPlace(
        end=end,
        link=link.name if link else "",
        shared=link is not None and (end is None or link.index != end.index),
    )


def _find_end(site: Site) -> Link | None:
    """Return the host's end of the pod's veth, whoever made it."""
    if site.netns is None:
        return get_link(site.host.netlink, site.attachment.host_ifname)
    inner = get_link(site.pod.netlink, site.attachment.ifname) if site.pod else None
    return get_other_end(site.host.netlink, inner) if inner else None


def _find_bridge_port(site: Site, place: VethPlace, versions: Iterable[int]) -> Link | None:
    """Return the pod's port in a bridge whose packets are translated before they are routed.

    There br_netfilter sends on in the bridge what goes back to where it came from, and the routing,
    which needs no hairpin and knows no isolated ports, never sees it.
    """
    if not (place.shared and place.end and place.end.port):
        return None
    with site.host.entered():
        filtered = any(_is_switched_on(_FILTERED[version]) for version in versions)
    return place.end if filtered else None


def _is_switched_on(key: str) -> bool:
    with suppress(KernelError):
        return get_sysctl(key) != "0"
    return False
