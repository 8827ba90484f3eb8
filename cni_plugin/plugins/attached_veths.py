"""Lists living attachments of a network with their addresses, as the veths of the node show them.

The alias of the host's end names the attachment; the kernel tells the addresses of the other end
from here (`ip -n POD addr show`), without a path to the pod's namespace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.config.network import Attachment, LiveAttachment, parse_alias
from cni_plugin.kernel.addr import list_peer_addresses
from cni_plugin.kernel.link import list_links

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.kernel.netns import Namespace


def list_living(network: str, host: Namespace) -> Iterator[LiveAttachment]:
    """Yield the attachments to a network that we made, with their addresses."""
    for link in list_links(host.netlink, kind="veth"):
        whose = parse_alias(link.alias)
        # A long alias is cut; then it names somebody else.
        if whose is not None and whose.network == network and whose.is_whole:
            attachment = Attachment(
                network=network, container_id=whose.container_id, ifname=whose.ifname, netns=""
            )
            found = list_peer_addresses(host.netlink, link)
            yield LiveAttachment(attachment=attachment, addresses=tuple(each.ip for each in found))
