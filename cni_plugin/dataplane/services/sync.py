"""Makes the kernel's table of Services hold what the plans say, by the smallest change.

Who syncs is the only writer of the table. It remembers what the kernel holds, so that a change costs what
it changes; at its start, and when it has reason to doubt, it reads the table and changes only what differs:
nothing is ever flushed. A batch is taken by the kernel whole or not at all. One that is refused is split
until the frontend is found that the kernel refuses, which is left as it was, and named.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cni_plugin.dataplane.services.contents import GLOBAL, arrange, read_table
from cni_plugin.dataplane.services.packed_chains import (
    find_packed,
    needed_chains,
    plan_chain,
    plan_shared_chains,
)
from cni_plugin.dataplane.services.plan import VERSIONS
from cni_plugin.dataplane.services.table import (
    name_ranges,
    plan_ranges,
    plan_ruleset,
    plan_sets,
    render_frontend,
    render_globals,
    render_shared,
)
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.nft import ensure_ruleset, find_difference, run_nft
from cni_plugin.kernel.nft_layout import SERVICE_RANGES_OUTPUT, SERVICE_RANGES_PREROUTING, SERVICES_TABLE
from cni_plugin.kernel.nft_message import Element, pack_pairs
from cni_plugin.kernel.nft_rules import pack_chain
from cni_plugin.kernel.nft_sets import declare_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from netaddr import IPNetwork

    from cni_plugin.dataplane.services.packed_chains import PackedChain
    from cni_plugin.dataplane.services.plan import Frontend, FrontendPlan, Surroundings
    from cni_plugin.dataplane.services.table import Elements
    from cni_plugin.kernel.nfnetlink import Nftables
    from cni_plugin.kernel.nft_message import PackedChange, Value

_LARGEST = 2000  # elements of a batch: a call that reads and decides meanwhile waits for no more
_READY = tuple(range(1, 17))  # how many endpoints the chains are there for from the start


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    """What one sync has done: how many elements it changed, of which frontends."""

    elements: int = 0
    frontends: tuple[Frontend, ...] = ()


@dataclass(slots=True)
class _Step:
    """A frontend on its way from the elements it has to those of its plan."""

    frontend: Frontend
    before: Elements
    plan: FrontendPlan | None
    after: Elements
    former: FrontendPlan | None = None
    shared: Counter[tuple[str, bytes]] = field(default_factory=Counter)
    """How many more times, or fewer, elements are needed that others may need, too."""

    @property
    def gone(self) -> list[tuple[str, bytes]]:
        """Return what is to be deleted: an element of a map whose value differs goes first."""
        return [place for place, value in self.before.items() if self.after.get(place, _NOTHING) != value]

    @property
    def new(self) -> Elements:
        """Return what is to be added."""
        before = self.before
        return {place: value for place, value in self.after.items() if before.get(place, _NOTHING) != value}


_BASE_RANGES = {each.name() for each in (SERVICE_RANGES_PREROUTING, SERVICE_RANGES_OUTPUT)}
_NOTHING = ("", "nothing")  # no value of a set or map


@dataclass
class ServicesTable:
    """The table, and what is known of it."""

    problems: dict[Frontend, str] = field(default_factory=dict)
    """Frontends that the kernel refused, and its words."""
    held: dict[Frontend, FrontendPlan] = field(default_factory=dict)
    """What the kernel holds; endpoints in the order that they have there."""
    is_doubtful: bool = True
    """What is known of the table may be wrong: it has to be read."""
    _around: Surroundings | None = None
    _globals: Elements = field(default_factory=dict)
    _shared: Counter[tuple[str, bytes]] = field(default_factory=Counter)
    _chains: set[str] = field(default_factory=set)

    def sync(self, nftables: Nftables, plans: Mapping[Frontend, FrontendPlan], around: Surroundings) -> Sync:
        """Read the table and make it hold all these plans and nothing else."""
        self._ensure_static(nftables, around, plans.values())
        found = read_table(nftables)
        self.held, self._shared, self.problems = {}, Counter(), {}
        steps = []
        for frontend in plans.keys() | found.own.keys():
            before = found.own.get(frontend, {})
            plan = plans.get(frontend)
            arranged = plan and arrange(plan, *found.list_endpoints(frontend))
            after = render_frontend(frontend, arranged) if arranged else {}
            if before == after and arranged is not None:
                self._take(frontend, arranged)
            else:
                step = _Step(frontend, before, arranged, after)
                step.shared.update(self._list_shared(frontend, arranged))
                steps.append(step)
        lost: Elements = {place: None for place in self._shared if place not in found.shared}
        _apply(nftables, [], lost)
        done = self._run(nftables, steps)
        self._globals = {place: None for place in found.shared if place[0][:-1] in GLOBAL}
        shared = [place for place in found.shared if place not in self._globals]
        self._sync_globals(nftables, around)
        stale = [place for place in shared if place not in self._shared]
        _apply(nftables, stale, {})
        if not self.problems:
            self._remove_ranges()
        self.is_doubtful = False
        return Sync(elements=done.elements + len(lost) + len(stale), frontends=done.frontends)

    def update(
        self, nftables: Nftables, changed: Mapping[Frontend, FrontendPlan | None], around: Surroundings
    ) -> Sync:
        """Make the table hold the plans of these frontends; None for one that is gone."""
        if self._around is None or around.own_subnets != self._around.own_subnets:
            # Which endpoints are this node's is another question for each frontend now.
            merged = {**self.held, **changed}
            plans = {frontend: plan for frontend, plan in merged.items() if plan is not None}
            return self.sync(nftables, plans, around)
        if around != self._around:
            self._ensure_static(nftables, around, self.held.values())
            self._sync_globals(nftables, around)
        steps = [self._plan_step(frontend, plan) for frontend, plan in changed.items()]
        return self._run(nftables, [step for step in steps if step.plan != step.former])

    def _plan_step(self, frontend: Frontend, plan: FrontendPlan | None) -> _Step:
        former = self.held.get(frontend)
        arranged = plan
        if plan and former:
            arranged = arrange(plan, former.endpoints, former.inside or ())
        before = render_frontend(frontend, former) if former else {}
        after = render_frontend(frontend, arranged) if arranged else {}
        self.problems.pop(frontend, None)
        step = _Step(frontend, before, arranged, after, former)
        step.shared.update(self._list_shared(frontend, arranged))
        step.shared.subtract(self._list_shared(frontend, former))
        return step

    def _ensure_static(self, nftables: Nftables, around: Surroundings, plans: Iterable[FrontendPlan]) -> None:
        """Make table, sets, and the chains that all Services share."""
        self._around = around
        sources = [f"source{version}" for version in VERSIONS]
        shared = plan_shared_chains()
        present = set(_list_chains(nftables))
        wrong = [
            packed
            for name in present
            if (packed := find_packed(name)) is not None and not _is_right(nftables, packed)
        ]
        changes = [declare_table("inet", SERVICES_TABLE), *(each.declare() for each in plan_sets())]
        for name in sources:
            changes += pack_chain("inet", SERVICES_TABLE, name, [], "")
        for chain in wrong:
            changes += chain.declare()
        for chain in shared:
            changes += [] if chain.name in present else chain.declare()
        nftables.apply(changes)
        ensure_ruleset(nftables, plan_ruleset(around))
        self._chains = present | {"refuse", *(chain.name for chain in shared)}
        self._ensure_chains(nftables, [f"pick_{number}" for number in _READY])
        self._write_ranges(nftables, {plan.sources for plan in plans if plan.sources is not None})

    def _write_ranges(self, nftables: Nftables, ranges: Iterable[tuple[IPNetwork, ...]]) -> None:
        """Make the chains of source ranges; they depend on the node's own addresses, too."""
        wanted = [plan_ranges(sources, self._around_now) for sources in ranges]
        lines = [
            line for each in wanted if find_difference(nftables, each) is not None for line in each.render()
        ]
        if lines:
            run_nft(lines)
        self._chains.update(chain.name for each in wanted for chain in each.chains)

    def _remove_ranges(self) -> None:
        """Remove the chains of source ranges that no Service has any more."""
        needed = {name_ranges(plan.sources) for plan in self.held.values() if plan.sources is not None}
        unneeded = [name for name in self._chains if _is_ranges(name) and name not in needed]
        place = f"inet {SERVICES_TABLE}"
        if unneeded:
            run_nft(f"{verb} chain {place} {name}" for verb in ("flush", "delete") for name in unneeded)
        self._chains.difference_update(unneeded)

    def _ensure_chains(self, nftables: Nftables, names: Iterable[str]) -> None:
        """Make the chains that elements will lead to."""
        missing = dict.fromkeys(
            needed for name in names for needed in needed_chains(name) if needed not in self._chains
        )
        nftables.apply([change for name in missing for change in plan_chain(name).declare()])
        self._chains.update(missing)

    def _sync_globals(self, nftables: Nftables, around: Surroundings) -> None:
        wanted = render_globals(around)
        gone = [place for place in self._globals if place not in wanted]
        new: Elements = {place: None for place in wanted if place not in self._globals}
        _apply(nftables, gone, new)
        self._globals = wanted

    def _run(self, nftables: Nftables, steps: list[_Step]) -> Sync:
        """Take the steps, some thousand elements at a time."""
        elements = 0
        done: list[Frontend] = []
        for batch in _batches(steps):
            for step, count in self._commit(nftables, batch):
                elements += count
                done.append(step.frontend)
        return Sync(elements=elements, frontends=tuple(done))

    def _commit(self, nftables: Nftables, batch: list[_Step]) -> list[tuple[_Step, int]]:
        """Take the steps in one batch, or find out which of them the kernel refuses."""
        shared: Counter[tuple[str, bytes]] = Counter()
        gone: list[tuple[str, bytes]] = []
        new: Elements = {}
        taken = []
        for step in batch:
            leaving, coming = step.gone, step.new
            gone += leaving
            new |= coming
            taken.append((step, len(leaving) + len(coming)))
            for place, more in step.shared.items():
                shared[place] += more
        counts = {place: (self._shared[place], self._shared[place] + more) for place, more in shared.items()}
        gone += [place for place, (before, after) in counts.items() if before > 0 >= after]
        new |= {place: None for place, (before, after) in counts.items() if before <= 0 < after}
        try:
            self._prepare(nftables, batch, new)
            _apply(nftables, gone, new)
        except KernelError as error:
            return self._split(nftables, batch, error)
        for place, (_, after) in counts.items():
            self._shared[place] = after
            if after <= 0:
                del self._shared[place]
        for step in batch:
            if step.plan is None:
                self.held.pop(step.frontend, None)
            else:
                self.held[step.frontend] = step.plan
        return taken

    def _prepare(self, nftables: Nftables, batch: list[_Step], new: Elements) -> None:
        verdicts = {value[0] for value in new.values() if isinstance(value, tuple)}
        names = {verdict.removeprefix("goto ") for verdict in verdicts if verdict.startswith("goto ")}
        ranges = {step.plan.sources for step in batch if step.plan and step.plan.sources is not None}
        missing = [sources for sources in ranges if name_ranges(sources) not in self._chains]
        self._write_ranges(nftables, missing)
        self._ensure_chains(nftables, sorted(name for name in names - self._chains if "ranges" not in name))

    @property
    def _around_now(self) -> Surroundings:
        assert self._around is not None, "static chains come first"  # noqa: S101
        return self._around

    def _split(self, nftables: Nftables, batch: list[_Step], error: KernelError) -> list[tuple[_Step, int]]:
        if len(batch) > 1:
            middle = len(batch) // 2
            return self._commit(nftables, batch[:middle]) + self._commit(nftables, batch[middle:])
        (step,) = batch
        self.problems[step.frontend] = str(error)
        self.is_doubtful = True
        return []

    def _take(self, frontend: Frontend, plan: FrontendPlan) -> None:
        """Take note of a frontend whose elements the kernel has already."""
        self.held[frontend] = plan
        self._shared.update(render_shared(frontend, plan, self._around_now))

    def _list_shared(self, frontend: Frontend, plan: FrontendPlan | None) -> list[tuple[str, bytes]]:
        return render_shared(frontend, plan, self._around_now) if plan else []


def _list_chains(nftables: Nftables) -> list[str]:
    return nftables.list_chain_names("inet", table=SERVICES_TABLE)


def _is_right(nftables: Nftables, chain: PackedChain) -> bool:
    """Tell whether a chain has its rules: others may have flushed it, or written it otherwise."""
    found = nftables.list_comments("inet", chain.name, table=SERVICES_TABLE)
    return found == [chain.comment] * len(chain.rules)


def _is_ranges(name: str) -> bool:
    return name.startswith("ranges_") and name not in _BASE_RANGES


def switch_off(nftables: Nftables) -> bool:
    """Remove the table with everything in it; tell whether there was one."""
    present = bool(nftables.list_chain_names("inet", table=SERVICES_TABLE))
    if present:
        run_nft([f"delete table inet {SERVICES_TABLE}"])
    return present


def _batches(steps: list[_Step]) -> Iterator[list[_Step]]:
    batch: list[_Step] = []
    size = 0
    for step in steps:
        batch.append(step)
        size += len(step.before) + len(step.after)
        if size >= _LARGEST:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _apply(nftables: Nftables, gone: Iterable[tuple[str, bytes]], new: Elements) -> None:
    """Delete and add elements in one batch."""
    changes: list[PackedChange] = []
    leaving: dict[str, list[tuple[bytes, None]]] = {}
    for name, key in gone:
        leaving.setdefault(name, []).append((key, None))
    for name, pairs in leaving.items():
        changes += pack_pairs(_place(name), pairs, present=False)
    coming: dict[str, list[tuple[bytes, Value]]] = {}
    for (name, key), value in new.items():
        coming.setdefault(name, []).append((key, value))
    for name, added in coming.items():
        changes += pack_pairs(_place(name), added, present=True)
    nftables.apply(changes)


def _place(name: str) -> Element:
    return Element(family="inet", table=SERVICES_TABLE, set_name=name, key=b"")
