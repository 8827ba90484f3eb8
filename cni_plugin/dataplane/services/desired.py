"""What a node shall do for the cluster's Services, computed as they change. Pure.

The model is given the objects that changed, and computes the Services that these touch; nothing else is
looked at. Of two Services that claim one address and port the older has it: the other is named, and takes
over when the older goes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from cni_plugin.dataplane.services.endpoints import Here, choose
from cni_plugin.dataplane.services.health import HealthCheck
from cni_plugin.dataplane.services.plan import LENGTHS, PROTOCOL_NAMES, Frontend, FrontendPlan, Refusal
from cni_plugin.kernel.message import parse_address

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cni_plugin.cluster.service_objects import Service, ServicePort, Slice
    from cni_plugin.dataplane.services.endpoints import Choice
    from cni_plugin.dataplane.services.plan import Endpoint

_VERSIONS = tuple(LENGTHS)
_SEVERAL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlace:
    """What of this node Services depend on."""

    here: Here
    node_ports: tuple[bytes, ...] = ()
    """Its addresses that node ports are at."""
    masquerade_all: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Computed:
    """What one Service has."""

    created: str = ""
    plans: dict[Frontend, FrontendPlan] = field(default_factory=dict)
    check: tuple[int, HealthCheck] | None = None
    """What its health check port answers."""


_NOTHING = _Computed()


@dataclass
class ServicesModel:
    """The cluster's Services as this node sees them."""

    place: NodePlace
    services: dict[str, Service] = field(default_factory=dict)
    _slices: dict[str, Slice] = field(default_factory=dict)
    _by_service: dict[str, dict[str, Slice]] = field(default_factory=dict)
    _computed: dict[str, _Computed] = field(default_factory=dict)
    _claims: dict[Frontend, list[str]] = field(default_factory=dict)
    """Who claims a frontend, the oldest first, where it is more than one."""
    _owners: dict[Frontend, str] = field(default_factory=dict)
    _checks: dict[str, tuple[int, HealthCheck]] = field(default_factory=dict)
    _faults: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What the objects say that cannot be, by what they are called."""
    _dirty: set[str] = field(default_factory=set)

    def move(self, place: NodePlace) -> None:
        """Take over where this node is; everything is computed again when that is news."""
        if place != self.place:
            self.place = place
            self._dirty |= self.services.keys()

    def put_services(self, changed: Mapping[str, Service | None]) -> None:
        """Take over Services by their keys; None for one that is gone."""
        for key, service in changed.items():
            if service is None:
                self.services.pop(key, None)
            else:
                self.services[key] = service
            self._note(f"service {key}", service.faults if service else ())
            self._dirty.add(key)

    def put_slices(self, changed: Mapping[str, Slice | None]) -> None:
        """Take over slices by their keys; None for one that is gone."""
        for key, found in changed.items():
            former = self._slices.pop(key, None)
            if former is not None:
                self._forget_slice(former.service, key)
            if found is not None and found.service:
                self._slices[key] = found
                self._by_service.setdefault(found.service, {})[key] = found
                self._dirty.add(found.service)
            self._note(f"endpointslice {key}", found.faults if found else ())

    def _note(self, name: str, faults: tuple[str, ...]) -> None:
        self._faults.pop(name, None)
        if faults:
            self._faults[name] = faults

    def _forget_slice(self, service: str, key: str) -> None:
        members = self._by_service[service]
        del members[key]
        if not members:
            del self._by_service[service]
        self._dirty.add(service)

    def compute(self) -> dict[Frontend, FrontendPlan | None]:
        """Return the plans that have changed since the last call; None for a frontend that is gone."""
        dirty, self._dirty = self._dirty, set()
        former: dict[Frontend, FrontendPlan | None] = {}
        for key in dirty:
            before = self._computed.get(key, _NOTHING)
            after = self._compute_service(key)
            for frontend in before.plans.keys() | after.plans.keys():
                if before.created != after.created or before.plans.get(frontend) != after.plans.get(frontend):
                    if frontend not in former:
                        former[frontend] = self._find_plan(frontend)
                    self._claim(frontend, key, claims=frontend in after.plans)
            self._keep(key, after)
        # Only now is each of them known as it is: a claimant of before may be gone.
        for frontend in former.keys() & self._claims.keys():
            self._settle(frontend)
        changed = {frontend: self._find_plan(frontend) for frontend in former}
        return {frontend: plan for frontend, plan in changed.items() if plan != former[frontend]}

    def plans(self) -> dict[Frontend, FrontendPlan]:
        """Return all plans, as they were last computed."""
        return {frontend: self._computed[owner].plans[frontend] for frontend, owner in self._owners.items()}

    def plans_of(self, key: str) -> dict[Frontend, FrontendPlan]:
        """Return the plans of one Service, those that another has taken included."""
        computed = self._computed.get(key)
        return dict(computed.plans) if computed else {}

    def owner(self, frontend: Frontend) -> str:
        """Return the key of the Service that has a frontend; empty when none has."""
        return self._owners.get(frontend, "")

    def slices_of(self, key: str) -> tuple[Slice, ...]:
        """Return the slices of a Service."""
        return tuple(self._by_service.get(key, {}).values())

    def checks(self) -> dict[int, HealthCheck]:
        """Return what health check ports answer."""
        return dict(self._checks.values())

    def problems(self) -> list[str]:
        """Return what is wrong with Services: addresses that an older one has, values that cannot be."""
        late = [
            f"service {each}: wanted {describe(frontend)}, found it is service {claimants[0]}'s"
            for frontend, claimants in self._claims.items()
            for each in claimants[1:]
        ]
        return sorted(
            late + [f"{name}: {fault}" for name, faults in self._faults.items() for fault in faults]
        )

    def _find_plan(self, frontend: Frontend) -> FrontendPlan | None:
        owner = self._owners.get(frontend)
        return self._computed[owner].plans[frontend] if owner is not None else None

    def _keep(self, key: str, found: _Computed) -> None:
        self._computed[key] = found
        if found is _NOTHING:
            del self._computed[key]
        self._checks.pop(key, None)
        if found.check is not None:
            self._checks[key] = found.check

    def _claim(self, frontend: Frontend, key: str, *, claims: bool) -> None:
        """Take note of whether a Service claims a frontend; `_settle` says whose it is among several."""
        rivals = self._claims.get(frontend)
        if claims:
            owner = self._owners.setdefault(frontend, key)
            if owner != key and key not in (rivals := self._claims.setdefault(frontend, [owner])):
                rivals.append(key)
        elif rivals is None:
            del self._owners[frontend]
        else:
            rivals.remove(key)

    def _settle(self, frontend: Frontend) -> None:
        """Give a frontend that several claim, or did, to the oldest."""
        rivals = self._claims[frontend]
        rivals.sort(key=lambda each: (self._computed[each].created, each))
        if rivals:
            self._owners[frontend] = rivals[0]
        else:
            del self._owners[frontend]
        if len(rivals) < _SEVERAL:
            del self._claims[frontend]

    def _compute_service(self, key: str) -> _Computed:
        service = self.services.get(key)
        if service is None or not service.cluster_addresses:
            return _NOTHING
        slices = self._by_service.get(key, {}).values()
        plans: dict[Frontend, FrontendPlan] = {}
        # A Service is of the families of its cluster addresses, whatever other addresses it names.
        lengths = set(map(len, service.cluster_addresses))
        ready: dict[int, set[bytes]] = {each: set() for each in _VERSIONS if LENGTHS[each] in lengths}
        for port in service.ports:
            for version, pods in ready.items():
                choice = choose(slices, port, version, self.place.here)
                pods.update(choice.local_ready)
                for frontend, plan in _plan_port(service, port, version, choice, self.place):
                    plans.setdefault(frontend, plan)
        if not service.health_port:
            return _Computed(created=service.created, plans=plans)
        count = max(map(len, ready.values()))
        check = HealthCheck(namespace=service.namespace, name=service.name, local_endpoints=count)
        return _Computed(created=service.created, plans=plans, check=(service.health_port, check))


def describe(frontend: Frontend) -> str:
    """Return a frontend as people write it: 10.96.0.10:53/UDP."""
    address = parse_address(frontend.address)
    host = f"[{address}]" if frontend.version == 6 else str(address)
    return f"{host}:{frontend.port}/{PROTOCOL_NAMES.get(frontend.protocol, frontend.protocol)}"


def _plan_port(
    service: Service, port: ServicePort, version: int, choice: Choice, place: NodePlace
) -> Iterator[tuple[Frontend, FrontendPlan]]:
    """Yield the frontends of a port in one family, each with its plan."""
    length = LENGTHS[version]
    for plan_of, addresses, number in (
        (_plan_inner, service.cluster_addresses, port.port),
        # An address that is both is guarded: the first plan of a frontend stands.
        (partial(_plan_guarded, version), service.balancer_addresses, port.port),
        (_plan_outer, service.external_addresses, port.port),
        (_plan_outer, place.node_ports if port.node_port else (), port.node_port),
    ):
        mine = [address for address in addresses if len(address) == length]
        if mine:
            plan = plan_of(service, port, choice, place)
            for address in mine:
                yield Frontend(address, port.protocol, number), plan


def _name(service: Service, port: ServicePort) -> str:
    return f"{service.key}:{port.name or port.port}"


def _plan_inner(service: Service, port: ServicePort, choice: Choice, place: NodePlace) -> FrontendPlan:
    """Return the plan of a cluster address."""
    local = service.internal_local
    endpoints = choice.local if local else choice.near
    return FrontendPlan(
        name=_name(service, port),
        endpoints=endpoints,
        refusal=Refusal.DROP if local and choice.everywhere else Refusal.REFUSE,
        keep=service.affinity,
        is_cluster=True,
        masquerade=place.masquerade_all,
        draining=_without(choice.serving, endpoints),
    )


def _plan_outer(service: Service, port: ServicePort, choice: Choice, _: NodePlace) -> FrontendPlan:
    """Return the plan of an address that is asked from outside."""
    local = service.external_local
    endpoints = choice.local if local else choice.near
    others = local and choice.everywhere != endpoints
    return FrontendPlan(
        name=_name(service, port),
        endpoints=endpoints,
        inside=choice.everywhere if others else None,
        refusal=Refusal.DROP if others else Refusal.REFUSE,
        keep=service.affinity,
        masquerade=not local,
        masquerade_node=True,
        draining=_without(choice.serving, choice.everywhere if others else endpoints),
    )


def _plan_guarded(
    version: int, service: Service, port: ServicePort, choice: Choice, place: NodePlace
) -> FrontendPlan:
    """Return the plan of a balancer's address: only the sources of the family may ask it."""
    plan = _plan_outer(service, port, choice, place)
    if service.sources is None:
        return plan
    return replace(plan, sources=tuple(cidr for cidr in service.sources if cidr.version == version))


def _without(serving: tuple[Endpoint, ...], used: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
    if serving == used:
        return ()
    taken = set(used)
    return tuple(each for each in serving if each not in taken)
