"""Services as they change: the model beside a naive evaluator, and beside a model that begins anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
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


def outside(world: World, address: str, port: int, protocol: str = "TCP") -> Answer | None:
    world.compute()
    row = world.rows().get(Place(address, protocol, port))
    return None if row is None else row.outside


def at(*names: str, port: int = 8080) -> Answer:
    return frozenset((f"10.244.0.{name}", port) for name in names)


def web(name: str = "a", created: int = 0, **spec: Any) -> dict[str, Any]:
    return render_service(name, [f"10.96.0.{'abc'.index(name) + 1}"], [HTTP], created=created, **spec)


def pods(name: str, *endpoints: dict[str, Any], service: str = "a", port: int = 8080) -> dict[str, Any]:
    return render_slice(name, service, list(endpoints), [{**HTTP, "port": port}])


def pod(
    number: int, node: str = "node1", *, hints: dict[str, Any] | None = None, **said: bool
) -> dict[str, Any]:
    return {**render_endpoint(f"10.244.0.{number}", node, **said), "hints": hints or {}}


def ending(number: int, node: str = "node1", *, serving: bool = True) -> dict[str, Any]:
    return pod(number, node, ready=False, serving=serving, terminating=True)


ZONE_A, ZONE_B = {"forZones": [{"name": "a"}]}, {"forZones": [{"name": "b"}]}
NODE_1, NODE_2 = {"forNodes": [{"name": "node1"}]}, {"forNodes": [{"name": "node2"}]}


@pytest.mark.parametrize(
    ("endpoints", "cluster", "local"),
    [
        ([], REFUSED, REFUSED),
        ([pod(1), pod(2, "node2")], at("1", "2"), at("1")),
        ([pod(2, "node2")], at("2"), DROPPED),
        ([pod(1, ready=False, serving=False)], REFUSED, REFUSED),
        # One that is not ready and does not end gets nothing, though it serves.
        ([pod(1, ready=False)], REFUSED, REFUSED),
        ([ending(1), ending(2, "node2")], at("1", "2"), at("1")),
        ([ending(1), pod(2, "node2")], at("2"), at("1")),
        ([ending(1, serving=False), pod(2, "node2")], at("2"), DROPPED),
        ([ending(1), ending(2, serving=False)], at("1"), at("1")),
        ([ending(1), pod(2)], at("2"), at("2")),
        ([ending(2, "node2")], at("2"), DROPPED),
        ([ending(2, "node2", serving=False)], REFUSED, REFUSED),
        ([pod(1, hints=ZONE_A), pod(2, "node2", hints=ZONE_B)], at("1"), at("1")),
        ([pod(1, hints=ZONE_B), pod(2, "node2", hints=ZONE_A)], at("2"), at("1")),
        ([pod(1, hints=ZONE_B), pod(2, "node2", hints=ZONE_B)], at("1", "2"), at("1")),
        ([pod(1, hints=ZONE_A), pod(2, "node2")], at("1", "2"), at("1")),
        # Hints of those that are not ready count for nothing.
        ([pod(1, hints=ZONE_A), pod(2, "node2", hints=ZONE_B), ending(3)], at("1"), at("1")),
        ([pod(1, hints=ZONE_A | NODE_2), pod(2, "node2", hints=ZONE_B | NODE_1)], at("2"), at("1")),
        ([pod(1, hints=ZONE_A | NODE_2), pod(2, "node2", hints=ZONE_B | NODE_2)], at("1"), at("1")),
    ],
)
def test_which_endpoints_are_used(endpoints: list[dict[str, Any]], cluster: Answer, local: Answer) -> None:
    world = World()
    world.put_slice(pods("s1", *endpoints))
    for policy, wanted in (("Cluster", cluster), ("Local", local)):
        world.put_service(
            web(externalIPs=["198.51.100.1"], externalTrafficPolicy=policy, internalTrafficPolicy=policy)
        )
        assert outside(world, "10.96.0.1", 80) == wanted
        assert outside(world, "198.51.100.1", 80) == wanted
        assert world.rows() == world.oracle().rows()


def test_an_endpoint_in_two_slices_is_one_and_the_local_one_is_believed() -> None:
    world = World()
    world.put_service(web(internalTrafficPolicy="Local"))
    world.put_slice(pods("s1", pod(1, "node2"), pod(2)))
    world.put_slice(pods("s2", pod(1), pod(2)))
    assert outside(world, "10.96.0.1", 80) == at("1", "2")
    (plan,) = world.held.values()
    assert len(plan.endpoints) == 2


def test_an_endpoint_may_move_between_slices_in_either_order() -> None:
    world = World()
    world.put_service(web())
    world.put_slice(pods("s1", pod(1), pod(2)))
    world.compute()
    world.put_slice(pods("s2", pod(2)))
    assert world.compute() == {}
    world.put_slice(pods("s1", pod(1)))
    assert world.compute() == {}
    assert outside(world, "10.96.0.1", 80) == at("1", "2")


def test_a_port_by_name_may_be_another_number_in_each_pod() -> None:
    world = World()
    world.put_service(web())
    world.put_slice(pods("s1", pod(1)))
    world.put_slice(pods("s2", pod(2), port=8081))
    assert outside(world, "10.96.0.1", 80) == frozenset({*at("1"), *at("2", port=8081)})


def test_one_number_with_two_protocols_is_two_frontends() -> None:
    world = World()
    world.put_service(render_service("a", ["10.96.0.1"], [DNS, DNS_TCP]))
    world.put_slice(render_slice("s1", "a", [pod(1)], [{**DNS, "port": 5353}, DNS_TCP]))
    assert outside(world, "10.96.0.1", 53, "UDP") == at("1", port=5353)
    assert outside(world, "10.96.0.1", 53, "TCP") == at("1", port=53)


def test_nothing_but_what_an_event_touches_is_given() -> None:
    world = World()
    for name in "abc":
        world.put_service(web(name))
        world.put_slice(pods(f"s-{name}", pod(1), service=name))
    world.compute()
    world.put_slice(pods("s-b", pod(2), service="b"))
    assert [place_of(each).address for each in world.compute()] == ["10.96.0.2"]
    # A heartbeat: the same once more.
    world.put_slice(pods("s-b", pod(2), service="b"))
    assert world.compute() == {}
    world.put_slice(pods("s-x", pod(2), service="nobody"))
    assert world.compute() == {}


def test_the_older_of_two_services_has_an_address_until_it_goes() -> None:
    world = World()
    shared = {"externalIPs": ["198.51.100.1"]}
    for name, created in (("a", 2), ("b", 1), ("c", 3)):
        world.put_service(web(name, created, **shared))
        world.put_slice(pods(f"s-{name}", pod("abc".index(name) + 1), service=name))
        world.compute()
    assert outside(world, "198.51.100.1", 80) == at("2")
    lost = "wanted 198.51.100.1:80/TCP, found it is service shop/b's"
    assert world.model.problems() == [f"service shop/{name}: {lost}" for name in "ac"]
    # What the late ones do with it touches nobody.
    world.put_slice(pods("s-a", pod(4), service="a"))
    assert [place_of(each).address for each in world.compute()] == ["10.96.0.1"]
    world.delete_service("b")
    assert outside(world, "198.51.100.1", 80) == at("4")
    assert world.model.problems() == [f"service shop/c: {lost.replace('/b', '/a')}"]
    world.put_service(web("a", 2))
    assert outside(world, "198.51.100.1", 80) == at("3")
    assert world.model.problems() == []
    world.delete_service("c")
    assert outside(world, "198.51.100.1", 80) is None


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_a_service_that_is_replaced_in_one_batch_leaves_its_address_to_the_next(names: str) -> None:
    gone, comes = names
    world = World()
    world.put_service(web(gone, externalIPs=["198.51.100.1"]))
    world.compute()
    world.put_slice(pods("s1", pod(1), service=comes))
    world.put_service(web(comes, 1, externalIPs=["198.51.100.1"]))
    world.delete_service(gone)
    assert outside(world, "198.51.100.1", 80) == at("1")
    assert world.model.problems() == []


def test_a_service_that_is_made_anew_has_the_age_of_the_new_one() -> None:
    world = World()
    shared = {"externalIPs": ["198.51.100.1"]}
    world.put_service(web("a", 0, **shared))
    world.put_service(web("b", 1, **shared))
    world.put_slice(pods("s1", pod(1), service="b"))
    world.compute()
    world.put_service(web("a", 2, **shared))
    assert outside(world, "198.51.100.1", 80) == at("1")


def test_a_node_port_is_at_each_address_of_the_node_as_they_come_and_go() -> None:
    world = World(node_addresses=("192.0.2.1",))
    world.put_service(render_service("a", ["10.96.0.1", "fd00:96::1"], [{**HTTP, "nodePort": 30080}]))
    world.put_slice(pods("s1", pod(1)))
    assert outside(world, "192.0.2.1", 30080) == at("1")
    world.move("a", ("192.0.2.7", "2001:db8::7"))
    assert {place_of(each).address for each in world.compute()} == {
        *("192.0.2.1", "192.0.2.7", "2001:db8::7")
    }
    assert outside(world, "192.0.2.7", 30080) == at("1")
    assert outside(world, "2001:db8::7", 30080) == REFUSED
    assert outside(world, "192.0.2.1", 30080) is None


def test_a_service_of_one_family_has_nothing_in_the_other() -> None:
    world = World()
    port = {**HTTP, "nodePort": 30080}
    world.put_service(render_service("a", ["10.96.0.1"], [port], externalIPs=["2001:db8:9::1"]))
    world.put_slice(render_slice("s1", "a", [{"addresses": ["fd00:244::1"]}], [HTTP]))
    assert outside(world, "10.96.0.1", 80) == REFUSED
    assert {place.address for place in world.rows()} == {"10.96.0.1", "192.0.2.1"}


def test_an_address_that_is_external_and_the_balancer_s_keeps_its_source_ranges() -> None:
    world = World()
    balancer = {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}}
    ranges = ["203.0.113.0/24"]
    world.put_service(web(externalIPs=["198.51.100.1"], status=balancer, loadBalancerSourceRanges=ranges))
    world.compute()
    assert world.rows()[Place("198.51.100.1", "TCP", 80)].sources == {"203.0.113.0/24"}
    assert world.rows()[Place("10.96.0.1", "TCP", 80)].sources is None


def test_a_health_port_counts_ready_pods_of_this_node_once() -> None:
    world = World()
    spec = {"externalTrafficPolicy": "Local", "healthCheckNodePort": 32000}
    world.put_service(render_service("a", ["10.96.0.1"], [HTTP, DNS], **spec))
    targets = [{**HTTP, "port": 8080}, {**DNS, "port": 5353}]
    world.put_slice(render_slice("s1", "a", [pod(1), pod(2), pod(3, "node2"), ending(4)], targets))
    world.put_slice(render_slice("s2", "a", [pod(2), pod(5)], targets[:1]))
    world.compute()
    assert [(port, check.local_endpoints) for port, check in world.model.checks().items()] == [(32000, 3)]
    world.put_service(web())
    world.compute()
    assert world.model.checks() == {}


def test_udp_flows_live_on_with_endpoints_that_serve_and_get_nothing_new() -> None:
    world = World()
    world.put_service(web())
    world.put_slice(
        pods("s1", pod(1, hints=ZONE_A), pod(2, "node2", hints=ZONE_B), ending(3), ending(4, serving=False))
    )
    world.compute()
    (plan,) = world.held.values()
    assert (texts(plan.endpoints), texts(plan.draining)) == (at("1"), at("2", "3"))


def test_what_cannot_be_is_named_as_long_as_it_is_said() -> None:
    world = World()
    world.put_service(web(externalIPs=["198.51.100"]))
    world.put_slice(render_slice("s1", "a", [pod(1), {"addresses": ["x"]}], [HTTP]))
    assert world.model.problems() == [
        'endpointslice shop/s1: endpoints: wanted an IPv4 address, found "x"',
        'service shop/a: externalIPs: wanted an IP address, found "198.51.100"',
    ]
    world.put_service(web())
    world.delete_slice("s1")
    assert world.model.problems() == []
