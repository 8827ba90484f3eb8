"""Two looks with a grace period between them, and away with what both have found dead and unchanged.

What is reclaimed is named: an attachment that comes while we look is nobody that we know of, and one
that comes back before its turn has its veth again, which is looked for at the last moment. The code
of the verb GC does the removing; it is told to keep everybody but the dead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from cni_plugin.addresses import host_local
from cni_plugin.contract.errors import CNIError, Code, run_all
from cni_plugin.features import CHAINED
from cni_plugin.features.attachment import collect_feature
from cni_plugin.kernel.link import get_link
from cni_plugin.kernel.netns import open_host
from cni_plugin.node import runtime
from cni_plugin.node.leftovers import Trail, follow, host_ifname, list_veths
from cni_plugin.node.liveness import Verdict, judge
from cni_plugin.plugins import podwire
from ipam.errors import IPAMError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterator, Sequence

    from cni_plugin.contract.request import Request
    from cni_plugin.kernel.netns import Namespace
    from cni_plugin.node.configured import ConfiguredNetwork
    from ipam.namespace_mark import Reservation


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
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

    trail: Trail
    verdict: Verdict
    action: Action
    refusal: str = ""
    """Why it could not be removed."""


Finding = tuple[Trail, Verdict]


def reclaim(wish: Wish, problems: list[CNIError]) -> list[Item]:
    """Reclaim what is dead; what cannot be looked at is a problem.

    Raises CNIError when the runtime does not answer: then nothing is reclaimed.
    """
    early: list[CNIError] = []
    first = _look(wish, early)
    if not any(verdict.is_dead for _, verdict in first):
        problems += early
        return [Item(trail=trail, verdict=verdict, action="kept") for trail, verdict in first]
    if not wish.pause():
        return []
    before = {trail for trail, verdict in first if verdict.is_dead}
    second = [
        (trail, verdict) for trail, verdict in _look(wish, problems) if not verdict.is_dead or trail in before
    ]
    return [item for network in wish.networks for item in _settle(network, second, dry_run=wish.dry_run)]


def _look(wish: Wish, problems: list[CNIError]) -> list[Finding]:
    """Return the attachments that do not seem to live: store and kernel first, then who vouches for them."""
    with open_host() as host:
        trails: list[tuple[Trail, bool]] = []
        for network in wish.networks:
            try:
                if network.has_store and not wish.dry_run:
                    host_local.mark_boot(network.main)
                trails += [(trail, network.shared) for trail in follow(network, host)]
            except (CNIError, IPAMError) as error:
                problems.append(_about(network, error))
        word = runtime.ask(wish.endpoint).about(wish.named) if wish.endpoint else None
        veths = list_veths(host)
    judged = [(trail, judge(trail, veths, word, shared=shared)) for trail, shared in trails]
    return [(trail, verdict) for trail, verdict in judged if verdict is not None]


def _about(network: ConfiguredNetwork, error: CNIError | IPAMError) -> CNIError:
    code = error.code if isinstance(error, CNIError) else Code.IO_FAILURE
    return CNIError(code, f"network {network.name}: {error}")


def _settle(network: ConfiguredNetwork, findings: Sequence[Finding], *, dry_run: bool) -> Iterator[Item]:
    own = [(trail, verdict) for trail, verdict in findings if trail.network == network.name]
    dead = [trail for trail, verdict in own if verdict.is_dead]
    refusals = {} if dry_run or not dead else _try_to_remove(network, dead)
    for trail, verdict in own:
        if not verdict.is_dead:
            yield Item(trail=trail, verdict=verdict, action="kept")
            continue
        refusal = refusals.get(trail, "")
        action: Action = "reclaimable" if dry_run else "failed" if refusal else "reclaimed"
        yield Item(trail=trail, verdict=verdict, action=action, refusal=refusal)


def _try_to_remove(network: ConfiguredNetwork, dead: Sequence[Trail]) -> dict[Trail, str]:
    """Remove what the dead have left; return of whom not all is gone, and why."""
    try:
        _remove(network, dead)
    except CNIError as error:
        if len(dead) == 1:
            return {dead[0]: str(error)}
        # One whose trail cannot be removed must not keep the others' addresses.
        return {trail: why for each in dead for trail, why in _try_to_remove(network, [each]).items()}
    return {}


def _remove(network: ConfiguredNetwork, dead: Sequence[Trail]) -> None:
    """Remove what is on the node, then the addresses, as a DEL does; one failure leaves what comes after it.

    What proves the death goes last, elements and addresses: without them nobody would find the rest again.
    """
    with open_host() as host:
        keep = _AllBut(host, frozenset(trail.identity for trail in dead if trail.identity))
        removals: tuple[Callable[[], object], ...] = (
            *(partial(_collect_chained, request, host, keep) for request in network.chained),
            *podwire.collect(network.main, host, keep),
            partial(_give_up, network, [each for trail in dead for each in trail.reservations]),
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
