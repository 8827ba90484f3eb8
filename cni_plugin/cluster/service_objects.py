"""Objects of the Kubernetes API, reduced to what a node needs of them: Service and EndpointSlice.

There may be ten thousands of each: addresses are packed, names interned, and everything else is dropped
as soon as it is read. What cannot be, such as an address that is none, is passed over and named.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from sys import intern
from typing import TYPE_CHECKING, Any, NamedTuple

from cni_plugin.cluster.resources import Resource
from cni_plugin.contract.errors import CNIError
from cni_plugin.contract.inet import parse_cidr

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from netaddr import IPNetwork

# linux/in.h
PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_FAMILIES = {"IPv4": 4, "IPv6": 6}
_NO_ADDRESS = {"", "None"}
_DEFAULT_TIMEOUT = 10800  # seconds, of session affinity
# Others' business: a proxy of another name, and Services whose clients ask DNS for the endpoints.
_OTHERS = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless"


class ServicePort(NamedTuple):
    """A port of a Service; `name` is what ties it to the ports of its slices."""

    name: str
    protocol: int
    port: int
    node_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A Service; `affinity` in seconds, 0 without."""

    namespace: str
    name: str
    created: str = ""
    """When, as RFC 3339 writes it in UTC: text that sorts by time."""
    cluster_addresses: tuple[bytes, ...] = ()
    external_addresses: tuple[bytes, ...] = ()
    balancer_addresses: tuple[bytes, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    sources: tuple[IPNetwork, ...] | None = None
    """Who may ask a balancer's address; None for everybody."""
    external_local: bool = False
    internal_local: bool = False
    affinity: int = 0
    health_port: int = 0
    faults: tuple[str, ...] = ()
    """What was passed over."""

    @property
    def key(self) -> str:
        """Return what it is known by."""
        return f"{self.namespace}/{self.name}"


class SlicePort(NamedTuple):
    """A port of all endpoints of a slice."""

    name: str
    protocol: int
    port: int


class SliceEndpoint(NamedTuple):
    """An endpoint; the hints say for which zones and nodes it is meant."""

    address: bytes
    node: str
    ready: bool
    serving: bool
    terminating: bool
    zone_hints: tuple[str, ...]
    node_hints: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """An EndpointSlice of a Service, which `service` names as it is known by."""

    service: str
    version: int = 0
    """The family of its addresses; 0 for one that is of no use."""
    ports: tuple[SlicePort, ...] = ()
    endpoints: tuple[SliceEndpoint, ...] = ()
    faults: tuple[str, ...] = ()
    """What was passed over."""


def pack_address(text: object) -> bytes:
    """Return an address as the kernel has it; empty for what is none."""
    if not isinstance(text, str):
        return b""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        return b""


def parse_service(raw: dict[str, Any]) -> Service:
    """Return what the API's JSON says of a Service; one without frontends when it is none of a node's."""
    metadata, spec = raw.get("metadata") or {}, raw.get("spec") or {}
    found = Service(namespace=metadata.get("namespace") or "", name=metadata.get("name") or "")
    if spec.get("type") == "ExternalName" or spec.get("clusterIP") in _NO_ADDRESS | {None}:
        return found
    addresses = spec.get("clusterIPs") or [spec["clusterIP"]]
    local = spec.get("externalTrafficPolicy") == "Local"
    faults: list[str] = []
    return Service(
        namespace=found.namespace,
        name=found.name,
        created=metadata.get("creationTimestamp") or "",
        cluster_addresses=_pack_all("clusterIPs", addresses, faults),
        external_addresses=_pack_all("externalIPs", spec.get("externalIPs") or (), faults),
        balancer_addresses=_pack_all("status.loadBalancer", _list_balancers(raw), faults),
        ports=tuple(_parse_ports(spec.get("ports") or ())),
        sources=_parse_sources(spec.get("loadBalancerSourceRanges"), faults),
        external_local=local,
        internal_local=spec.get("internalTrafficPolicy") == "Local",
        affinity=_parse_affinity(spec),
        health_port=spec.get("healthCheckNodePort") or 0 if local else 0,
        faults=tuple(faults),
    )


def _pack_all(key: str, texts: Iterable[object], faults: list[str]) -> tuple[bytes, ...]:
    found = {text: pack_address(text) for text in texts}
    faults += [f'{key}: wanted an IP address, found "{text}"' for text, packed in found.items() if not packed]
    return tuple(dict.fromkeys(filter(None, found.values())))


def _list_balancers(raw: dict[str, Any]) -> Iterator[object]:
    """Yield the balancer's addresses; of mode Proxy packets have to leave for the balancer."""
    status = (raw.get("status") or {}).get("loadBalancer") or {}
    for ingress in status.get("ingress") or ():
        if ingress.get("ip") and ingress.get("ipMode") != "Proxy":
            yield ingress["ip"]


def _parse_ports(ports: Iterable[dict[str, Any]]) -> Iterator[ServicePort]:
    for port in ports:
        protocol = PROTOCOLS.get(port.get("protocol") or "TCP")
        if protocol and port.get("port"):
            name = intern(port.get("name") or "")
            yield ServicePort(name, protocol, port["port"], port.get("nodePort") or 0)


def _parse_sources(texts: Iterable[str] | None, faults: list[str]) -> tuple[IPNetwork, ...] | None:
    """Return the ranges, None without any; one that cannot be read opens nothing."""
    if not texts:
        return None
    found = []
    for text in texts:
        try:
            found.append(parse_cidr(text.strip(), "loadBalancerSourceRanges").cidr)
        except CNIError as error:
            faults.append(error.msg)
    return tuple(found)


def _parse_affinity(spec: dict[str, Any]) -> int:
    if spec.get("sessionAffinity") != "ClientIP":
        return 0
    config = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
    return config.get("timeoutSeconds") or _DEFAULT_TIMEOUT


def parse_slice(raw: dict[str, Any]) -> Slice:
    """Return what the API's JSON (discovery.k8s.io/v1) says of a slice."""
    metadata = raw.get("metadata") or {}
    name = (metadata.get("labels") or {}).get("kubernetes.io/service-name") or ""
    version = _FAMILIES.get(raw.get("addressType") or "", 0)
    if not (name and version):
        return Slice(service="")
    faults: list[str] = []
    return Slice(
        service=intern(f"{metadata.get('namespace')}/{name}"),
        version=version,
        ports=tuple(_parse_slice_ports(raw.get("ports") or ())),
        endpoints=tuple(_parse_endpoints(raw.get("endpoints") or (), version, faults)),
        faults=tuple(faults),
    )


def _parse_slice_ports(ports: Iterable[dict[str, Any]]) -> Iterator[SlicePort]:
    """Yield the ports; one without a number means all, which no proxy has."""
    for port in ports:
        protocol = PROTOCOLS.get(port.get("protocol") or "TCP")
        if protocol and port.get("port"):
            yield SlicePort(intern(port.get("name") or ""), protocol, port["port"])


def _parse_endpoints(
    endpoints: Iterable[dict[str, Any]], version: int, faults: list[str]
) -> Iterator[SliceEndpoint]:
    length = 4 if version == 4 else 16
    for endpoint in endpoints:
        addresses = endpoint.get("addresses") or [""]
        address = pack_address(addresses[0])  # further ones are of no proxy's use
        if len(address) != length:
            faults.append(f'endpoints: wanted an IPv{version} address, found "{addresses[0]}"')
            continue
        conditions, hints = endpoint.get("conditions") or {}, endpoint.get("hints") or {}
        ready = conditions.get("ready") is not False
        serving = conditions.get("serving")
        yield SliceEndpoint(
            address,
            intern(endpoint.get("nodeName") or ""),
            ready,
            ready if serving is None else bool(serving),
            bool(conditions.get("terminating")),
            tuple(intern(zone["name"]) for zone in hints.get("forZones") or () if zone.get("name")),
            tuple(intern(node["name"]) for node in hints.get("forNodes") or () if node.get("name")),
        )


# Some KB of JSON each.
SERVICES: Resource[Service] = Resource(
    name="services", path="/api/v1/services", parse=parse_service, page=500, label_selector=_OTHERS
)
SLICES: Resource[Slice] = Resource(
    name="endpointslices",
    path="/apis/discovery.k8s.io/v1/endpointslices",
    parse=parse_slice,
    page=500,
    label_selector=_OTHERS,
)
