"""Whose a host port is: what the comment of its element says, and whether he lives.

Two ports are rivals as two sockets would be: one protocol and number, and one address or all
addresses on either side. A port is taken from its holder only when the host's end of his veth, whose index
stands in the comment, is gone from the node: then nothing reaches him any more.
Of a holder without an index nothing is known, and he keeps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.kernel.link import get_link_by_index
from cni_plugin.plumbing.elements import is_of
from cni_plugin.plumbing.hostports import SERVICE_SIZE, parse_holder, parse_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cni_plugin.kernel.nfnetlink import Element, Nftables
    from cni_plugin.plumbing.feature import Site
    from cni_plugin.plumbing.hostports import HostPort


def find_rivals(site: Site, ports: Collection[HostPort]) -> Iterator[Element]:
    """Yield the elements of dead holders of these ports; CNIError 11 when a holder may live."""
    for version in sorted({port.version for port in ports}):
        mine = [port for port in ports if port.version == version]
        for rival in _list_rivals(site.host.nftables, version, mine):
            if not is_of(site, rival):
                _require_dead(site, rival)
                yield rival


def _list_rivals(nftables: Nftables, version: int, ports: Collection[HostPort]) -> Iterator[Element]:
    everywhere = {port.service for port in ports if port.address is None}
    for name in nftables.list_sets("inet", f"hostport{version}"):
        by_address = name.startswith(f"hostport{version}at_")
        keys = {port.key if by_address else port.service for port in ports if port.address or not by_address}
        yield from filter(None, (nftables.get("inet", name, key) for key in keys))
        if by_address and everywhere:
            # Of addresses there may be any; such elements are few.
            found = nftables.list_elements("inet", name)
            yield from (element for element in found if element.key[-SERVICE_SIZE:] in everywhere)


def _require_dead(site: Site, rival: Element) -> None:
    holder = parse_holder(rival.comment)
    if not holder.end or get_link_by_index(site.host.netlink, holder.end) is not None:
        raise CNIError(
            Code.TRY_AGAIN_LATER,
            f"host port {parse_key(rival.set_name, rival.key)}: wanted it for {site.attachment}, "
            f"found it held by {holder.who}",
        )
