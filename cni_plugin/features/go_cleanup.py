"""Removes what the Go reference plugins made for an attachment: DEL of a pod from before the switch.

They name a container's chains of iptables and its device by a hash of network and container id; the rules of
their `firewall` say nothing but addresses. Their static chains are left alone, as they leave them.
By hand: `iptables -t nat -S CNI-HOSTPORT-DNAT`, `iptables -S CNI-FORWARD`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from netaddr import IPNetwork

from cni_plugin.contract.errors import run_all
from cni_plugin.features.bandwidth import delete_go_device
from cni_plugin.kernel.iptables import delete_chain, delete_rules

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netaddr import IPAddress

    from cni_plugin.features.feature import DeleteInput, Site

_LONGEST_CHAIN = 28


def delete_go_objects(given: DeleteInput, site: Site) -> None:
    """Remove all that is on the node, but for links and addresses."""
    run_all(
        partial(delete_masquerade, site),
        partial(delete_host_ports, site),
        partial(delete_go_device, site),
        partial(delete_accepts, site, given.addresses or ()),
    )


def delete_masquerade(site: Site) -> None:
    """Remove the chains of `ipMasq`."""
    delete_chain(site.host, site.attachment.go_name("CNI-", _LONGEST_CHAIN), "POSTROUTING")


def delete_host_ports(site: Site) -> None:
    """Remove the chains of `portmap`."""
    chain = site.attachment.go_name("CNI-DN-", _LONGEST_CHAIN)
    delete_chain(site.host, chain, "CNI-HOSTPORT-DNAT")


def delete_accepts(site: Site, addresses: Iterable[IPAddress]) -> None:
    """Remove the rules of `firewall` for a pod's addresses."""
    established = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"]
    hosts = [str(IPNetwork(address)) for address in addresses]
    rules = [rule for host in hosts for rule in (["-d", host, *established], ["-s", host])]
    if rules:
        delete_rules(site.host, "CNI-FORWARD", [[*rule, "-j", "ACCEPT"] for rule in rules])
