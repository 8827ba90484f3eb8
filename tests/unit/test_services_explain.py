"""What a client is said to meet at a frontend, and why a Service has nobody to offer: tables."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from netaddr import IPNetwork

from cni_plugin.cluster.service_objects import parse_service, parse_slice
from cni_plugin.contract.errors import CNIError
from cni_plugin.dataplane.services.desired import NodePlace, ServicesModel, describe
from cni_plugin.dataplane.services.endpoints import Here
from cni_plugin.dataplane.services.explain import (
    Explanation,
    explain,
    explain_lack,
    parse_client,
    parse_frontend,
)
from cni_plugin.dataplane.services.plan import Surroundings
from tests.harness.api_objects import render_endpoint, render_service, render_slice

HERE = Here(node="node1", zone="a")
NODE = "192.0.2.1"
AROUND = Surroundings(
    addresses=(ip_address(NODE).packed, ip_address("2001:db8::1").packed),
    own_subnets=(IPNetwork("10.244.1.0/24"), IPNetwork("fd00:244:1::/64")),
    pod_networks=(IPNetwork("10.244.0.0/16"), IPNetwork("fd00:244::/48")),
    peer_addresses=frozenset(ip_address(each).packed for each in (NODE, "192.0.2.2")),
    cluster_cidrs=(IPNetwork("10.96.0.0/16"),),
)
LOCAL, REMOTE = render_endpoint("10.244.1.5", "node1"), render_endpoint("10.244.2.5", "node2")
PORT = {"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}
TARGET = {"name": "http", "port": 8080, "protocol": "TCP"}
POD, NEIGHBOUR, STRANGER, ELSEWHERE = "10.244.1.9", "10.244.1.5", "203.0.113.5", "10.244.2.9"
CLUSTER, EXTERNAL, BALANCER, NODE_PORT = (
    "10.96.0.1:80",
    "198.51.100.1:80",
    "198.51.100.2:80",
    f"{NODE}:30080",
)


def make_model(endpoints: list[dict[str, Any]], **spec: Any) -> ServicesModel:
    balancer = {"loadBalancer": {"ingress": [{"ip": BALANCER.partition(":")[0]}]}}
    raw = render_service(
        "web", ["10.96.0.1"], [PORT], externalIPs=[EXTERNAL.partition(":")[0]], status=balancer, **spec
    )
    model = ServicesModel(NodePlace(here=HERE, node_ports=(ip_address(NODE).packed,)))
    model.put_services({"shop/web": parse_service(raw)})
    model.put_slices({"shop/web-1": parse_slice(render_slice("web-1", "web", endpoints, [TARGET]))})
    model.compute()
    return model


def ask(who: str, where: str, endpoints: list[dict[str, Any]], **spec: Any) -> Explanation:
    frontend = parse_frontend(where)
    plans = make_model(endpoints, **spec).plans()
    return explain(plans, AROUND, parse_client(who, frontend, AROUND), frontend)


def say(found: Explanation) -> str:
    """Return an explanation in short: who answers, and `~` when it sees this node."""
    names = {ip_address("10.244.1.5").packed: "local", ip_address("10.244.2.5").packed: "remote"}
    if not found.endpoints:
        return found.outcome.value
    return "+".join(names[each.address] for each in found.endpoints) + "~" * found.masqueraded


BOTH = [LOCAL, REMOTE]


# The client, the frontend, the endpoints, and what is met with the policies Cluster and Local.
@pytest.mark.parametrize(
    ("who", "where", "endpoints", "cluster", "local"),
    [
        (POD, CLUSTER, BOTH, "local+remote", "local"),
        ("node", CLUSTER, BOTH, "local+remote", "local"),
        (ELSEWHERE, CLUSTER, BOTH, "local+remote", "local"),
        (STRANGER, CLUSTER, BOTH, "local+remote~", "local~"),
        (POD, CLUSTER, [REMOTE], "remote", "dropped"),
        ("node", CLUSTER, [REMOTE], "remote", "dropped"),
        (POD, CLUSTER, [], "refused", "refused"),
        ("node", CLUSTER, [], "refused", "refused"),
        *(
            row
            for where in (EXTERNAL, BALANCER, NODE_PORT)
            for row in (
                (POD, where, BOTH, "local+remote~", "local+remote"),
                ("node", where, BOTH, "local+remote~", "local+remote~"),
                (ELSEWHERE, where, BOTH, "local+remote~", "local"),
                (STRANGER, where, BOTH, "local+remote~", "local"),
                (POD, where, [REMOTE], "remote~", "remote"),
                ("node", where, [REMOTE], "remote~", "remote~"),
                (STRANGER, where, [REMOTE], "remote~", "dropped"),
                (STRANGER, where, [LOCAL], "local~", "local"),
                *((who, where, [], "refused", "refused") for who in (POD, "node", STRANGER)),
            )
        ),
    ],
)
def test_it_says_who_answers_whom(
    who: str, where: str, endpoints: list[dict[str, Any]], cluster: str, local: str
) -> None:
    policies = {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}
    assert say(ask(who, where, endpoints)) == cluster
    assert say(ask(who, where, endpoints, **policies)) == local


@pytest.mark.parametrize(
    ("who", "where", "met"),
    [
        (STRANGER, BALANCER, "local~"),
        ("203.0.114.5", BALANCER, "dropped"),
        (POD, BALANCER, "dropped"),
        ("node", BALANCER, "dropped"),
        ("203.0.114.5", EXTERNAL, "local~"),
        ("203.0.114.5", NODE_PORT, "local~"),
        ("outside", BALANCER, "local~"),
    ],
)
def test_source_ranges_guard_the_balancer_s_address_alone(who: str, where: str, met: str) -> None:
    found = ask(who, where, [LOCAL], loadBalancerSourceRanges=["203.0.113.0/24"])
    assert say(found) == met
    assert any("203.0.113.0/24" in reason for reason in found.reasons) == (where == BALANCER)


def test_a_node_in_the_ranges_may_ask_from_the_balancer_s_address() -> None:
    ranges = [f"{NODE}/32"]
    assert say(ask("node", BALANCER, [LOCAL], loadBalancerSourceRanges=ranges)) == "local~"
    assert say(ask(POD, BALANCER, [LOCAL], loadBalancerSourceRanges=ranges)) == "dropped"


@pytest.mark.parametrize(
    ("where", "met", "reason"),
    [
        ("10.96.0.1:81", "refused", "a Service has the address, and not the port 81/TCP"),
        ("10.96.0.1:80/udp", "refused", "a Service has the address, and not the port 80/UDP"),
        ("10.96.0.2:80", "refused", "no Service has the cluster address"),
        (f"{NODE}:80", "untouched", "it is this node's own address, and no Service has the port"),
        ("198.51.100.1:81", "untouched", "no Service has the address and port"),
    ],
)
def test_it_says_what_becomes_of_what_no_service_has(where: str, met: str, reason: str) -> None:
    found = ask(POD, where, [LOCAL])
    assert (found.outcome.value, found.reasons) == (met, (reason,))


def test_it_says_all_that_a_client_would_wonder_at() -> None:
    found = ask(NEIGHBOUR, NODE_PORT, BOTH, externalTrafficPolicy="Local", sessionAffinity="ClientIP")
    assert found.render() == [
        "192.0.2.1:30080/TCP: shop/web:http",
        "from 10.244.1.5, a pod of this node: answered",
        "by one of 2: 10.244.1.5:8080 10.244.2.5:8080",
        "which sees the client itself",
        "  externalTrafficPolicy Local: this node and its pods may use all endpoints",
        "  it is an endpoint itself: where it is sent to itself it is seen as this node",
        "  session affinity: a client keeps its endpoint for 10800 s after a connection",
    ]


@pytest.mark.parametrize("text", ["10.96.0.1:80/TCP", "[fd00:96::1]:53/UDP", "10.96.0.1:65535/SCTP"])
def test_a_frontend_is_read_as_it_is_written(text: str) -> None:
    assert describe(parse_frontend(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "10.96.0.1", ":80", "10.96.0.1:", "10.96.0.1:0", "10.96.0.1:65536", "10.96.0.1:80/ICMP"),
        *("fd00:96::1:80", "[10.96.0.1]:80", "10.96.0.1:٣", "web:80", "10.96.0.1:9999999"),
    ],
)
def test_what_is_no_frontend_is_refused(text: str) -> None:
    with pytest.raises(CNIError) as caught:
        parse_frontend(text)
    assert caught.value.code == 7


@pytest.mark.parametrize("text", ["somewhere", "fd00::1", "10.244.1.0/24"])
def test_what_is_no_client_of_a_frontend_is_refused(text: str) -> None:
    with pytest.raises(CNIError) as caught:
        parse_client(text, parse_frontend(CLUSTER), AROUND)
    assert caught.value.code == 7


DYING = render_endpoint("10.244.1.5", "node1", ready=False, serving=False, terminating=True)
UNREADY = render_endpoint("10.244.2.5", "node2", ready=False, serving=False)


@pytest.mark.parametrize(
    ("slices", "policies", "found"),
    [
        ([], {}, ["wanted an EndpointSlice of IPv4, found no slice of it: does its selector match pods?"]),
        (
            [([render_endpoint("fd00:244::5", "node1")], [TARGET])],
            {},
            ["wanted an EndpointSlice of IPv4, found slices of IPv6 only: does its selector match pods?"],
        ),
        (
            [([LOCAL], [{"name": "dns", "port": 53, "protocol": "UDP"}])],
            {},
            ["wanted a port http/TCP in its slices, found dns/UDP: does targetPort name a port of the pods?"],
        ),
        (
            [([], [TARGET])],
            {},
            ["wanted an endpoint in its slices, found none: does its selector match running pods?"],
        ),
        (
            [([DYING, UNREADY], [TARGET])],
            {},
            ["wanted a ready endpoint, found 1 not ready and 1 terminating that do not serve"],
        ),
        (
            [([REMOTE], [TARGET])],
            {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"},
            [
                "internalTrafficPolicy Local: wanted an endpoint on this node, found 1 on others",
                "externalTrafficPolicy Local: wanted an endpoint on this node, found 1 on others",
            ],
        ),
        ([([LOCAL], [TARGET])], {"internalTrafficPolicy": "Local"}, []),
        ([([REMOTE], [TARGET])], {}, []),
    ],
)
def test_it_says_why_a_port_has_no_usable_endpoint(
    slices: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]],
    policies: dict[str, Any],
    found: list[str],
) -> None:
    service = parse_service(render_service("web", ["10.96.0.1"], [PORT], **policies))
    parsed = [parse_slice(render_slice("web-1", "web", *each)) for each in slices]
    assert explain_lack(service, service.ports[0], 4, parsed, HERE) == found
