"""The chains of Services whose rules `nft` cannot say: they are packed by hand. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.dataplane.services.plan import VERSIONS
from cni_plugin.kernel.nft_layout import SERVICES_TABLE
from cni_plugin.kernel.nft_rules import PackedRule, pack_chain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_plugin.kernel.nft_message import PackedChange


def name_packed(name: str) -> str:
    """Return the name of a packed chain that others jump to; another content has another name."""
    return f"{name}_{_digest(_PACKED[name]())}"


def _digest(rules: Iterable[PackedRule]) -> str:
    return hashlib.sha256(b"".join(rule.packed for rule in rules)).hexdigest()[:12]


def _load_original(rule: PackedRule) -> None:
    rule.load_original_destination()
    rule.load_protocol()
    rule.load_original_port()


def _plan_original() -> list[PackedRule]:
    """Return the rules that ask for the frontend of a connection which is to be masqueraded."""
    rules = []
    for version in VERSIONS:
        always, node = PackedRule.of(version), PackedRule.of(version)
        node.load_source()
        node.is_member(f"self{version}")
        node.begin_again()
        for rule, name in ((always, "snat"), (node, "out")):
            _load_original(rule)
            rule.is_member(f"{name}{version}")
            rule.go_to(f"source{version}")
        rules += [always, node]
    return rules


def _plan_keep() -> list[PackedRule]:
    """Return the rules that ask for how long a client keeps its endpoint."""
    rules = [PackedRule.of(version) for version in VERSIONS]
    for rule in rules:
        _load_original(rule)
        rule.look_up_verdict(f"keep{rule.version}")
    return rules


_PACKED = {"original": _plan_original, "keep": _plan_keep}
_NUMBERED = frozenset({"pick", "pickin", "sticky", "stickyin", "keep"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedChain:
    """A chain whose rules `nft` cannot say."""

    name: str
    rules: tuple[PackedRule, ...]

    def declare(self) -> list[PackedChange]:
        """Return the changes that make it so, whatever was there."""
        return pack_chain("inet", SERVICES_TABLE, self.name, list(self.rules), self.comment)

    @property
    def comment(self) -> str:
        """Return the comment of every rule, which tells the chain from another of its name."""
        return f"{_digest(self.rules)} Services"


def plan_shared_chains() -> list[PackedChain]:
    """Return the packed chains that the static ones jump to."""
    return [PackedChain(name=name_packed(name), rules=tuple(plan())) for name, plan in _PACKED.items()]


def plan_chain(name: str) -> PackedChain:
    """Return a chain that elements lead to: `pick_3`, `pickin_3`, `sticky_3`, `stickyin_3`, `keep_10800`."""
    kind, _, number = name.partition("_")
    if kind == "keep":
        rules = [_plan_remembering(version, int(number)) for version in VERSIONS]
    elif kind.startswith("sticky"):
        rules = [_plan_recall(version) for version in VERSIONS]
        rules.append(_plan_goto(name.replace("sticky", "pick")))
    else:
        rules = [_plan_pick(version, kind.removeprefix("pick"), int(number)) for version in VERSIONS]
        # A packet between two generations of the ruleset may see more endpoints than there are: the first one
        # is always there.
        rules += [] if number == "1" else [_plan_goto(f"{kind}_1")]
    return PackedChain(name=name, rules=tuple(rules))


def find_packed(name: str) -> PackedChain | None:
    """Return the packed chain of this name; None when it is none of them."""
    kind, _, number = name.partition("_")
    if kind in _NUMBERED and number.isdecimal() and number.isascii():
        return plan_chain(name)
    return next((chain for chain in plan_shared_chains() if chain.name == name), None)


def needed_chains(name: str) -> tuple[str, ...]:
    """Return a chain's name behind those that it leads to."""
    if name.startswith("sticky"):
        return (*needed_chains(name.replace("sticky", "pick")), name)
    kind, _, number = name.partition("_")
    return (f"{kind}_1", name) if kind.startswith("pick") and number != "1" else (name,)


def _plan_goto(chain: str) -> PackedRule:
    rule = PackedRule()
    rule.go_to(chain)
    return rule


def _plan_pick(version: int, which: str, count: int) -> PackedRule:
    rule = PackedRule.of(version)
    rule.load_destination()
    rule.load_protocol()
    rule.load_port()
    rule.load_random(count)
    rule.look_up(f"ep{which}{version}")
    rule.translate()
    return rule


def _plan_recall(version: int) -> PackedRule:
    rule = PackedRule.of(version)
    rule.load_source()
    rule.load_destination()
    rule.load_protocol()
    rule.load_port()
    rule.look_up(f"aff{version}")
    rule.translate()
    return rule


def _plan_remembering(version: int, seconds: int) -> PackedRule:
    rule = PackedRule.of(version)
    rule.load_source()
    _load_original(rule)
    value = rule.register
    rule.load_destination()
    rule.load_port()
    rule.update(f"aff{version}", value, seconds)
    return rule
