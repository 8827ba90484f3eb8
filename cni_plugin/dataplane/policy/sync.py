"""Makes the kernel's table of policies hold what the model says, by the smallest change.

Sets and chains are there before a pod is led to them, and go after it has left. A pod's own element is its
ADD's: it is led elsewhere only after reading, in the same generation of the ruleset, that it is still that
attachment's. At the start the table is read and compared: nothing is flushed, and nobody is open meanwhile.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import CNIError
from cni_plugin.dataplane.policy.ruleset import CLOSED as TOO_LARGE
from cni_plugin.dataplane.policy.table import (
    GROUP_PREFIX,
    count_rules,
    delete_chains,
    delete_sets,
    plan_member_sets,
    render_group,
    set_of,
    verdict_of,
)
from cni_plugin.features.elements import identity_of
from cni_plugin.features.policy import DIRECTIONS, PENDING
from cni_plugin.features.policy_rules import ensure_maps
from cni_plugin.kernel.nft import FAMILY, run_nft
from cni_plugin.kernel.nft_layout import POLICY_TABLE
from cni_plugin.kernel.nft_message import Element, ElementChange, pack_pairs
from cni_plugin.kernel.nft_sets import declare_table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from cni_plugin.dataplane.policy.ruleset import Binding, Group, PolicyRules
    from cni_plugin.kernel.nfnetlink import Nftables
    from cni_plugin.kernel.nft_message import PackedChange, Value

log = logging.getLogger("podwire")

_AT_ONCE = 32  # addresses, whose elements are read in one generation
_LARGEST = 10_000  # elements of a batch


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySync:
    """What one sync has done: changes of any kind, and the addresses to which something is denied now."""

    changes: int = 0
    deprived: frozenset[bytes] = frozenset()


@dataclass
class PolicyTable:
    """The table, and what is known of it."""

    is_doubtful: bool = True
    """What is known of the table may be wrong: it has to be read."""
    refused: dict[str, str] = field(default_factory=dict)
    """Groups that the kernel refused, and why: their pods are closed."""
    _sets: set[str] = field(default_factory=set)
    _groups: set[str] = field(default_factory=set)
    _bound: dict[bytes, Binding] = field(default_factory=dict)

    def sync(
        self,
        nftables: Nftables,
        rules: PolicyRules,
        adopted: Mapping[bytes, str],
        renewed: Callable[[Collection[bytes]], object] = lambda _: None,
    ) -> PolicySync:
        """Make the table hold the rules; `renewed` is called with addresses of new pods before they are open.

        `adopted` are the addresses, with the comment of their elements, of pods that live here and may have
        no element: they were made before policies were.
        """
        touched = rules.take_touched()
        changes = 0
        # Whatever fails below leaves it so: what was touched is not known to the next sync.
        doubtful, self.is_doubtful = self.is_doubtful, True
        if doubtful:
            changes += self._read(nftables, rules)
            touched = {}
        # What went while nobody looked may be what an open connection was allowed by.
        deprived = frozenset(rules.bindings) if doubtful else self._find_deprived(rules, touched)
        changes += self._sync_sets(nftables, rules, touched)
        changes += self._sync_groups(rules)
        if pending := self._find_pending(nftables, rules):
            renewed(pending)
        changes += self._bind(nftables, rules, adopted)
        changes += self._drop_unused(rules)
        self.is_doubtful = False
        return PolicySync(changes=changes, deprived=deprived)

    def _read(self, nftables: Nftables, rules: PolicyRules) -> int:
        """Compare what there is; what differs is made so, and what is not known of is left for later."""
        ensure_maps(nftables)
        names = nftables.list_chain_names("inet", table=POLICY_TABLE)
        present = set(names)
        self._bound = _read_bound(nftables, rules)
        self._groups = {name for name in present if name.startswith(GROUP_PREFIX)}
        for name in self._groups & rules.groups.keys():
            rules_there = nftables.list_comments("inet", name, table=POLICY_TABLE)
            if len(rules_there) != count_rules(rules.groups[name]):
                self._groups.discard(name)
        sets = set(nftables.list_sets("inet", table=POLICY_TABLE))
        members = {name[:-1] for name in sets if name.startswith(("peers_", "named_"))}
        self._sets = {name for name in members if {f"{name}{v}" for v in FAMILY} <= sets}
        changes = 0
        for name in self._sets & rules.members.keys():
            changes += self._compare_set(nftables, name, set(rules.members[name]))
        return changes

    @staticmethod
    def _compare_set(nftables: Nftables, name: str, wanted: set[bytes]) -> int:
        found: set[bytes] = set()
        for version in FAMILY:
            found |= nftables.list_pairs("inet", f"{name}{version}", table=POLICY_TABLE).keys()
        _change_members(nftables, name, found - wanted, present=False)
        _change_members(nftables, name, wanted - found, present=True)
        return len(found ^ wanted)

    def _find_deprived(self, rules: PolicyRules, touched: Mapping[str, set[bytes]]) -> frozenset[bytes]:
        """Return the pods' addresses to which, or from which, something may be denied that was allowed."""
        less = {name for name, keys in touched.items() if keys - rules.members.get(name, {}).keys()}
        groups = {
            group.name
            for group in rules.groups.values()
            if any(a.peers in less or a.named in less for a in group.allowances)
        }
        return frozenset(
            address
            for address, binding in rules.bindings.items()
            if self._bound.get(address) != binding or {binding.ingress, binding.egress} & groups
        )

    def _sync_sets(self, nftables: Nftables, rules: PolicyRules, touched: Mapping[str, set[bytes]]) -> int:
        changes = 0
        new = rules.members.keys() - self._sets
        declared = [each.declare() for name in new for each in plan_member_sets(name)]
        if declared:
            nftables.apply([declare_table("inet", POLICY_TABLE), *declared])
        for name, members in rules.members.items():
            keys = set(members) if name in new else touched.get(name, set())
            _change_members(nftables, name, keys & members.keys(), present=True)
            if name not in new:
                # One that is not there is no error to who adds, and none can be deleted that is not there.
                self._delete_present(nftables, name, keys - members.keys())
            changes += len(keys)
        self._sets |= new
        return changes

    @staticmethod
    def _delete_present(nftables: Nftables, name: str, keys: set[bytes]) -> None:
        """Delete keys that may have come and gone before anybody looked."""
        there = {
            key
            for key in keys
            if nftables.get("inet", set_of(name, key), key, table=POLICY_TABLE) is not None
        }
        _change_members(nftables, name, there, present=False)

    def _sync_groups(self, rules: PolicyRules) -> int:
        """Make the chains of new groups; one that is refused closes its pods and keeps no other back."""
        self.refused = {name: why for name, why in self.refused.items() if name in rules.groups}
        missing = rules.groups.keys() - self._groups - self.refused.keys()
        new = [rules.groups[name] for name in sorted(missing)]
        try:
            _make_groups(new)
            made = new
        except CNIError:
            made = [group for group in new if self._try_group(group)]
        self._groups |= {group.name for group in made}
        return len(made)

    def _try_group(self, group: Group) -> bool:
        try:
            _make_groups([group])
        except CNIError as error:
            self.refused[group.name] = f"policies {' '.join(group.policies)}: {error.msg}"
            return False
        return True

    def _bind(self, nftables: Nftables, rules: PolicyRules, adopted: Mapping[bytes, str]) -> int:
        """Lead the pods' addresses to their groups."""
        changed = [
            address for address, binding in rules.bindings.items() if self._bound.get(address) != binding
        ]
        count = 0
        for start in range(0, len(changed), _AT_ONCE):
            some = {a: self._close_refused(rules.bindings[a]) for a in changed[start : start + _AT_ONCE]}
            count += len(nftables.update(lambda some=some: list(_decide(nftables, some, adopted))))  # type: ignore[misc]
        self._bound = dict(rules.bindings)
        return count

    def _close_refused(self, binding: Binding) -> Binding:
        """Return the binding without groups that the kernel refused: their pods are closed."""
        ingress, egress = (
            TOO_LARGE if name in self.refused else name for name in (binding.ingress, binding.egress)
        )
        return replace(binding, ingress=ingress, egress=egress)

    def _find_pending(self, nftables: Nftables, rules: PolicyRules) -> list[bytes]:
        """Return the addresses that will be led from pending to their groups."""
        found = []
        for address, binding in rules.bindings.items():
            if self._bound.get(address) != binding:
                name = f"{DIRECTIONS[0]}{4 if len(address) == 4 else 6}"
                element = nftables.get("inet", name, address, table=POLICY_TABLE)
                if element is not None and element.verdict == PENDING:
                    found.append(address)
        return found

    def _drop_unused(self, rules: PolicyRules) -> int:
        """Remove the groups that nobody is in, then the sets that no group names."""
        groups = self._groups - rules.groups.keys()
        sets = self._sets - rules.members.keys()
        if not (groups or sets):
            return 0
        names = [f"{name}{version}" for name in sorted(sets) for version in FAMILY]
        try:
            run_nft([*delete_chains(sorted(groups)), *delete_sets(names)])
        except CNIError as error:
            # The element of a pod whose DEL failed still leads there: they go with it, and harm nobody.
            log.debug("%s", error)
            return 0
        self._groups -= groups
        self._sets -= sets
        return len(groups) + len(sets)


def _make_groups(groups: Iterable[Group]) -> None:
    if lines := [line for group in groups for line in render_group(group)]:
        run_nft(lines)


def _read_bound(nftables: Nftables, rules: PolicyRules) -> dict[bytes, Binding]:
    """Return the bindings that the kernel has already."""
    held: dict[tuple[str, bytes], tuple[str, str]] = {}
    for direction in DIRECTIONS:
        for version in FAMILY:
            found = nftables.list_pairs("inet", f"{direction}{version}", table=POLICY_TABLE)
            for key, value in found.items():
                if isinstance(value, tuple):
                    held[direction, key] = (value[0], value[1].partition(" ")[0])
    return {
        address: binding
        for address, binding in rules.bindings.items()
        if held.get(("egress", address)) == (verdict_of(binding.egress, binding.ingress), binding.identity)
        and held.get(("ingress", address)) == (verdict_of(binding.ingress, binding.egress), binding.identity)
    }


def _decide(
    nftables: Nftables, bindings: Mapping[bytes, Binding], adopted: Mapping[bytes, str]
) -> Iterator[ElementChange]:
    """Yield the changes that lead addresses to their groups, each only while it is that attachment's."""
    for address, binding in bindings.items():
        version = 4 if len(address) == 4 else 6
        for direction in DIRECTIONS:
            groups = (binding.ingress, binding.egress)
            wanted = Element(
                family="inet",
                table=POLICY_TABLE,
                set_name=f"{direction}{version}",
                key=address,
                verdict=verdict_of(*(groups if direction == "ingress" else reversed(groups))),
                comment=adopted.get(address, ""),
            )
            yield from _replace(nftables, wanted, binding.identity)
        pair = Element(
            family="inet",
            table=POLICY_TABLE,
            set_name=f"self{version}",
            key=address * 2,
            comment=adopted.get(address, ""),
        )
        yield from _replace(nftables, pair, binding.identity)


def _replace(nftables: Nftables, wanted: Element, identity: str) -> Iterator[ElementChange]:
    found = nftables.get("inet", wanted.set_name, wanted.key, table=POLICY_TABLE)
    if found is None:
        if identity_of(wanted) == identity:
            yield ElementChange(wanted, present=True)
        return
    if identity_of(found) != identity or found.verdict == wanted.verdict:
        return
    yield ElementChange(found, present=False)
    yield ElementChange(replace(wanted, comment=found.comment), present=True)


def _change_members(nftables: Nftables, name: str, keys: Iterable[bytes], *, present: bool) -> None:
    pairs: dict[str, list[tuple[bytes, Value]]] = {}
    for key in keys:
        pairs.setdefault(set_of(name, key), []).append((key, None))
    for where, some in pairs.items():
        place = Element(family="inet", table=POLICY_TABLE, set_name=where, key=b"")
        for start in range(0, len(some), _LARGEST):
            changes: list[PackedChange] = list(
                pack_pairs(place, some[start : start + _LARGEST], present=present)
            )
            nftables.apply(changes)


def switch_policy_off(nftables: Nftables) -> bool:
    """Remove the table with everything in it; tell whether there was one."""
    present = bool(nftables.list_chain_names("inet", table=POLICY_TABLE))
    if present:
        run_nft([f"delete table inet {POLICY_TABLE}"])
    return present
