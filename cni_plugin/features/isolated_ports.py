"""Ports of bridges that are kept apart: by the kernel's flag, or by a rule where it is in the way.

`bridge link set dev VETH isolated on` stops what br_netfilter has translated to a host port and sends on
inside the bridge, too. So a pod with host ports is without the flag, and a rule drops what goes from one
port of a set to another, but for what bears the mark of published ports. That comes from the node's
address: an answer to the other pod's own would begin with ARP, which is dropped. In the set is every
isolated port of ours, as one with the flag reaches one without it. There is no set before the first pod that
needs one. By hand: `nft list chain bridge podwire isolation`.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from cni_plugin.config.network import comment_of_alias, parse_alias
from cni_plugin.features.isolation import FAMILY, SET, plan_element
from cni_plugin.features.published import IS_PUBLISHED, plan_marks
from cni_plugin.kernel.bridge import set_isolated
from cni_plugin.kernel.link import get_link, get_link_by_index, list_links
from cni_plugin.kernel.nft import Ruleset, ensure_ruleset, hooked, run_nft
from cni_plugin.kernel.nft_layout import BRIDGE_ISOLATION, ISOLATION, ISOLATION_MARK
from cni_plugin.kernel.nft_message import ElementChange

if TYPE_CHECKING:
    from cni_plugin.kernel.link import Link
    from cni_plugin.kernel.netns import Namespace
    from cni_plugin.kernel.nfnetlink import Nftables
    from cni_plugin.kernel.nft_message import Element

log = logging.getLogger("podwire")

_TITLE = "portIsolation"


def plan_rulesets() -> list[Ruleset]:
    """Return what keeps apart the ports in the set, after what it needs to let host ports through."""
    between = f"iifname @{SET} oifname @{SET}"
    through = f"{IS_PUBLISHED} meta mark set meta mark or {ISOLATION_MARK:#x} accept"
    apart = hooked(BRIDGE_ISOLATION, (f"{between} {through}", f"{between} drop"))
    source = hooked(ISOLATION, (f"meta mark & {ISOLATION_MARK:#x} == {ISOLATION_MARK:#x} masquerade",))
    sets = ((f"set {SET}", "typeof iifname;"),)
    return [
        Ruleset(family="inet", title=_TITLE, chains=(source,)),
        Ruleset(family=FAMILY, title=_TITLE, chains=(apart,), sets=sets),
    ]


def open_host_ports(host: Namespace, port: Link) -> None:
    """Let what the bridge translates reach an isolated port, which a rule keeps apart from now on.

    A port that somebody else has isolated is in no set of ours, and only the flag keeps it out: while there
    is one on the bridge nothing is changed, and a warning names it.
    """
    if foreign := list_foreign(host, port.master):
        log.warning(
            "bridge port %s: pods that are isolated do not reach its host ports, "
            "as %s is isolated and not by podwire",
            port.name,
            foreign[0],
        )
        return
    bridge = get_link_by_index(host.netlink, port.master)
    if bridge is None:
        return  # gone, and the port with it
    rulesets = plan_rulesets()
    # A pod that finds no set is one that we find, and the rule comes when all are in the set.
    if SET not in host.nftables.list_sets(FAMILY):
        run_nft(replace(rulesets[-1], chains=()).render())
    _take_in(host)
    for ruleset in (*rulesets, plan_marks(bridge.name)):
        ensure_ruleset(host.nftables, ruleset)
    host.netlink.change(set_isolated(port.name, on=False))


def list_foreign(host: Namespace, bridge: int) -> list[str]:
    """Return the ports of a bridge that somebody else has isolated."""
    return [p.name for p in _list_flagged(host, bridge) if parse_alias(p.alias) is None]


def _list_flagged(host: Namespace, bridge: int = 0) -> list[Link]:
    """Return the ports that have the kernel's flag, of one bridge or of all."""
    return [link for link in list_links(host.netlink, master=bridge) if link.port and link.port.isolated]


def _take_in(host: Namespace) -> None:
    """Put every port of ours that has the flag into the set, those of an earlier release included."""
    own = (link for link in _list_flagged(host) if parse_alias(link.alias))
    for link in own:
        element = plan_element(link.name, comment_of_alias(link.alias))
        _set_present(host.nftables, element, present=True)
        # Its DEL, which deletes the link first, may have looked for the element before it was there.
        if get_link(host.netlink, link.name) is None:
            _set_present(host.nftables, element, present=False)


def _set_present(nftables: Nftables, element: Element, *, present: bool) -> None:
    """Add the element where there is none with its key, or remove this one."""

    def decide() -> list[ElementChange]:
        found = nftables.get(element.family, element.set_name, element.key)
        differs = found is None if present else found == element
        return [ElementChange(element, present=present)] if differs else []

    nftables.update(decide)
