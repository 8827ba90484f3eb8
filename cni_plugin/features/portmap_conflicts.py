"""Who holds a host port: what the comment of its element says, and whether that pod still lives.

Two host ports are in conflict as two sockets would be: one protocol and number, and one address or all
addresses on either side. A port is taken from its holder only when the host's end of the holder's veth,
whose index stands in the comment, is gone from the node: then nothing reaches that pod any more.
A holder without an index keeps its port, because nothing is known of it. Two interfaces of one container
are not in conflict: a runtime may ask for its ports on all its networks, and the first one has them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.features.elements import identity_of, is_of
from cni_plugin.features.hostports import SERVICE_SIZE, parse_holder, parse_key
from cni_plugin.kernel.link import get_link_by_index, list_links

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from cni_plugin.features.elements import Settlement
    from cni_plugin.features.feature import Site
    from cni_plugin.features.hostports import Holder, HostPort
    from cni_plugin.features.portmap_plan import PortmapPlan
    from cni_plugin.kernel.nfnetlink import Nftables
    from cni_plugin.kernel.nft_message import Element


def settle(site: Site, plan: PortmapPlan) -> Settlement:
    """Return the elements that are the attachment's to have, and those of dead holders in their way.

    CNIError 11 when another container holds a port and may live.
    """
    conflicts = _find_conflicts(site, plan)
    same_pod = _list_same_pod(site, conflicts)
    gone = [each for each in conflicts if each not in same_pod]
    for each in gone:
        _require_dead(site, each)
    return _leave_to(same_pod, plan), gone


def list_own(site: Site, plan: PortmapPlan) -> list[Element]:
    """Return the elements but for ports that another interface of the container has."""
    return _leave_to(_list_same_pod(site, _find_conflicts(site, plan)), plan)


def _find_conflicts(site: Site, plan: PortmapPlan) -> dict[Element, None]:
    versions = sorted({port.version for port in plan.ports})
    asked = ((v, [port for port in plan.ports if port.version == v]) for v in versions)
    found = (each for v, ports in asked for each in _list_conflicts(site.host.nftables, v, ports))
    return dict.fromkeys(each for each in found if not is_of(site, each))


def _list_same_pod(site: Site, conflicts: Collection[Element]) -> list[Element]:
    """Return the elements of the container's other interfaces.

    Identities are compared, as the names in a comment may be cut; the interfaces are in the pod's namespace.
    Where nobody has opened that, the container's name must do.
    """
    if not conflicts:
        return []
    if site.netns is None:
        ours = site.attachment.container_id
        return [each for each in conflicts if parse_holder(each.comment).container_id == ours]
    names = [link.name for link in list_links(site.present_pod.netlink)]
    own = {replace(site.attachment, ifname=name).identity for name in names}
    found = [each for each in conflicts if identity_of(each) in own]
    return [each for each in found if not _is_dead(site, parse_holder(each.comment))]


def _leave_to(same_pod: Iterable[Element], plan: PortmapPlan) -> list[Element]:
    held = {parse_key(each.set_name, each.key) for each in same_pod}
    # One of all addresses has a port of one address, too, but not the other way round.
    left = [e for port, e in plan.ports.items() if held & {port, replace(port, address=None)}]
    return [each for each in plan.elements if each not in left] if left else list(plan.elements)


def _list_conflicts(nftables: Nftables, version: int, ports: Collection[HostPort]) -> Iterator[Element]:
    everywhere = {port.service for port in ports if port.address is None}
    for name in nftables.list_sets("inet", f"hostport{version}"):
        by_address = name.startswith(f"hostport{version}at_")
        keys = {port.key if by_address else port.service for port in ports if port.address or not by_address}
        yield from filter(None, (nftables.get("inet", name, key) for key in keys))
        if by_address and everywhere:
            # Of addresses there may be any; such elements are few.
            found = nftables.list_elements("inet", name)
            yield from (element for element in found if element.key[-SERVICE_SIZE:] in everywhere)


def _require_dead(site: Site, conflict: Element) -> None:
    holder = parse_holder(conflict.comment)
    if not _is_dead(site, holder):
        raise CNIError(
            Code.TRY_AGAIN_LATER,
            f"host port {parse_key(conflict.set_name, conflict.key)}: wanted it for {site.attachment}, "
            f"found it held by {holder.who}",
        )


def _is_dead(site: Site, holder: Holder) -> bool:
    return holder.end != 0 and get_link_by_index(site.host.netlink, holder.end) is None
