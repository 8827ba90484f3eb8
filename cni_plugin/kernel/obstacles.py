"""Whether the chains of other tables would drop what the node forwards for its pods.

Their rules are walked with two packets: one that a pod sends, and one that answers it. The old
iptables, which nftables does not show, is read by its own program where that is installed.
By hand: `nft list table ip filter`, `iptables-legacy -S`.
"""

from __future__ import annotations

import json
import subprocess
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.forward import (
    PROGRAMS,
    VERSIONS,
    Obstacle,
    describe,
    describe_closed,
    list_foreign,
    open_iptables,
)
from cni_plugin.kernel.iptables import legacy_in_use, list_legacy_rules
from cni_plugin.kernel.nfnetlink import TABLE
from cni_plugin.kernel.nft import require_nft
from cni_plugin.kernel.walk import Packet, walk
from ipam.seam import step

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cni_plugin.kernel.nfnetlink import Nftables
    from cni_plugin.kernel.walk import Rules


_INPUT, _OUTPUT = 1, 3  # NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT


def find_obstacles(nftables: Nftables, interface: str, versions: Collection[int]) -> list[Obstacle]:
    """Return the chains that would drop packets of pods behind an interface (`veth*` for all such)."""
    heads = nftables.list_chains()
    tables = {(head.family, head.table) for head in list_foreign(heads, versions)}
    rules = {table: _read_rules(*table) for table in sorted(tables)}
    found = [
        describe(head, interface, heads)
        for head in list_foreign(heads, versions)
        if _drops(rules[head.family, head.table], head.name, interface, drops=head.drops)
    ]
    return [*found, *_find_legacy(interface, versions)]


def find_closed(nftables: Nftables, interface: str, version: int, port: int) -> list[Obstacle]:
    """Return the chains of this node that would drop UDP to a port, in or out by an interface."""
    packets = {
        _INPUT: Packet(iifname=interface, oifname=None, state="new", port=port),
        _OUTPUT: Packet(iifname=None, oifname=interface, state="new", port=port),
    }
    heads = [
        head
        for head in nftables.list_chains()
        if head.hook in packets and version in VERSIONS.get(head.family, ()) and head.table != TABLE
    ]
    found = []
    for head in heads:
        rules = _read_rules(head.family, head.table)
        verdict = walk(rules, head.name, packets[head.hook or 0]) or ("drop" if head.drops else "accept")
        if verdict == "drop":
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


def _drops(rules: Rules, chain: str, interface: str, *, drops: bool) -> bool:
    leaving = Packet(iifname=interface, oifname=None, state="new")
    answering = Packet(iifname=None, oifname=interface, state="established")
    verdicts = [
        walk(rules, chain, packet) or ("drop" if drops else "accept") for packet in (leaving, answering)
    ]
    return "drop" in verdicts


def _find_legacy(interface: str, versions: Collection[int]) -> Iterator[Obstacle]:
    """Yield what the tables of the old iptables drop, which nftables does not show."""
    for family, program in PROGRAMS.items():
        if not VERSIONS[family] & set(versions) or not legacy_in_use(program):
            continue
        rules, policy = list_legacy_rules(f"{program}-legacy")
        if _drops(rules, "FORWARD", interface, drops=policy == "DROP"):
            yield Obstacle(
                chain=f"{program}-legacy table filter, chain FORWARD,",
                interface=interface,
                command=open_iptables(f"{program}-legacy", interface, rules),
            )
