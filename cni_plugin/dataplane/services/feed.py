"""Keeps a node's Services in line with its cluster: reads what changed, computes, syncs, reports.

Nothing is programmed before all Services and all slices have been listed: a half known cluster would refuse
what is there. What is known stays in force while the API is away.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cni_plugin.agent.journal import own, render_pairs
from cni_plugin.config.state_file import ServicesState
from cni_plugin.contract.errors import CNIError
from cni_plugin.dataplane.nodes.published_files import replace_file
from cni_plugin.dataplane.services.desired import ServicesModel, describe
from cni_plugin.dataplane.services.flows import end_affinity, end_flows
from cni_plugin.dataplane.services.health import Health, HealthServer
from cni_plugin.dataplane.services.places import find_place, find_surroundings
from cni_plugin.dataplane.services.routes import ensure_routes
from cni_plugin.dataplane.services.sync import ServicesTable, Sync
from cni_plugin.kernel.netns import open_host
from cni_plugin.kernel.rival_proxy import find_rivals

if TYPE_CHECKING:
    from cni_plugin.cluster.objects import Node
    from cni_plugin.cluster.service_objects import Service, Slice
    from cni_plugin.cluster.settings import ClusterSettings
    from cni_plugin.cluster.snapshot import Snapshot
    from cni_plugin.dataplane.services.desired import NodePlace
    from cni_plugin.dataplane.services.plan import Surroundings
    from cni_plugin.kernel.netns import Namespace

_WHOLE = 3600.0  # seconds after which the table is read again, whatever happened
_MOST_REASONS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What is known of the cluster."""

    nodes: Snapshot[Node]
    services: Snapshot[Service]
    slices: Snapshot[Slice]

    @property
    def lack(self) -> str:
        """Return what has not been listed yet; empty when everything has."""
        named: dict[str, Snapshot[Any]] = {"nodes": self.nodes, **self._own}
        missing = [f"{name}: {each.problem}" for name, each in named.items() if not each.is_complete]
        return "; ".join(missing)

    @property
    def problems(self) -> list[str]:
        """Return why what is known may be out of date."""
        return [f"{name}: {each.problem}" for name, each in self._own.items() if each.problem]

    @property
    def _own(self) -> dict[str, Snapshot[Any]]:
        return {"services": self.services, "endpointslices": self.slices}


@dataclass
class ServicesFeed:
    """Takes the steps of one node's Services; the state file says how the last one ended."""

    node: str
    settings: ClusterSettings
    sources: Sources
    state_file: str
    table: ServicesTable = field(default_factory=ServicesTable)
    health: HealthServer = field(default_factory=HealthServer)
    _model: ServicesModel | None = None
    _around: Surroundings | None = None
    _read: float = 0.0
    """When the table was last read."""
    _state: ServicesState = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing known."""
        self._state = ServicesState(node=self.node)

    def doubt(self) -> None:
        """Have the next step read the table: somebody has changed it."""
        self.table.is_doubtful = True

    def step(self) -> bool:
        """Bring the table in line with what is known; tell whether it is."""
        reasons = self.sources.problems
        ready = False
        try:
            lack = self._advance()
            ready = not lack
            reasons += [lack] if lack else []
        except (CNIError, OSError) as error:
            reasons.append(str(error))
            self._fail()
        except Exception as error:  # noqa: BLE001  who ends here leaves a file that says that all is well
            own.exception("unexpected")
            reasons.append(f"{type(error).__name__}: {error}")
            self._fail()
        reasons += [f"{describe(where)}: {why}" for where, why in self.table.problems.items()]
        reasons += self._model.problems() if self._model else []
        reasons += self._serve_health(ready)
        self._say(ready, tuple(reasons[:_MOST_REASONS]))
        return ready and not self.table.problems

    def _fail(self) -> None:
        self.table.is_doubtful = True
        self._state = replace(self._state, errors=self._state.errors + 1)

    def _advance(self) -> str:
        """Compute and sync; return what this node still lacks."""
        if lack := self.sources.lack:
            return lack
        nodes = self.sources.nodes.known().objects or {}
        me = nodes.get(self.node)
        if me is None:
            return f"node {self.node}: wanted it among the API's nodes, found {len(nodes)} others"
        with open_host() as host:
            place = find_place(host, me, self.settings.services)
            around = find_surroundings(me, nodes, self.settings)
            since = self._take(place)
            ensure_routes(host.netlink, self.settings.services.cidrs, me.first_addresses)
            started = time.monotonic()
            done = self._sync(host, around)
            self._count(done, time.monotonic() - started, time.monotonic() - since if since else 0.0)
            self._look_for_rivals(host)
        return ""

    def _take(self, place: NodePlace) -> float:
        """Give the model what has changed; return when the first of it came, 0 for nothing."""
        if self._model is None:
            self._model = ServicesModel(place)
        times = [each.changed_since for each in (self.sources.services, self.sources.slices)]
        self._model.move(place)
        self._model.put_services(self.sources.services.take_changes())
        self._model.put_slices(self.sources.slices.take_changes())
        return min(filter(None, times), default=0.0)

    def _sync(self, host: Namespace, around: Surroundings) -> Sync:
        assert self._model is not None  # noqa: S101
        changed = self._model.compute()
        now = time.monotonic()
        if self.table.is_doubtful or not self._read or now - self._read > _WHOLE:
            first = not self._read
            done = self.table.sync(host.nftables, self._model.plans(), around)
            self._read = now
            frontends = tuple(self.table.held) if first else done.frontends
        elif changed or around != self._around:
            done = self.table.update(host.nftables, changed, around)
            frontends = done.frontends
        else:
            return Sync()
        self._around = around
        end_flows(host.nftables, frontends, self.table.held)
        end_affinity(host.nftables, frontends, self.table.held)
        return done

    def _count(self, done: Sync, seconds: float, late: float) -> None:
        state, held = self._state, self.table.held
        if done.elements:
            took = f"{seconds:.4f}"
            own.info(render_pairs(node=self.node, frontends=len(held), changes=done.elements, duration=took))
        self._state = replace(
            state,
            services=len(self._model.services) if self._model else 0,
            frontends=len(held),
            endpoints=sum(len(plan.endpoints) for plan in held.values()),
            refused=len(self.table.problems),
            syncs=state.syncs + 1,
            elements=state.elements + done.elements,
            last_sync_seconds=round(seconds, 6) if done.elements else state.last_sync_seconds,
            last_change_seconds=round(late, 6) if done.elements else state.last_change_seconds,
            last_sync=time.time(),
        )

    def _look_for_rivals(self, host: Namespace) -> None:
        rivals = tuple(find_rivals(host))
        for each in set(rivals) - set(self._state.rivals):
            own.warning(render_pairs(node=self.node, found=f"{each} (podwire decides)"))
        self._state = replace(self._state, rivals=rivals)

    def _serve_health(self, ready: bool) -> list[str]:
        """Answer balancers as the table is; return which ports cannot be had."""
        if not self._read and not ready:
            return []
        health = Health(
            port=self.settings.services.health_port,
            healthy=bool(self._read) and not self.table.is_doubtful,
            updated=self._state.last_sync,
            checks=self._model.checks() if self._model else {},
        )
        return list(self.health.update(health))

    def _say(self, ready: bool, reasons: tuple[str, ...]) -> None:
        """Write how it stands; that this cannot be written must not end us."""
        before, state = self._state, replace(self._state, ready=ready, reasons=reasons, updated=time.time())
        if (before.ready, before.reasons) != (ready, reasons):
            own.info(render_pairs(node=self.node, services_ready=ready, reasons="; ".join(reasons)))
        self._state = state
        try:
            replace_file(self.state_file, state.render())
        except OSError as error:
            own.warning(render_pairs(node=self.node, unsaid=str(error)))
