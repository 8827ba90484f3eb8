"""Whether chains of other tables would drop what the node forwards for its pods.

Their rules are walked with two packets: one that a pod sends, and one that answers it. The old
iptables, which nftables does not show, is read by its own program where that is installed.
By hand: `nft list table ip filter`, `iptables-legacy -S`.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.kernel.chain_walk import Packet, RuleOutcome, decide
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.foreign_chains import (
    PROGRAMS,
    VERSIONS,
    Obstacle,
    describe,
    describe_closed,
    list_foreign,
    open_iptables,
)
from cni_plugin.kernel.iptables import legacy_in_use, list_legacy_rules
from cni_plugin.kernel.nft import require_nft
from cni_plugin.kernel.nft_layout import OWN_TABLES
from ipam.seam import step

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from netaddr import IPNetwork

    from cni_plugin.kernel.chain_walk import Rules
    from cni_plugin.kernel.nfnetlink import Nftables


_INPUT, _OUTPUT = 1, 3  # NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarded:
    """What the node forwards for a network's pods.

    That is the interface they are behind (`veth*` for all such), their families (4, 6), and their networks,
    as far as they are known.
    """

    interface: str
    versions: Collection[int]
    networks: Collection[IPNetwork] = ()

    def packets(self, family: str) -> Iterator[tuple[Packet, Packet]]:
        """Yield what a pod sends and what answers it, in the families that a table of nftables sees."""
        for version in sorted(VERSIONS[family] & set(self.versions)):
            networks: list[IPNetwork | None] = [each for each in self.networks if each.version == version]
            for network in networks or [None]:
                leaving = Packet(iifname=self.interface, oifname=None, state="new", saddr=network)
                answer = Packet(iifname=None, oifname=self.interface, state="established", daddr=network)
                yield leaving, answer


def find_obstacles(nftables: Nftables, forwarded: Forwarded) -> list[Obstacle]:
    """Return the chains that would drop packets of pods, and those of which nobody can say it."""
    heads = nftables.list_chains()
    foreign = list(list_foreign(heads, forwarded.versions))
    tables = {(head.family, head.table) for head in foreign}
    rules = {table: _read_rules(*table) for table in sorted(tables)}
    fates = [
        _fate(rules[head.family, head.table], head.name, forwarded, head.family, drops=head.drops)
        for head in foreign
    ]
    found = [
        replace(describe(head, forwarded.interface, heads), certain=fate == "drop")
        for head, fate in zip(foreign, fates, strict=True)
        if fate != "accept"
    ]
    return [*found, *_find_legacy(forwarded)]


def find_closed(nftables: Nftables, interface: str, version: int, port: int) -> list[Obstacle]:
    """Return the chains of this node that would drop UDP to a port, in or out by an interface."""
    packets = {
        _INPUT: Packet(iifname=interface, oifname=None, state="new", port=port),
        _OUTPUT: Packet(iifname=None, oifname=interface, state="new", port=port),
    }
    heads = [
        head
        for head in nftables.list_chains()
        if head.hook in packets and version in VERSIONS.get(head.family, ()) and head.table not in OWN_TABLES
    ]
    found = []
    for head in heads:
        rules = _read_rules(head.family, head.table)
        if decide(rules, head.name, packets[head.hook or 0], drops=head.drops) == "drop":
            found.append(describe_closed(head, interface, port, [h.name for h in heads]))
    return found


def _read_rules(family: str, table: str) -> Rules:
    """Return the rules of a table by chain, as `nft -j` has them; none when it has gone meanwhile."""
    argv = [require_nft(), "-j", "list", "table", family, table]
    run = partial(subprocess.run, capture_output=True, text=True, check=False)
    try:
        done = step("program", run, argv)
    except OSError as error:
        raise KernelError(" ".join(argv), error.errno or 0, "it cannot be started") from error
    rules: Rules = {}
    for member in json.loads(done.stdout)["nftables"] if done.returncode == 0 else ():
        if rule := member.get("rule"):
            rules.setdefault(rule["chain"], []).append(rule["expr"])
    return rules


def _fate(rules: Rules, chain: str, forwarded: Forwarded, family: str, *, drops: bool) -> RuleOutcome:
    """Return the worst that becomes of the packets of pods in a chain."""
    fates = {
        decide(rules, chain, packet, drops=drops) for pair in forwarded.packets(family) for packet in pair
    }
    return "drop" if "drop" in fates else "unknown" if "unknown" in fates else "accept"


def _find_legacy(forwarded: Forwarded) -> Iterator[Obstacle]:
    """Yield what the tables of the old iptables drop, which nftables does not show."""
    for family, program in PROGRAMS.items():
        if not VERSIONS[family] & set(forwarded.versions) or not legacy_in_use(program):
            continue
        rules, policy = list_legacy_rules(f"{program}-legacy")
        fate = _fate(rules, "FORWARD", forwarded, family, drops=policy == "DROP")
        if fate != "accept":
            yield Obstacle(
                chain=f"{program}-legacy table filter, chain FORWARD,",
                interface=forwarded.interface,
                command=open_iptables(f"{program}-legacy", forwarded.interface, rules),
                certain=fate == "drop",
            )
