"""What is kept of Services and slices, from the API's JSON: tables."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from netaddr import IPNetwork

from cni_plugin.cluster.service_objects import SERVICES, SLICES, ServicePort, parse_service, parse_slice
from tests.harness.api_objects import render_endpoint, render_service, render_slice

HTTP = {"name": "http", "port": 80, "protocol": "TCP"}


def packed(*texts: str) -> tuple[bytes, ...]:
    return tuple(ip_address(text).packed for text in texts)


def ingress(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"status": {"loadBalancer": {"ingress": list(entries)}}}


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        ({}, {"cluster_addresses": packed("10.96.0.1", "fd00:96::1"), "created": "2026-01-01T00:00:00Z"}),
        ({"clusterIPs": None}, {"cluster_addresses": packed("10.96.0.1")}),
        ({"clusterIPs": None, "clusterIP": "fd00:96::1"}, {"cluster_addresses": packed("fd00:96::1")}),
        ({"clusterIP": None}, {"cluster_addresses": ()}),
        ({"clusterIP": ""}, {"cluster_addresses": ()}),
        ({"clusterIP": "None", "clusterIPs": ["None"]}, {"cluster_addresses": (), "faults": ()}),
        ({"clusterIP": "None", "externalIPs": ["198.51.100.1"]}, {"external_addresses": (), "ports": ()}),
        # The cluster address is still there while the type changes.
        ({"type": "ExternalName", "externalName": "example.com"}, {"cluster_addresses": (), "ports": ()}),
        ({"externalIPs": None}, {"external_addresses": ()}),
        ({"externalIPs": ["198.51.100.1"] * 2}, {"external_addresses": packed("198.51.100.1")}),
        (
            {"externalIPs": ["198.51.100.1", "198.51.100", "2001:db8::1", "10.0.0.010"]},
            {
                "external_addresses": packed("198.51.100.1", "2001:db8::1"),
                "faults": (
                    'externalIPs: wanted an IP address, found "198.51.100"',
                    'externalIPs: wanted an IP address, found "10.0.0.010"',
                ),
            },
        ),
        ({"status": {}}, {"balancer_addresses": ()}),
        ({"status": {"loadBalancer": {"ingress": None}}}, {"balancer_addresses": ()}),
        (ingress({"ip": "198.51.100.2"}), {"balancer_addresses": packed("198.51.100.2")}),
        (
            ingress({"ip": "198.51.100.2", "ipMode": "VIP"}),
            {"balancer_addresses": packed("198.51.100.2")},
        ),
        (ingress({"ip": "198.51.100.2", "ipMode": None}), {"balancer_addresses": packed("198.51.100.2")}),
        (ingress({"ip": "198.51.100.2", "ipMode": "Proxy"}), {"balancer_addresses": ()}),
        (ingress({"hostname": "balancer.example"}), {"balancer_addresses": (), "faults": ()}),
        (ingress({"ip": "x"}), {"faults": ('status.loadBalancer: wanted an IP address, found "x"',)}),
        ({"loadBalancerSourceRanges": []}, {"sources": None}),
        (
            {"loadBalancerSourceRanges": [" 203.0.113.7/24 ", "2001:db8::/32"]},
            {"sources": (IPNetwork("203.0.113.0/24"), IPNetwork("2001:db8::/32"))},
        ),
        # A range that cannot be read opens nothing.
        (
            {"loadBalancerSourceRanges": ["203.0.113.0"]},
            {
                "sources": (),
                "faults": (
                    'loadBalancerSourceRanges must be an address with a prefix length, found "203.0.113.0"',
                ),
            },
        ),
        ({"externalTrafficPolicy": "Local"}, {"external_local": True, "internal_local": False}),
        ({"internalTrafficPolicy": "Local"}, {"external_local": False, "internal_local": True}),
        ({"externalTrafficPolicy": "Cluster", "internalTrafficPolicy": None}, {"external_local": False}),
        ({"sessionAffinity": "None"}, {"affinity": 0}),
        ({"sessionAffinity": "ClientIP"}, {"affinity": 10800}),
        (
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}},
            {"affinity": 5},
        ),
        ({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}, {"affinity": 0}),
        ({"healthCheckNodePort": 32000}, {"health_port": 0}),
        ({"healthCheckNodePort": 32000, "externalTrafficPolicy": "Local"}, {"health_port": 32000}),
        # publishNotReadyAddresses and trafficDistribution are in the slices already.
        ({"publishNotReadyAddresses": True, "trafficDistribution": "PreferClose"}, {"faults": ()}),
    ],
)
def test_of_a_service_is_kept(spec: dict[str, Any], kept: dict[str, Any]) -> None:
    service = parse_service(render_service("web", ["10.96.0.1", "fd00:96::1"], [HTTP], **spec))
    assert (service.key, {key: getattr(service, key) for key in kept}) == ("shop/web", kept)


@pytest.mark.parametrize(
    ("port", "kept"),
    [
        (HTTP, [ServicePort("http", 6, 80, 0)]),
        ({"port": 80}, [ServicePort("", 6, 80, 0)]),
        ({**HTTP, "name": None, "nodePort": 30080}, [ServicePort("", 6, 80, 30080)]),
        ({**HTTP, "protocol": "UDP", "appProtocol": "x"}, [ServicePort("http", 17, 80, 0)]),
        ({**HTTP, "protocol": "SCTP", "targetPort": "web"}, [ServicePort("http", 132, 80, 0)]),
        ({**HTTP, "protocol": "DCCP"}, []),
        ({"name": "http"}, []),
    ],
)
def test_of_a_service_s_port_is_kept(port: dict[str, Any], kept: list[ServicePort]) -> None:
    assert list(parse_service(render_service("web", ["10.96.0.1"], [port])).ports) == kept


def test_what_an_api_may_leave_out_is_not_missed() -> None:
    assert parse_service({}).cluster_addresses == ()
    assert parse_service({"metadata": None, "spec": {"clusterIP": "10.96.0.1"}}).ports == ()
    bare = {"addressType": "IPv4", "metadata": {"labels": {"kubernetes.io/service-name": "web"}}}
    assert (parse_slice(bare).ports, parse_slice(bare).endpoints) == ((), ())


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, ("shop/web", 4, 1)),
        ({"addressType": "IPv6"}, ("shop/web", 6, 0)),
        ({"addressType": "FQDN"}, ("", 0, 0)),
        ({"addressType": "IP"}, ("", 0, 0)),
        ({"metadata": {"namespace": "shop", "name": "x", "labels": None}}, ("", 0, 0)),
    ],
)
def test_a_slice_belongs_to_a_service_and_a_family(
    changes: dict[str, Any], kept: tuple[str, int, int]
) -> None:
    raw = render_slice("web-1", "web", [render_endpoint("10.244.1.5", "node1")], [HTTP]) | changes
    found = parse_slice(raw)
    assert (found.service, found.version, len(found.endpoints)) == kept


@pytest.mark.parametrize(
    ("port", "kept"),
    [
        ({"name": "http", "port": 8080, "protocol": "TCP"}, [("http", 6, 8080)]),
        ({"name": None, "port": 8080}, [("", 6, 8080)]),
        # All ports: no proxy has that.
        ({"name": "http", "port": None, "protocol": "TCP"}, []),
        ({"name": "http", "port": 0, "protocol": "TCP"}, []),
    ],
)
def test_of_a_slice_s_port_is_kept(port: dict[str, Any], kept: list[tuple[str, int, int]]) -> None:
    assert list(parse_slice(render_slice("web-1", "web", [], [port])).ports) == kept


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        (None, (True, True, False)),
        ({}, (True, True, False)),
        ({"ready": None, "serving": None, "terminating": None}, (True, True, False)),
        ({"ready": False}, (False, False, False)),
        ({"ready": False, "serving": True, "terminating": True}, (False, True, True)),
        ({"ready": False, "serving": False, "terminating": True}, (False, False, True)),
    ],
)
def test_what_conditions_leave_open(conditions: dict[str, Any] | None, kept: tuple[bool, ...]) -> None:
    raw = {"addresses": ["10.244.1.5"], "conditions": conditions}
    (found,) = parse_slice(render_slice("web-1", "web", [raw], [HTTP])).endpoints
    assert (found.ready, found.serving, found.terminating) == kept
    assert (found.node, found.zone_hints, found.node_hints) == ("", (), ())


def test_the_first_address_of_an_endpoint_counts_and_wrong_ones_are_named() -> None:
    endpoints = [
        {"addresses": ["10.244.1.5", "10.244.1.6"], "nodeName": "node1"},
        {"addresses": ["fd00::1"]},
        {"addresses": ["web.example"]},
        {
            "addresses": ["10.244.1.7"],
            "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "node1"}]},
        },
    ]
    found = parse_slice(render_slice("web-1", "web", endpoints, [HTTP]))
    assert [each.address for each in found.endpoints] == list(packed("10.244.1.5", "10.244.1.7"))
    assert found.endpoints[1][-2:] == (("a",), ("node1",))
    assert found.faults == (
        'endpoints: wanted an IPv4 address, found "fd00::1"',
        'endpoints: wanted an IPv4 address, found "web.example"',
    )


def test_the_server_leaves_out_what_is_others_business() -> None:
    wanted = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless"
    assert {SERVICES.label_selector, SLICES.label_selector} == {wanted}
