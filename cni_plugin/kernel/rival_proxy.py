"""Finds what else on a node translates packets to Services: kube-proxy, in each of its modes.

Beside ours it decides nothing, since new connections are ours before it sees them; but its linear rules cost
each of them, and two that serve one cluster are one too many. By hand: `nft list chains | grep KUBE-`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.kernel.link import get_link

if TYPE_CHECKING:
    from cni_plugin.kernel.netns import Namespace

_IPVS_LINK = "kube-ipvs0"
_CHAIN = "KUBE-SERVICES"
_TABLE = "kube-proxy"
_FAMILIES = {"ip": "iptables", "ip6": "ip6tables"}


def find_rivals(host: Namespace) -> list[str]:
    """Return whose rules for Services there are, each with the command that removes them."""
    found = []
    for family, program in _FAMILIES.items():
        if host.nftables.get_chain(family, "nat", _CHAIN):
            remedy = f"{program}-save | grep -v KUBE- | {program}-restore"
            found.append(f"kube-proxy's rules of {program}; once it is gone remove them: {remedy}")
        if host.nftables.get_chain(family, _TABLE, "services"):
            remedy = f"nft delete table {family} {_TABLE}"
            found.append(f"kube-proxy's table {family} {_TABLE}; once it is gone remove it: {remedy}")
    if get_link(host.netlink, _IPVS_LINK):
        found.append(
            f"kube-proxy's link {_IPVS_LINK}; once it is gone remove it: ip link delete {_IPVS_LINK}"
        )
    return found
