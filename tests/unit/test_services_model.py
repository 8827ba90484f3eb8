"""Services as they change: the model beside a naive evaluator, and beside a model that begins anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cni_plugin.cluster.service_objects import parse_service, parse_slice
from cni_plugin.dataplane.services.desired import NodePlace, ServicesModel
from cni_plugin.dataplane.services.endpoints import Here
from cni_plugin.dataplane.services.plan import PROTOCOL_NAMES, Frontend, FrontendPlan
from tests.harness.api_objects import render_endpoint, render_service, render_slice
from tests.harness.services_oracle import DROPPED, REFUSED, Answer, Oracle, Place, Row

if TYPE_CHECKING:
    from cni_plugin.dataplane.services.plan import Endpoint

HTTP = {"name": "http", "port": 80, "protocol": "TCP"}
DNS = {"name": "dns", "port": 53, "protocol": "UDP"}
DNS_TCP = {"name": "dns-tcp", "port": 53, "protocol": "TCP"}
TARGETS = [{**HTTP, "port": 8080}, {**HTTP, "port": 8081}, {**DNS, "port": 5353}, DNS_TCP]
NODE_ADDRESSES = ("192.0.2.1", "2001:db8::1")


@dataclass
class World:
    """The API's objects, a model that is told of each change, and the plans that it has given."""

    node_addresses: tuple[str, ...] = NODE_ADDRESSES
    zone: str = "a"
    services: dict[str, dict[str, Any]] = field(default_factory=dict)
    slices: dict[str, dict[str, Any]] = field(default_factory=dict)
    held: dict[Frontend, FrontendPlan] = field(default_factory=dict)
    model: ServicesModel = field(init=False)

    def __post_init__(self) -> None:
        self.model = ServicesModel(self.place())

    def place(self) -> NodePlace:
        packed = tuple(ip_address(each).packed for each in self.node_addresses)
        return NodePlace(here=Here(node="node1", zone=self.zone), node_ports=packed)

    def put_service(self, raw: dict[str, Any]) -> None:
        key = f"shop/{raw['metadata']['name']}"
        self.services[key] = raw
        self.model.put_services({key: parse_service(raw)})

    def put_slice(self, raw: dict[str, Any]) -> None:
        key = f"shop/{raw['metadata']['name']}"
        self.slices[key] = raw
        self.model.put_slices({key: parse_slice(raw)})

    def delete_service(self, name: str) -> None:
        self.services.pop(f"shop/{name}", None)
        self.model.put_services({f"shop/{name}": None})

    def delete_slice(self, name: str) -> None:
        self.slices.pop(f"shop/{name}", None)
        self.model.put_slices({f"shop/{name}": None})

    def move(self, zone: str, addresses: tuple[str, ...]) -> None:
        self.zone, self.node_addresses = zone, addresses
        self.model.move(self.place())

    def compute(self) -> dict[Frontend, FrontendPlan | None]:
        changed = self.model.compute()
        for frontend, plan in changed.items():
            assert plan != self.held.get(frontend), f"{frontend}: no news"
            if plan is None:
                del self.held[frontend]
            else:
                self.held[frontend] = plan
        return changed

    def oracle(self) -> Oracle:
        return Oracle(self.services, self.slices, "node1", self.zone, self.node_addresses)

    def rows(self) -> dict[Place, Row]:
        return {place_of(frontend): row_of(plan) for frontend, plan in self.held.items()}

    def fresh(self) -> ServicesModel:
        model = ServicesModel(self.place())
        model.put_slices({key: parse_slice(raw) for key, raw in reversed(self.slices.items())})
        model.put_services({key: parse_service(raw) for key, raw in reversed(self.services.items())})
        model.compute()
        return model


def place_of(frontend: Frontend) -> Place:
    return Place(str(ip_address(frontend.address)), PROTOCOL_NAMES[frontend.protocol], frontend.port)


def row_of(plan: FrontendPlan) -> Row:
    nobody = REFUSED if plan.refuses else DROPPED
    outside: Answer = texts(plan.endpoints) or nobody
    inside: Answer = outside if plan.inside is None else texts(plan.inside)
    used = (*plan.endpoints, *(plan.inside or ()))
    return Row(
        service=plan.name.rpartition(":")[0],
        outside=outside,
        inside=inside,
        masqueraded=plan.masquerade,
        node_masqueraded=plan.masquerade_node,
        keep=plan.keep,
        sources=None if plan.sources is None else frozenset(map(str, plan.sources)),
        is_cluster=plan.is_cluster,
        kept=texts((*used, *plan.draining)),
    )


def texts(endpoints: tuple[Endpoint, ...]) -> frozenset[tuple[str, int]]:
    return frozenset((str(ip_address(each.address)), each.port) for each in endpoints)


NAMES = st.sampled_from(["a", "b", "c"])
POLICIES = st.sampled_from(["Cluster", "Local"])


@st.composite
def service_objects(draw: st.DrawFn) -> dict[str, Any]:
    """Services that claim few addresses, so that they claim the same ones."""
    name = draw(NAMES)
    number = "abc".index(name) + 1
    own = [f"10.96.0.{number}", f"fd00:96::{number}"]
    addresses = draw(st.sampled_from([own, own[:1], own[1:], []]))
    ports = draw(st.lists(st.sampled_from([HTTP, DNS, DNS_TCP]), min_size=1, unique_by=lambda p: p["name"]))
    ports = [
        {**port, **({"nodePort": draw(st.integers(30000, 30001))} if draw(st.booleans()) else {})}
        for port in ports
    ]
    balanced = st.sampled_from(
        [
            {},
            {"ip": "198.51.100.9"},
            {"ip": "198.51.100.9", "ipMode": "Proxy"},
            {"ip": "2001:db8:9::9", "ipMode": "VIP"},
            {"hostname": "balancer.example"},
        ]
    )
    spec: dict[str, Any] = {
        "type": draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"])),
        "externalIPs": draw(st.lists(st.sampled_from(["198.51.100.9", "2001:db8:9::8"]), unique=True)),
        "externalTrafficPolicy": draw(POLICIES),
        "internalTrafficPolicy": draw(POLICIES),
        "loadBalancerSourceRanges": draw(st.sampled_from([[], ["203.0.113.0/24"]])),
        "healthCheckNodePort": draw(st.sampled_from([0, 32000 + number])),
        "sessionAffinity": draw(st.sampled_from(["None", "ClientIP"])),
        "sessionAffinityConfig": draw(st.sampled_from([{}, {"clientIP": {"timeoutSeconds": 60}}])),
    }
    status = {"loadBalancer": {"ingress": [draw(balanced)]}}
    return render_service(name, addresses, ports, created=draw(st.integers(0, 2)), status=status, **spec)


@st.composite
def slice_objects(draw: st.DrawFn) -> dict[str, Any]:
    """Slices with few addresses; a name may be another Service's slice, or of another family, next."""
    pool = draw(st.sampled_from(["10.244.0.{}", "fd00:244::{}"]))
    hints = st.sampled_from(
        [
            {},
            {"forZones": [{"name": "a"}]},
            {"forZones": [{"name": "b"}]},
            {"forNodes": [{"name": "node1"}], "forZones": [{"name": "b"}]},
            {"forNodes": [{"name": "node2"}]},
        ]
    )
    endpoints = [
        {
            **render_endpoint(
                pool.format(draw(st.integers(1, 4))), draw(st.sampled_from(["node1", "node2"]))
            ),
            "conditions": draw(
                st.dictionaries(
                    st.sampled_from(["ready", "serving", "terminating"]), st.sampled_from([True, False, None])
                )
            ),
            "hints": draw(hints),
        }
        for _ in range(draw(st.integers(0, 4)))
    ]
    ports = draw(st.lists(st.sampled_from(TARGETS), max_size=3))
    found = render_slice(draw(st.sampled_from(["s1", "s2", "s3"])), draw(NAMES), endpoints, ports)
    return {**found, "addressType": "IPv4" if "." in pool else "IPv6"}


EVENTS = st.one_of(
    st.tuples(st.just("put_service"), st.tuples(service_objects())),
    st.tuples(st.just("put_slice"), st.tuples(slice_objects())),
    st.tuples(st.just("delete_service"), st.tuples(NAMES)),
    st.tuples(st.just("delete_slice"), st.tuples(st.sampled_from(["s1", "s2", "s3"]))),
    st.tuples(
        st.just("move"),
        st.tuples(st.sampled_from(["", "a", "b"]), st.sampled_from([NODE_ADDRESSES, NODE_ADDRESSES[:1]])),
    ),
)


@given(st.lists(st.lists(EVENTS, max_size=4), max_size=8))
@settings(max_examples=200, deadline=None)
def test_after_any_events_the_plans_are_what_the_objects_say(batches: list[list[tuple[str, Any]]]) -> None:
    world = World()
    for batch in batches:
        for name, arguments in batch:
            getattr(world, name)(*arguments)
        world.compute()
        assert world.rows() == world.oracle().rows()
        assert world.held == world.model.plans()
        checks = {port: check.local_endpoints for port, check in world.model.checks().items()}
        assert checks == world.oracle().health()
        fresh = world.fresh()
        assert fresh.plans() == world.held
        assert fresh.problems() == world.model.problems()
        assert world.model.compute() == {}
