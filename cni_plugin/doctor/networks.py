"""Checks each of our networks: could a pod be added now, are those that are there as they should be.

What is known to go wrong is looked for by itself, because then the command is known, too. STATUS is
asked at the end and says the rest in the words that the runtime gets.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from cni_plugin.addresses import host_local
from cni_plugin.addresses.delegate import OWN_NAMES
from cni_plugin.config.network import data_dir, ipam_type, parse_alias
from cni_plugin.config.paths import DATA_DIR
from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.doctor.finding import Finding
from cni_plugin.kernel.link import list_links
from cni_plugin.kernel.netns import open_host
from cni_plugin.node import audit
from cni_plugin.node.repair import find_wrong
from cni_plugin.plugins import podwire
from ipam.errors import IPAMError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.backend.route_conflicts import Clash
    from cni_plugin.backend.shared_facts import Survey
    from cni_plugin.contract.request import Request
    from cni_plugin.doctor.site import Examined
    from cni_plugin.kernel.foreign_chains import Obstacle
    from ipam.allocator import Usage

_NO_ADD: Final = "no pod can be added to the network now"
_FOREIGN: Final = {
    "route": "a route or a rule of somebody else takes the packets: those pods are not reached",
    "link": "it is left of a setting of before: nodes that still use it reach this one, and are not answered",
}
_KINDS: Final = {
    "leaked": "the address is lost to other pods",
    "unallocated": "the address can be given to another pod, too",
    "outside": "the ranges were changed while the pod ran; another node may give the same address",
    "damaged": "the file keeps an address from being given out",
}


def check(site: Examined) -> Iterator[Finding]:
    """Yield what is wrong with each network."""
    for request in site.configured.ours:
        found = list(_check_one(site, request))
        yield from found
        if not any(each.severity == "error" for each in found):
            yield from _ask_status(site, request)


def _damage(site: Examined, request: Request) -> Iterator[Finding]:
    """Yield what this node does not hold for a network and its pods; switches have findings of their own."""
    with open_host() as host:
        found = list(find_wrong(site.configured, site.cache_dir, host, request.network, unused=True))
    mendable = [each for each in found if each.damage.mend and each.damage.kind != "sysctl"]
    if mendable:
        more = f" and {len(mendable) - 1} more" if len(mendable) > 1 else ""
        yield Finding(
            severity="error",
            object=_name(request),
            found=f"{mendable[0].pod + ': ' if mendable[0].pod else ''}{mendable[0].damage.said}{more}",
            meaning="somebody took away or changed what an ADD or a sync had made: pods are not reached, or "
            "not kept in bounds",
            remedy=f"podwire sync{site.options} {shlex.quote(request.network)}",
        )
    for wrong in found:
        if not wrong.damage.mend and wrong.remedy:
            yield Finding(
                severity="error",
                object=wrong.pod or _name(request),
                found=wrong.damage.said,
                meaning=_FOREIGN[wrong.damage.kind]
                if wrong.damage.remedy
                else "the network was changed since this pod was added: other nodes do not reach it",
                remedy=wrong.remedy,
            )


def _check_one(site: Examined, request: Request) -> Iterator[Finding]:
    try:
        survey, obstacles = podwire.survey(request)
    except CNIError:
        return  # STATUS has the same words
    yield from _survey(survey)
    yield from _damage(site, request)
    yield from (_obstacle(request, obstacle) for obstacle in obstacles)
    yield from (_clash(site, clash) for clash in podwire.clashes(request))
    yield from _pods(request, survey)
    if ipam_type(request.config) in OWN_NAMES:
        yield from _addresses(request)


def _name(request: Request) -> str:
    return f"network {request.network}"


def _survey(survey: Survey) -> Iterator[Finding]:
    for trouble in survey.troubles:
        yield Finding(
            severity="error",
            object=trouble.object,
            found=trouble.found,
            meaning=f"{_NO_ADD}: a bridge keeps one IPv4 address, and one IPv6 address a network",
            remedy=trouble.remedy,
        )


def _obstacle(request: Request, obstacle: Obstacle) -> Finding:
    what = f"what is forwarded from and to {obstacle.interface}"
    if not obstacle.certain:
        return Finding(
            severity="note",
            object=obstacle.chain.rstrip(","),
            found=f"whether it drops {what} cannot be told: its rules ask for more than that",
            meaning=f"if it does, pods of {_name(request)} reach the node and nothing beyond it",
            remedy=obstacle.command,
        )
    return Finding(
        severity="error",
        object=obstacle.chain.rstrip(","),
        found=f"it drops {what}",
        meaning=f"pods of {_name(request)} reach the node and nothing beyond it",
        remedy=obstacle.command,
    )


def _clash(site: Examined, clash: Clash) -> Finding:
    return Finding(
        severity="error",
        object=f"subnet {clash.subnet}",
        found=f"{clash.route} is also behind {clash.link}",
        meaning="packets for these addresses go to one of the two links; who is behind the other is cut off",
        remedy=f"choose another subnet: in {site.conf_dir}, or where {clash.link} is set up",
    )


def _pods(request: Request, survey: Survey) -> Iterator[Finding]:
    """Yield the pods that still have the MTU of before."""
    if not survey.mtu:
        return
    with open_host() as host:
        links = list_links(host.netlink, kind="veth")
    owners = [(link, parse_alias(link.alias)) for link in links if link.mtu > survey.mtu]
    large = [(link.mtu, whose) for link, whose in owners if whose and whose.network == request.network]
    if large:
        names = ", ".join(whose.pod or whose.container_id for _, whose in large[:5])
        yield Finding(
            severity="warning",
            object=_name(request),
            found=f"{len(large)} pods were given an MTU of {large[0][0]}, now it is {survey.mtu}: {names}",
            meaning="their large packets are lost on the way: connections open and hang",
            remedy="start these pods anew (kubectl delete pod), they get the MTU of now",
        )


def _addresses(request: Request) -> Iterator[Finding]:
    """Yield what is wrong with the store of a network, and which of its pools is full."""
    try:
        host_local.open_store(request).check_writable()
        usages, wrong = host_local.usage(request), audit.audit(request)
    except (CNIError, IPAMError) as error:
        directory = data_dir(request.config)
        yield Finding(
            severity="error",
            object=directory,
            found=str(error),
            meaning=f"{_NO_ADD}: no address can be written down",
            remedy=f"mkdir -p {shlex.quote(directory)}; findmnt -T {shlex.quote(directory)}; "
            f"df -hi {shlex.quote(directory)}",
        )
        return
    leaked = [each.subject for each in wrong if each.kind == "leaked"]
    for usage in usages:
        if not usage.free:
            yield _full(request, usage, leaked)
    for each in wrong:
        if each.kind == audit.UNKNOWN:
            continue  # nobody here can say that it is gone
        said = each.said.removesuffix(f": {each.repair}") if each.repair else each.said
        yield Finding(
            severity="warning",
            object=_name(request),
            found=said,
            meaning=_KINDS[each.kind],
            remedy=each.repair or f"podwire ipam check {shlex.quote(request.network)}",
        )


def _full(request: Request, usage: Usage, leaked: list[str]) -> Finding:
    directory = data_dir(request.config)
    place = "" if directory == DATA_DIR else f" --data-dir {shlex.quote(directory)}"
    release = f"podwire ipam release{place} {shlex.quote(request.network)} {' '.join(leaked)}"
    return Finding(
        severity="error",
        object=_name(request),
        found=f"its pool {usage.range_set} is full: {usage.used} in use",
        meaning=f"{_NO_ADD}: no IP addresses available in range set",
        remedy=release if leaked else 'remove pods, or add a range to "ipam.ranges"',
    )


def _ask_status(site: Examined, request: Request) -> Iterator[Finding]:
    try:
        podwire.PLUGIN.status(request)
    except CNIError as error:
        limited = error.code == Code.LIMITED_CONNECTIVITY
        yield Finding(
            severity="error",
            object=_name(request),
            found=error.msg,
            meaning="pods are not reached from elsewhere" if limited else _NO_ADD,
            remedy=f"correct the configuration in {site.conf_dir}"
            if error.code == Code.INVALID_CONFIG
            else f"podwire sync{site.options} {shlex.quote(request.network)}; podwire status{site.options}",
        )
