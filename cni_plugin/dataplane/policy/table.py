"""The part of the table of policies that changes: groups as chains, sets of peers and of ports. Pure.

A group is a chain of rules, each of which accepts, and a drop at its end. Its name is a digest of what it
says, so that a chain that is there is right. An ipBlock is a plain rule; peers are a set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_plugin.cluster.service_objects import PROTOCOLS
from cni_plugin.dataplane.policy.ruleset import ACCEPT
from cni_plugin.dataplane.policy.ruleset import CLOSED as TOO_LARGE
from cni_plugin.features.policy_rules import ADDRESS, CLOSED, FIRST_RULES, UNSELECTED
from cni_plugin.kernel.nft import FAMILY
from cni_plugin.kernel.nft_layout import POLICY_TABLE
from cni_plugin.kernel.nft_message import MAX_COMMENT
from cni_plugin.kernel.nft_sets import TypedSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cni_plugin.cluster.policy_objects import Block, PolicyPort
    from cni_plugin.dataplane.policy.ruleset import Allowance, Group

_SIDES = {"ingress": "saddr", "egress": "daddr"}
_WORDS = {number: name.lower() for name, number in PROTOCOLS.items()}
GROUP_PREFIX = "g_"
_PORT_BYTES = 8  # of a key, behind the address


def plan_member_sets(name: str) -> list[TypedSet]:
    """Return the sets of both families that a set of peers, or of named ports, is in the kernel."""
    port = ("inet_proto", "inet_service") if name.startswith("named_") else ()
    return [
        TypedSet(family="inet", table=POLICY_TABLE, name=f"{name}{version}", key=(ADDRESS[version], *port))
        for version in FAMILY
    ]


def set_of(name: str, key: bytes) -> str:
    """Return in which family's set a key is."""
    length = len(key) - (_PORT_BYTES if name.startswith("named_") else 0)
    return f"{name}{4 if length == 4 else 6}"


def verdict_of(group: str, other: str) -> str:
    """Return where a pod is led by its group of a direction, and that of the other one."""
    if group == ACCEPT:
        return "accept" if other == ACCEPT else UNSELECTED
    return CLOSED if group == TOO_LARGE else f"goto {group}"


def direction_of(group: str) -> str:
    """Return the direction of a group by its name."""
    return group.split("_")[1]


def render_group(group: Group) -> list[str]:
    """Return the commands that make a group's chain."""
    place = f"inet {POLICY_TABLE} {group.name}"
    lines = [f"add chain {place}", f"flush chain {place}"]
    return lines + [f"add rule {place} {rule}" for rule in _list_rules(group)]


def count_rules(group: Group) -> int:
    """Return how many rules a group's chain has."""
    return len(list(_list_rules(group)))


def delete_chains(names: Iterable[str]) -> list[str]:
    """Return the commands that remove chains that nothing leads to."""
    kept = list(names)
    return [f"{verb} chain inet {POLICY_TABLE} {name}" for verb in ("flush", "delete") for name in kept]


def delete_sets(names: Iterable[str]) -> list[str]:
    """Return the commands that remove sets that no rule names."""
    return [f"delete set inet {POLICY_TABLE} {name}" for name in names]


def _list_rules(group: Group) -> Iterator[str]:
    yield from FIRST_RULES
    side = _SIDES[direction_of(group.name)]
    for allowance in group.allowances:
        for rule in _render_allowance(allowance, side):
            yield f'{rule} accept comment "{_shorten(allowance.policy)}"'
    yield "counter drop"


def _shorten(text: str) -> str:
    return text.encode()[:MAX_COMMENT].decode(errors="ignore")


def _render_allowance(allowance: Allowance, side: str) -> Iterator[str]:
    """Yield a rule for each family that it is about, one where it is about neither."""
    port = _render_port(allowance.port)
    if allowance.block is not None:
        own = allowance.block.cidr.version
        named = _render_named(allowance.named, own)
        yield _join(_render_block(allowance.block, FAMILY[own], side), port, named)
        return
    if not (allowance.peers or allowance.named):
        yield port
        return
    for version, family in FAMILY.items():
        peers = f"{family} {side} @{allowance.peers}{version}" if allowance.peers else ""
        yield _join(peers, port, _render_named(allowance.named, version))


def _join(*parts: str) -> str:
    return " ".join(filter(None, parts))


def _render_block(block: Block, family: str, side: str) -> str:
    """Return the condition of an ipBlock; a prefix of length 0 is the whole family."""
    whole = f"meta nfproto {'ipv4' if family == 'ip' else 'ipv6'}"
    cidr = f"{family} {side} {block.cidr}" if block.cidr.prefixlen else whole
    return _join(cidr, *(f"{family} {side} != {each}" for each in block.excepted))


def _render_port(port: PolicyPort | None) -> str:
    if port is None:
        return ""
    word = _WORDS[port.protocol]
    if not port.first:
        return f"meta l4proto {word}"
    last = f"-{port.last}" if port.last != port.first else ""
    return f"{word} dport {port.first}{last}"


def _render_named(name: str, version: int) -> str:
    return f"{FAMILY[version]} daddr . meta l4proto . th dport @{name}{version}" if name else ""
