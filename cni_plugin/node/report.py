"""`podwire status`: networks, pools, attachments, and what is wrong on this node.

Reads configuration, store and kernel and changes nothing. There is no record of our own to
consult: an attachment is a veth whose alias names it, an address is a file in the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.addresses import host_local as addresses
from cni_plugin.addresses.delegate import OWN_NAMES
from cni_plugin.config.network import data_dir, parse_network
from cni_plugin.contract.errors import CNIError
from cni_plugin.kernel.link import list_links
from cni_plugin.kernel.netns import open_host
from cni_plugin.node.configured import network_of, read_configured
from cni_plugin.node.evidence import list_foreign, read_evidence
from cni_plugin.node.liveness import judge
from cni_plugin.node.repair import find_wrong
from cni_plugin.plugins import PLUGINS, podwire
from ipam import allocator
from ipam.address import render_address
from ipam.errors import IPAMError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.contract.request import Request
    from cni_plugin.node.configured import ConfFile
    from cni_plugin.node.evidence import Evidence
    from cni_plugin.node.liveness import Liveness
    from cni_plugin.node.repair import Wrong


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
    """Empty for one that another plugin joined: nothing of it is seen from here but its addresses."""
    addresses: tuple[str, ...]
    state: str
    """Whether it lives, as far as store and kernel show it."""


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


def look(conf_dir: str, bin_dir: str, results_dir: str) -> NodeReport:
    """Return the report for the networks that the files in `conf_dir` define."""
    configured = read_configured(conf_dir, bin_dir)
    problems = [error.msg for error in configured.problems]
    networks = [network for file in configured.files for network in _read_file(file, problems)]
    seen = _read_attachments(configured.ours, problems)
    problems += _find_disagreements(networks, seen)
    with open_host() as host:
        problems += [_say_wrong(wrong) for wrong in find_wrong(configured, results_dir, host)]
    return NodeReport(
        networks=tuple(networks),
        attachments=tuple(_report(each, liveness) for each, liveness in seen if not liveness.is_dead),
        problems=tuple(problems),
    )


def _read_attachments(requests: list[Request], problems: list[str]) -> list[tuple[Evidence, Liveness]]:
    """Return the attachments to these networks, and those whose veths name others."""
    found: dict[str, list[Evidence]] = {}
    with open_host() as host:
        for request in requests:
            try:
                found[request.network] = read_evidence(network_of(request), host)
            except (CNIError, IPAMError) as error:
                problems.append(f"network {request.network}: {error}")
        others = list_foreign(list_links(host.netlink, kind="veth"), found)
    return [(each, judge(each)) for each in (*(e for some in found.values() for e in some), *others)]


def list_attachments() -> list[AttachmentReport]:
    """Return what the links of this node say, without addresses: those are in the stores."""
    with open_host() as host:
        found = list_foreign(list_links(host.netlink, kind="veth"), ())
    return [_report(each, judge(each)) for each in found]


def _report(evidence: Evidence, liveness: Liveness) -> AttachmentReport:
    return AttachmentReport(
        network=evidence.network,
        container_id=evidence.container_id,
        ifname=evidence.ifname,
        pod=evidence.pod,
        host_ifname=evidence.link.name if evidence.link else "",
        addresses=tuple(map(render_address, evidence.addresses)),
        state=liveness.state.value,
    )


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
        dropped = [each for each in podwire.obstacles(request) if each.certain]
        return [f"{path}: {each}" for each in (*podwire.clashes(request), *dropped)]
    except CNIError as error:
        return [f"{path}: {error.msg}"]


def _read_pools(request: Request) -> Iterator[PoolReport]:
    for usage in allocator.usage(addresses.open_store(request), addresses.parse_range_sets(request)):
        yield PoolReport(ranges=str(usage.range_set), used=usage.used, free=usage.free)


def _find_disagreements(
    networks: list[NetworkReport], seen: list[tuple[Evidence, Liveness]]
) -> Iterator[str]:
    """Yield where configuration, store and kernel contradict each other."""
    known = {network.name: network for network in networks}
    for evidence, liveness in seen:
        network = known.get(evidence.network)
        if liveness.is_dead:
            yield _say_dead(evidence, liveness)
        if evidence.link is None:
            continue
        if network is None:
            yield f"{evidence.link.name}: no file configures its network {evidence.network}"
        elif network.data_dir and not evidence.reservations:
            yield f"{evidence.link.name}: {evidence.container_id} holds no address in the store"


def _say_wrong(wrong: Wrong) -> str:
    """Return what this node lacks, and the command that mends it."""
    return f"{wrong}: {wrong.remedy}" if wrong.remedy else str(wrong)


def _say_dead(evidence: Evidence, liveness: Liveness) -> str:
    """Return what is left of an attachment, why it is, and the command that removes it."""
    who = f"{evidence.container_id} ({evidence.ifname})" if evidence.ifname else evidence.container_id
    named = " ".join(map(render_address, evidence.addresses)) or ", ".join(evidence.what)
    holder = f"held by {who}, which has no interface here" if who else "held by nobody"
    return f"network {evidence.network}: {named} {holder}; {liveness.reason}: podwire gc {evidence.network}"
