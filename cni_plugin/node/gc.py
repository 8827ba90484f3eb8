"""Garbage collection: looks twice, with a grace period between, and removes what both times was dead.

Only what was found is removed. So an attachment that is made while we look is safe, and so is one that
comes back before its turn: its veth is looked for again at the last moment. The code of the verb GC
removes; it is told to keep every attachment but the dead ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from cni_plugin.addresses import host_local
from cni_plugin.config.network import host_ifname
from cni_plugin.contract.errors import CNIError, Code, run_all
from cni_plugin.features import CHAINED
from cni_plugin.features.attachment import collect_feature
from cni_plugin.kernel.link import get_link
from cni_plugin.kernel.netns import open_host
from cni_plugin.node import runtime
from cni_plugin.node.evidence import Evidence, read_evidence
from cni_plugin.node.liveness import Liveness, judge
from cni_plugin.plugins import podwire
from ipam.errors import IPAMError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterator, Sequence

    from cni_plugin.contract.request import Request
    from cni_plugin.kernel.netns import Namespace
    from cni_plugin.node.configured import ConfiguredNetwork
    from ipam.namespace_mark import Reservation


@dataclass(frozen=True, slots=True, kw_only=True)
class GCOptions:
    """What is asked for: networks, whose word counts for them, and how long to wait between two looks."""

    networks: Sequence[ConfiguredNetwork]
    endpoint: str
    """Of the runtime; empty for none."""
    named: Collection[str]
    """Networks that the operator says the runtime uses."""
    pause: Callable[[], bool]
    """Wait for the grace period; False to let everything be."""
    dry_run: bool


Action = Literal["kept", "reclaimable", "reclaimed", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What became of an attachment that does not live, or does not seem to."""

    evidence: Evidence
    liveness: Liveness
    action: Action
    refusal: str = ""
    """Why it could not be removed."""


Judged = tuple[Evidence, Liveness]


def reclaim(options: GCOptions, problems: list[CNIError]) -> list[Item]:
    """Reclaim what is dead; what cannot be looked at is a problem.

    Raises CNIError when the runtime does not answer: then nothing is reclaimed.
    """
    early: list[CNIError] = []
    first = _look(options, early)
    if not any(liveness.is_dead for _, liveness in first):
        problems += early
        return [Item(evidence=each, liveness=liveness, action="kept") for each, liveness in first]
    if not options.pause():
        return []
    before = {evidence for evidence, liveness in first if liveness.is_dead}
    second = [
        (evidence, liveness)
        for evidence, liveness in _look(options, problems)
        if not liveness.is_dead or evidence in before
    ]
    return [
        item for network in options.networks for item in _settle(network, second, dry_run=options.dry_run)
    ]


def _look(options: GCOptions, problems: list[CNIError]) -> list[Judged]:
    """Return the attachments that do not seem to live: store and kernel first, then who vouches for them."""
    with open_host() as host:
        found: list[Evidence] = []
        for network in options.networks:
            try:
                if network.has_store and not options.dry_run:
                    host_local.mark_boot(network.main)
                found += read_evidence(network, host)
            except (CNIError, IPAMError) as error:
                problems.append(_about(network, error))
    word = runtime.ask(options.endpoint).about(options.named) if options.endpoint else None
    judged = [(evidence, judge(evidence, word)) for evidence in found]
    return [(evidence, liveness) for evidence, liveness in judged if not liveness.is_alive]


def _about(network: ConfiguredNetwork, error: CNIError | IPAMError) -> CNIError:
    code = error.code if isinstance(error, CNIError) else Code.IO_FAILURE
    return CNIError(code, f"network {network.name}: {error}")


def _settle(network: ConfiguredNetwork, findings: Sequence[Judged], *, dry_run: bool) -> Iterator[Item]:
    own = [(evidence, liveness) for evidence, liveness in findings if evidence.network == network.name]
    dead = [evidence for evidence, liveness in own if liveness.is_dead]
    refusals = {} if dry_run or not dead else _try_to_remove(network, dead)
    for evidence, liveness in own:
        if not liveness.is_dead:
            yield Item(evidence=evidence, liveness=liveness, action="kept")
            continue
        refusal = refusals.get(evidence, "")
        action: Action = "reclaimable" if dry_run else "failed" if refusal else "reclaimed"
        yield Item(evidence=evidence, liveness=liveness, action=action, refusal=refusal)


def _try_to_remove(network: ConfiguredNetwork, dead: Sequence[Evidence]) -> dict[Evidence, str]:
    """Remove what the dead have left; return of whom not all is gone, and why."""
    try:
        _remove(network, dead)
    except CNIError as error:
        if len(dead) == 1:
            return {dead[0]: str(error)}
        # One whose things cannot be removed must not keep the others' addresses.
        return {evidence: why for each in dead for evidence, why in _try_to_remove(network, [each]).items()}
    return {}


def _remove(network: ConfiguredNetwork, dead: Sequence[Evidence]) -> None:
    """Remove what is on the node, then the addresses, as a DEL does; one failure leaves what comes after it.

    What proves the death goes last, elements and addresses: without them nobody would find the rest again.
    """
    with open_host() as host:
        keep = _AllBut(host, frozenset(evidence.identity for evidence in dead if evidence.identity))
        removals: tuple[Callable[[], object], ...] = (
            *(partial(_collect_chained, request, host, keep) for request in network.chained),
            *podwire.collect(network.main, host, keep),
            partial(_give_up, network, [each for evidence in dead for each in evidence.reservations]),
        )
        for removal in removals:
            run_all(removal)


def _give_up(network: ConfiguredNetwork, reservations: list[Reservation]) -> None:
    if reservations:
        host_local.give_up(network.main, reservations)


def _collect_chained(request: Request, host: Namespace, keep: Container[str]) -> None:
    collect_feature(CHAINED[request.config.string("type")](), request, host, keep)


class _AllBut:
    """What is to be kept: every identity but those of the dead that have not come back since."""

    def __init__(self, host: Namespace, dead: Collection[str]) -> None:
        """Look for veths in `host`."""
        self._host = host
        self._dead = dead

    def __contains__(self, identity: object) -> bool:
        """Tell whether something of this identity stays.

        Asked after the thing was listed: an ADD makes its veth first, so without one it is the dead's.
        """
        if identity not in self._dead:
            return True
        return get_link(self._host.netlink, host_ifname(str(identity))) is not None
