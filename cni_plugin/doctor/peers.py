"""Checks the paths to other nodes: do they answer, on the underlay and in the tunnel, at full size.

From one side a blocked tunnel shows by what still works: the peer's address answers, its address
inside does not. Echoes of full size must not be fragmented, so a smaller MTU on the way shows, too.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cni_plugin.contract.errors import CNIError
from cni_plugin.doctor.finding import Finding
from cni_plugin.features.damage import kind_of
from cni_plugin.kernel.forward_verdict import find_closed
from cni_plugin.kernel.netns import open_host
from cni_plugin.kernel.probe import Echo, ask_twice, count_reverse_path_drops, find_largest, smallest
from cni_plugin.plugins import podwire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netaddr import IPAddress

    from cni_plugin.backend.shared_facts import PeerPath
    from cni_plugin.doctor.site import Examined
    from cni_plugin.kernel.netns import Namespace

_PATIENCE: Final = 1.0  # seconds for an answer
_SEARCH: Final = 0.3
_SHOWN: Final = 10  # findings of one kind; the others are counted
_SEARCHED: Final = 3  # peers whose path is measured, a second each


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heard:
    """What was answered, and how many packets rp_filter dropped meanwhile."""

    answered: set[Echo]
    dropped: int

    def small(self, address: IPAddress, source: IPAddress | None = None) -> bool:
        """Tell whether the address answers at all."""
        return self.large(address, smallest(address.version), source)

    def large(self, address: IPAddress, size: int, source: IPAddress | None = None) -> bool:
        """Tell whether it answers a packet of this size."""
        return Echo(address, size, source) in self.answered


def check(site: Examined) -> Iterator[Finding]:
    """Yield what is wrong with the ways of each network."""
    for request in site.configured.ours:
        try:
            survey, _ = podwire.survey(request)
        except CNIError:
            continue
        # What else is undone explains enough; whether a switch drops anything is what is asked here.
        if all(kind_of(command) == "sysctl" for command in survey.undone):
            with open_host() as host:
                yield from _check_ways(site, host, request.network, survey.ways)


def _check_ways(
    site: Examined, host: Namespace, network: str, ways: tuple[PeerPath, ...]
) -> Iterator[Finding]:
    heard = _listen(ways)
    silent: list[Finding] = []
    deaf: list[Finding] = []
    narrow: list[Finding] = []
    for way in ways:
        inside = [address for source, address in way.inner if heard.small(address, source)]
        if not heard.small(way.outer) and not inside:
            silent.append(_silent(way))
        elif len(inside) < len(way.inner):
            deaf.append(_deaf(host, way, heard))
        elif not heard.large(way.outer, way.mtu) and heard.small(way.outer):
            narrow.append(_narrow(site, network, way, search=len(narrow) < _SEARCHED))
        elif not all(heard.large(address, way.inner_mtu, source) for source, address in way.inner):
            narrow.append(_narrow_inside(way))
    for kind in (silent, deaf, narrow):
        yield from _shorten(kind)


def _listen(ways: tuple[PeerPath, ...]) -> _Heard:
    wanted = {echo for way in ways for echo in _echoes(way)}
    before = count_reverse_path_drops()
    answered = ask_twice(wanted, _PATIENCE)
    return _Heard(answered=answered, dropped=count_reverse_path_drops() - before)


def _echoes(way: PeerPath) -> Iterator[Echo]:
    """Yield the packets to ask for: inside from our own address there, as pods' packets are answered."""
    inside = ((address, way.inner_mtu, source) for source, address in way.inner)
    for address, mtu, source in ((way.outer, way.mtu, None), *inside):
        yield Echo(address, smallest(address.version), source)
        yield Echo(address, mtu, source)


def _shorten(found: list[Finding]) -> Iterator[Finding]:
    yield from found[:_SHOWN]
    if len(found) > _SHOWN:
        yield Finding(
            severity=found[0].severity,
            object=f"{len(found) - _SHOWN} more peers",
            found="the same as those before",
            meaning=found[0].meaning,
            remedy=found[0].remedy,
        )


def _silent(way: PeerPath) -> Finding:
    return Finding(
        severity="error" if way.inner else "warning",
        object=f"peer {way.outer}",
        found="it answers no echo, neither itself nor through the tunnel"
        if way.inner
        else "it answers no echo",
        meaning="its pods are not reached: the node is down, its address is another now, or ICMP and "
        "the tunnel are both blocked",
        remedy=f"ip route get {way.outer}; ping -c 3 {way.outer}",
    )


def _deaf(host: Namespace, way: PeerPath, heard: _Heard) -> Finding:
    """Return why a peer that lives is not reached inside the tunnel."""
    closed = find_closed(host.nftables, way.link, way.outer.version, way.port)
    found = f"it answers on {way.link}, and not through {way.device}"
    if closed:
        return Finding(
            severity="error",
            object=closed[0].chain.rstrip(","),
            found=f"it drops UDP port {way.port}; peer {way.outer}: {found}",
            meaning="packets between pods of the two nodes are lost",
            remedy=" && ".join(obstacle.command for obstacle in closed),
        )
    if heard.dropped:
        return Finding(
            severity="error",
            object=f"sysctl net.ipv4.conf.{way.device}.rp_filter",
            found=f"it dropped {heard.dropped} answers; peer {way.outer}: {found}",
            meaning="packets of that node come in by another interface than the way back leads out by",
            remedy=f"sysctl -w net.ipv4.conf.{way.device}.rp_filter=2",
        )
    return Finding(
        severity="error",
        object=f"peer {way.outer}",
        found=found,
        meaning=f"packets between pods of the two nodes are lost: UDP port {way.port} is blocked there or "
        "on the way, rp_filter drops them there, or that node does not know this one",
        remedy=f"on {way.outer}: podwire sync; podwire doctor. Let UDP port {way.port} pass between nodes",
    )


def _narrow(site: Examined, network: str, way: PeerPath, *, search: bool) -> Finding:
    low = smallest(way.outer.version)
    size = find_largest(way.outer, low, way.mtu - 1, _SEARCH) if search else 0
    sync = f"podwire sync{site.options} {shlex.quote(network)}"
    return Finding(
        severity="error",
        object=f"path to {way.outer}",
        found=f"packets of {way.mtu} bytes, which {way.link} sends, do not arrive"
        + (f"; of {size} they do" if search else ""),
        meaning="an interface on the way has a smaller MTU: connections between pods open and hang. Where "
        f'{way.link} must keep its MTU set "mtuOverhead" to the difference in {site.conf_dir}',
        remedy=f"ip link set dev {way.link} mtu {size} && {sync}" if search else sync,
    )


def _narrow_inside(way: PeerPath) -> Finding:
    return Finding(
        severity="error",
        object=f"path to {way.outer} through {way.device}",
        found=f"packets of {way.inner_mtu} bytes do not arrive",
        meaning="the tunnel of that node has a smaller MTU: connections between pods open and hang",
        remedy=f"on {way.outer}: podwire sync; podwire mtu",
    )
