"""Finds forward chains that are not ours; says which command opens one for pods.

In nftables a packet passes when the chains of all tables let it: nothing of ours opens what a chain
of Docker's, firewalld's or ufw's drops. Whether one does is found in kernel/forward_verdict.py.
By hand: `nft list chains`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.kernel.nft_layout import OWN_TABLES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from cni_plugin.kernel.nfnetlink import ChainHead, Nftables

_FORWARD = 2  # NF_INET_FORWARD
VERSIONS = {"ip": {4}, "ip6": {6}, "inet": {4, 6}}
PROGRAMS = {"ip": "iptables", "ip6": "ip6tables"}
# iptables in nftables, and the table of the example that Debian and others ship.
_WELL_KNOWN = (
    ("ip", "filter", "FORWARD"),
    ("ip6", "filter", "FORWARD"),
    ("inet", "filter", "forward"),
    ("inet", "filter", "FORWARD"),
)
_DOCKER = "DOCKER-USER"
_UFW = ("ufw-user-forward", "ufw6-user-forward")


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """A chain that drops what is forwarded, and the command that opens it for an interface.

    It is not `certain` where rules of the chain ask for something that we do not know.
    """

    chain: str
    interface: str
    command: str
    certain: bool = True

    def __str__(self) -> str:
        """Return it as STATUS says it."""
        return f"{self.chain} drops what is forwarded from and to {self.interface}; open it: {self.command}"


def find_suspects(nftables: Nftables, interface: str, versions: Collection[int]) -> list[Obstacle]:
    """Return the well-known chains whose policy is drop, whatever their rules say.

    It is what an ADD has time for: it costs the same however many chains there are.
    """
    found = [nftables.get_chain(*place) for place in _WELL_KNOWN]
    drops = [head for head in list_foreign(filter(None, found), versions) if head.drops]
    return [describe(head, interface, [head, *_list_beside(nftables, head)]) for head in drops]


def _list_beside(nftables: Nftables, head: ChainHead) -> Iterator[ChainHead]:
    found = (nftables.get_chain(head.family, head.table, name) for name in (_DOCKER, *_UFW))
    return filter(None, found)


def list_foreign(heads: Iterable[ChainHead], versions: Collection[int]) -> Iterator[ChainHead]:
    """Yield the base chains that packets of these families (4, 6) pass and that are not ours."""
    for head in heads:
        concerned = VERSIONS.get(head.family, set()) & set(versions)
        ours = head.family == "inet" and head.table in OWN_TABLES
        if head.hook == _FORWARD and concerned and not ours:
            yield head


def describe(head: ChainHead, interface: str, heads: list[ChainHead]) -> Obstacle:
    """Return the chain as an obstacle, with its command."""
    beside = {h.name for h in heads if (h.family, h.table) == (head.family, head.table)}
    return Obstacle(
        chain=f"table {head.family} {head.table}, chain {head.name},",
        interface=interface,
        command=_open_by(head, interface, beside),
    )


def _open_by(head: ChainHead, interface: str, beside: Collection[str]) -> str:
    """Return the command of the program that made the chain: other changes are lost at its next reload."""
    if head.table == "firewalld":
        wildcard = interface.replace("*", "+")
        return f"firewall-cmd --permanent --zone=trusted --add-interface={wildcard} && firewall-cmd --reload"
    if head.family in PROGRAMS and (head.table, head.name) == ("filter", "FORWARD"):
        return open_iptables(PROGRAMS[head.family], interface, beside)
    place = f"insert rule {head.family} {head.table} {head.name}"
    return " && ".join(f"nft '{place} {way} \"{interface}\" accept'" for way in ("iifname", "oifname"))


def describe_closed(head: ChainHead, interface: str, port: int, beside: Collection[str]) -> Obstacle:
    """Return a chain that drops UDP to a port of this node as an obstacle, with its command."""
    return Obstacle(
        chain=f"table {head.family} {head.table}, chain {head.name},",
        interface=interface,
        command=_open_port(head, port, beside),
    )


def _open_port(head: ChainHead, port: int, beside: Collection[str]) -> str:
    if head.table == "firewalld":
        return f"firewall-cmd --permanent --add-port={port}/udp && firewall-cmd --reload"
    if head.family in PROGRAMS and head.table == "filter" and head.name.isupper():
        if any(name.startswith("ufw") for name in beside):
            return f"ufw allow {port}/udp"
        return f"{PROGRAMS[head.family]} -I {head.name} -p udp --dport {port} -j ACCEPT"
    return f"nft 'insert rule {head.family} {head.table} {head.name} udp dport {port} accept'"


def open_iptables(program: str, interface: str, beside: Collection[str]) -> str:
    """Return the command for FORWARD of the filter table, where `beside` are its chains."""
    wildcard = interface.replace("*", "+")
    if any(name in beside for name in _UFW):
        return f"ufw route allow in on {wildcard} && ufw route allow out on {wildcard}"
    place = f"{program} -I {_DOCKER if _DOCKER in beside else 'FORWARD'}"
    return f"{place} -i {wildcard} -j ACCEPT && {place} -o {wildcard} -j ACCEPT"
