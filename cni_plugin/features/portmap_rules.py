"""The nftables chains of host ports, shared by all attachments with the same options.

Whatever arrives for one of the node's own addresses is looked up in two maps per family, one keyed
by the address too. What would come back past the node is masqueraded on its way to the pod: from the
pod to itself, from 127.0.0.1, and from its neighbours on a bridge. Nothing for ::1 is translated, since
the kernel lets nothing from ::1 leave the node: it is refused at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.kernel.nft import FAMILY, Chain, Ruleset, hooked, scope_of
from cni_plugin.kernel.nft_layout import (
    HOSTPORT_GUARD,
    HOSTPORT_MARK,
    HOSTPORT_OUTPUT,
    HOSTPORT_POSTROUTING,
    HOSTPORT_PREROUTING,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_ALL_BITS = 0xFFFFFFFF
GUARD = Ruleset(
    family="inet",
    title="portmap: nothing from outside is for 127.0.0.0/8, whatever route_localnet says",
    chains=(hooked(HOSTPORT_GUARD, ('iifname != "lo" ip daddr 127.0.0.0/8 drop',)),),
)
"""CVE-2020-8558: route_localnet lets the neighbours on that link reach what listens on 127.0.0.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """How an attachment's host ports are translated.

    `mark` is a mask of one bit, 0 for none. `segment` is the interface behind which the pod and its
    neighbours are; empty when it has a link of its own.
    """

    snat: bool
    """Masquerade what would come back past the node; without it `masq_all` and `mark` say nothing."""
    masq_all: bool
    mark: int
    conditions: tuple[tuple[int, str], ...]
    """By family, in the words of nft; empty ones too."""
    segment: str = ""

    @property
    def scope(self) -> str:
        """Return what the names of its chains and sets end with."""
        return scope_of(repr(self))


def plan_ruleset(treatment: Treatment) -> Ruleset:
    """Return the chains, maps and sets of all attachments that are treated so."""
    scope = treatment.scope
    translate = (f"fib daddr type local jump hostport_{scope}",)
    chains = [
        Chain(name=f"hostport_{scope}", rules=tuple(_translate(treatment))),
        hooked(HOSTPORT_PREROUTING, translate, scope),
        hooked(HOSTPORT_OUTPUT, translate, scope),
    ]
    if rules := tuple(_masquerade(treatment)):
        chains.append(hooked(HOSTPORT_POSTROUTING, rules, scope))
    return Ruleset(
        family="inet",
        title=f"portmap {treatment.segment}".rstrip(),
        chains=tuple(chains),
        sets=tuple(declared for version in (4, 6) for declared in _declare(version, scope)),
    )


def _declare(version: int, scope: str) -> Iterator[tuple[str, str]]:
    # Not by typeof: nft 1.0.6 then refuses the rules that look up a map which is there already.
    address, service = f"ipv{version}_addr", "inet_proto . inet_service"
    yield f"map hostport{version}_{scope}", f"type {service} : {address} . inet_service;"
    yield f"map hostport{version}at_{scope}", f"type {address} . {service} : {address} . inet_service;"
    yield f"set hostport_pods{version}_{scope}", f"typeof {FAMILY[version]} saddr . {FAMILY[version]} daddr;"


def _translate(treatment: Treatment) -> Iterator[str]:
    """Yield the rules of both families; a port of one address goes before a port of all addresses.

    What they translate bears a mark: behind them it tells a host port's connection from one to the same
    pod that somebody else has translated, a Service, whose port may well have the same number.
    """
    service = "meta l4proto . th dport"
    yield f"meta mark set meta mark or {HOSTPORT_MARK:#x}"
    for version, condition in treatment.conditions:
        family, name = FAMILY[version], f"@hostport{version}"
        start = f"{_eligible(version, treatment)} {condition}".rstrip()
        yield f"{start} dnat {family} to {family} daddr . {service} map {name}at_{treatment.scope}"
        yield f"{start} dnat {family} to {service} map {name}_{treatment.scope}"
    yield f"meta mark set meta mark and {~HOSTPORT_MARK & _ALL_BITS:#x}"


def _eligible(version: int, treatment: Treatment) -> str:
    """Return what must be true of every packet: what cannot be answered is not translated."""
    if version == 6:
        return "ip6 daddr != ::1"
    return "meta nfproto ipv4" if treatment.snat else "ip daddr != 127.0.0.0/8"


def _masquerade(treatment: Treatment) -> Iterator[str]:
    mark = f"{treatment.mark:#x}"
    verdict = f"meta mark set meta mark or {mark} masquerade" if treatment.mark else "masquerade"
    for version in (4, 6) if treatment.snat else ():
        family, pods = FAMILY[version], f"@hostport_pods{version}_{treatment.scope}"
        to_pod = f"ct status dnat {family} daddr . {family} daddr {pods}"
        published = f"meta mark & {HOSTPORT_MARK:#x} == {HOSTPORT_MARK:#x} {to_pod}"
        if treatment.mark:
            yield f"{to_pod} meta mark and {mark} == {mark} masquerade"
        if treatment.masq_all:
            yield f"{published} {verdict}"
            continue
        yield f"ct status dnat {family} saddr . {family} daddr {pods} {verdict}"
        if version == 4:
            yield f"{to_pod} ip saddr 127.0.0.0/8 {verdict}"
        if treatment.segment:
            yield f'{published} iifname "{treatment.segment}" {verdict}'
