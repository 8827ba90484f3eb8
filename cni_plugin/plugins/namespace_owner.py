"""Whether the namespace at CNI_NETNS is still the attachment's: a verb that removes changes no other.

A path may lead to another pod's by the time of a DEL: process ids come again. The interface in it decides:
the alias of a veth's other end says whose it is. Where nobody says it, as with links of the Go plugins, it
has the MAC of prevResult, or the addresses that the store holds for the attachment.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from cni_plugin.addresses.host_local import list_held
from cni_plugin.config.network import identity_of_alias, parse_attachment
from cni_plugin.contract.errors import CNIError
from cni_plugin.contract.result import parse_prev_result
from cni_plugin.kernel.addr import list_addresses
from cni_plugin.kernel.link import get_link, get_other_end

if TYPE_CHECKING:
    from cni_plugin.contract.request import Request
    from cni_plugin.kernel.link import Link
    from cni_plugin.kernel.netns import Namespace


def has_interface(request: Request, host: Namespace, pod: Namespace) -> bool:
    """Tell whether the attachment's interface is in this namespace, which then is the attachment's."""
    attachment = parse_attachment(request)
    link = get_link(pod.netlink, attachment.ifname)
    if link is None:
        return False
    end = get_other_end(host.netlink, link)
    said = identity_of_alias((end or link).alias)
    return said == attachment.identity if said else _is_told(request, link) or _is_held(request, pod, link)


def _is_told(request: Request, link: Link) -> bool:
    """Tell whether prevResult knows the interface by its MAC; that of `lo` says nothing."""
    previous = None
    with suppress(CNIError):
        previous = parse_prev_result(request.config, request.cni_version)
    named = [each for each in previous.interfaces if each.sandbox] if previous else []
    macs = {each.mac.lower() for each in named if each.name == link.name}
    return any(c not in "0:" for c in link.mac) and link.mac in macs


def _is_held(request: Request, pod: Namespace, link: Link) -> bool:
    """Tell whether the interface has all addresses that the attachment holds: nobody else has them."""
    held = set()
    with suppress(CNIError):
        held = set(list_held(request))
    return bool(held) and held <= {each.ip for each in list_addresses(pod.netlink, link.index)}
