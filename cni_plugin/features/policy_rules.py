"""The static part of the table of policies: hooks, maps, and what holds for any other address.

An address of the pods' own networks that a map does not have is closed: so is a new pod's from the moment
at which it could first send, and every pod's after a reboot until somebody has computed its policies. What
a pod has is an element in each of two maps, which leads to the chain of its group; what belongs to no pod
of this node passes. By hand: `nft list table inet podwire_policy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.features.policy import DIRECTIONS
from cni_plugin.kernel.nft import (
    FAMILY,
    Chain,
    Ruleset,
    ensure_ruleset,
    find_difference,
    hooked,
    scope_of,
)
from cni_plugin.kernel.nft_layout import POLICY_EGRESS, POLICY_INGRESS, POLICY_TABLE
from cni_plugin.kernel.nft_sets import TypedSet, declare_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from netaddr import IPNetwork

    from cni_plugin.kernel.nfnetlink import Nftables

ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}
CLOSED, UNSELECTED = "goto closed", "goto unselected"
_KNOWN = "ct state established,related accept"
# Whose connection was ended, by a policy or by a change of the address's owner: it is told so at once.
_LATE = "meta l4proto tcp ct state new tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset"
_INVALID = "ct state invalid drop"
FIRST_RULES = (_LATE, _INVALID)  # of every group


def plan_policy_sets() -> list[TypedSet]:
    """Return the maps of pods' addresses, and the pairs by which a pod may speak with itself."""
    found = []
    for version in FAMILY:
        address = (ADDRESS[version],)
        for direction in DIRECTIONS:
            name = f"{direction}{version}"
            found.append(
                TypedSet(family="inet", table=POLICY_TABLE, name=name, key=address, data=("verdict",))
            )
        found.append(
            TypedSet(family="inet", table=POLICY_TABLE, name=f"self{version}", key=(*address, *address))
        )
    return found


def plan_dead_ends() -> Ruleset:
    """Return the chains of pods without a group: nothing may pass, or nothing that was ended."""
    return Ruleset(
        family="inet",
        table=POLICY_TABLE,
        title="pods without a group",
        chains=(
            Chain(name="pending", rules=("counter drop",)),
            Chain(name="closed", rules=("counter drop",)),
            # What a pod may do freely that the other direction's policies select: what was ended there must
            # not begin anew with an answer.
            Chain(name="unselected", rules=(_LATE, "accept")),
        ),
    )


def ensure_maps(nftables: Nftables) -> int:
    """Make the maps of pods' addresses, and where they lead at first; return the number of changes."""
    ruleset = plan_dead_ends()
    if find_difference(nftables, ruleset) is None:
        return 0
    sets = [each.declare() for each in plan_policy_sets()]
    nftables.apply([declare_table("inet", POLICY_TABLE), *sets])
    return int(ensure_ruleset(nftables, ruleset))


def plan_policy_ruleset(network: str, ranges: Iterable[IPNetwork]) -> Ruleset:
    """Return the chains that judge the pods of a network."""
    subnets = tuple(ranges)
    scope = scope_of(network)
    return Ruleset(
        family="inet",
        table=POLICY_TABLE,
        title=f"policies of {network}",
        chains=(
            hooked(POLICY_EGRESS, _plan_rules("egress", "saddr", subnets), scope),
            hooked(POLICY_INGRESS, _plan_rules("ingress", "daddr", subnets), scope),
        ),
    )


def _plan_rules(direction: str, side: str, subnets: tuple[IPNetwork, ...]) -> Iterator[str]:
    yield _KNOWN
    for version, family in FAMILY.items():
        # A Service may lead a pod to itself.
        yield f"{family} saddr . {family} daddr @self{version} accept"
        yield f"{family} {side} vmap @{direction}{version}"
    for subnet in subnets:
        yield f"{FAMILY[subnet.version]} {side} {subnet.cidr} counter drop"
