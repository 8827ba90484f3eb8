"""`podwire status`: networks, pools, attachments, and what is wrong on this node.

Reads configuration, store and kernel and changes nothing. There is no record of our own to
consult: an attachment is a veth whose alias names it, an address is a file in the store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cni_plugin.addresses import host_local as addresses
from cni_plugin.addresses.delegate import OWN_NAMES
from cni_plugin.config.network import MARK, data_dir, parse_network
from cni_plugin.contract.errors import CNIError
from cni_plugin.kernel.link import list_links
from cni_plugin.kernel.netns import open_host
from cni_plugin.node.configured import read_configured
from cni_plugin.plugins import PLUGINS, podwire
from ipam import allocator
from ipam.address import render_address
from ipam.errors import IPAMError
from ipam.store import Owner, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.contract.request import Request
    from cni_plugin.kernel.link import Link
    from cni_plugin.node.configured import ConfFile


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReport:
    """How full a range set is, in addresses."""

    ranges: str
    used: int
    free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentReport:
    """One pod on a network, as link and store show it."""

    network: str
    container_id: str
    ifname: str
    pod: str
    host_ifname: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkReport:
    """One network that a configuration file defines."""

    name: str
    file: str
    type: str
    mode: str
    ipam: str
    data_dir: str
    pools: tuple[PoolReport, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """Everything `podwire status` shows."""

    networks: tuple[NetworkReport, ...]
    attachments: tuple[AttachmentReport, ...]
    problems: tuple[str, ...]


def look(conf_dir: str, bin_dir: str) -> NodeReport:
    """Return the report for the networks that the files in `conf_dir` define."""
    configured = read_configured(conf_dir, bin_dir)
    problems = [error.msg for error in configured.problems]
    networks = [network for file in configured.files for network in _read_file(file, problems)]
    held = _read_held(networks)
    attachments = [
        replace(a, addresses=tuple(held.get((a.network, _owner(a)), ()))) for a in list_attachments()
    ]
    report = NodeReport(networks=tuple(networks), attachments=tuple(attachments), problems=())
    return replace(report, problems=(*problems, *_find_disagreements(report, held)))


def list_attachments() -> list[AttachmentReport]:
    """Return what the links of this node say, without addresses: those are in the stores."""
    with open_host() as host:
        links = list_links(host.netlink, kind="veth")
    return [_parse_attachment(link) for link in links if link.alias.startswith(MARK)]


def _read_file(file: ConfFile, problems: list[str]) -> list[NetworkReport]:
    try:
        return [_read_network(file.path, request, problems) for request in file.mains]
    except (CNIError, IPAMError) as error:
        problems.append(f"{file.path}: {error}")
        return []


def _read_network(path: str, request: Request, problems: list[str]) -> NetworkReport:
    network = parse_network(request)
    ours = network.ipam_type in OWN_NAMES
    problems += _ask_status(request, path)
    return NetworkReport(
        name=request.network,
        file=path,
        type=request.config.string("type"),
        mode=network.mode,
        ipam=network.ipam_type or "none",
        data_dir=data_dir(request.config) if ours else "",
        pools=tuple(_read_pools(request)) if ours else (),
    )


def _ask_status(request: Request, path: str) -> list[str]:
    """Return why a pod could not be added now, or not be reached, in the words that the runtime would get."""
    try:
        PLUGINS["podwire"]().status(request)
        return [f"{path}: {each}" for each in podwire.obstacles(request) if each.certain]
    except CNIError as error:
        return [f"{path}: {error.msg}"]


def _read_pools(request: Request) -> Iterator[PoolReport]:
    for usage in allocator.usage(addresses.open_store(request), addresses.parse_range_sets(request)):
        yield PoolReport(ranges=str(usage.range_set), used=usage.used, free=usage.free)


def _read_held(networks: list[NetworkReport]) -> dict[tuple[str, Owner], list[str]]:
    """Return the addresses of every (network, owner) in the stores of these networks."""
    held: dict[tuple[str, Owner], list[str]] = {}
    for network in networks:
        if network.data_dir:
            for address, owner in sorted(Store(network.data_dir, network.name).owners().items()):
                held.setdefault((network.name, owner), []).append(render_address(address))
    return held


def _parse_attachment(link: Link) -> AttachmentReport:
    """Return what an alias says; one that was cut has lost its end."""
    _, network, container_id, ifname, pod = [*link.alias.split(" "), "", "", "", ""][:5]
    return AttachmentReport(
        network=network,
        container_id=container_id,
        ifname=ifname,
        pod=pod,
        host_ifname=link.name,
        addresses=(),
    )


def _find_disagreements(report: NodeReport, held: dict[tuple[str, Owner], list[str]]) -> Iterator[str]:
    """Yield where configuration, store and kernel contradict each other."""
    known = {network.name for network in report.networks}
    for attachment in report.attachments:
        if attachment.network not in known:
            yield f"{attachment.host_ifname}: no file configures its network {attachment.network}"
    ours = {network.name for network in report.networks if network.data_dir}
    owners = {(a.network, _owner(a)) for a in report.attachments}
    for (network, owner), found in sorted(held.items(), key=lambda item: item[1]):
        if (network, owner) not in owners:
            named = " ".join(found)
            yield (
                f"network {network}: {named} held by {owner}, which has no interface here; "
                f"if that container is gone: podwire ipam release {network} {named}"
            )
    for attachment in report.attachments:
        if attachment.network in ours and not attachment.addresses:
            yield f"{attachment.host_ifname}: {attachment.container_id} holds no address in the store"


def _owner(attachment: AttachmentReport) -> Owner:
    return Owner(container_id=attachment.container_id, ifname=attachment.ifname)
