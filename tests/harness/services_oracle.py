"""Who answers at which frontend, said again from the API's objects: slow, whole, and by other code.

It asks for each frontend and each kind of client, as the documentation of Kubernetes does, and keeps
nothing between two questions. It shares nothing with the program, so that both have to be wrong alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

REFUSED, DROPPED = "refused", "dropped"
Answer = frozenset[tuple[str, int]] | str
"""The endpoints that may answer, as addresses and ports, or what the client meets instead."""


class Place(NamedTuple):
    """A frontend."""

    address: str
    protocol: str
    port: int


class Row(NamedTuple):
    """What clients meet at a frontend; the flags are those of the endpoint's view of the client."""

    service: str
    outside: Answer
    inside: Answer
    """The node and its pods."""
    masqueraded: bool
    node_masqueraded: bool
    keep: int
    sources: frozenset[str] | None
    is_cluster: bool
    kept: frozenset[tuple[str, int]]
    """Whose UDP flows live on."""


@dataclass(frozen=True)
class Oracle:
    """The cluster as the API shows it, and a node of it."""

    services: dict[str, dict[str, Any]]
    slices: dict[str, dict[str, Any]]
    node: str
    zone: str = ""
    node_addresses: tuple[str, ...] = ()
    masquerade_all: bool = False

    def rows(self) -> dict[Place, Row]:
        """Return what is met at each frontend; the oldest Service that claims one has it."""
        found: dict[Place, Row] = {}
        ages = {key: (raw["metadata"]["creationTimestamp"], key) for key, raw in self.services.items()}
        for key in sorted(self.services, key=ages.__getitem__):
            for place, row in self._rows_of(key):
                found.setdefault(place, row)
        return found

    def health(self) -> dict[int, int]:
        """Return the ready endpoints on the node by the health check port that says so."""
        found = {}
        for key, raw in self.services.items():
            spec = raw["spec"]
            port = spec.get("healthCheckNodePort")
            if port and spec.get("externalTrafficPolicy") == "Local" and self._has_frontends(raw):
                counts = [0]
                for version in self._versions(spec):
                    pods = set()
                    for each in spec["ports"]:
                        here = [e for e in self._endpoints(key, each, version) if e["here"] and e["ready"]]
                        pods |= {e["at"][0] for e in here}
                    counts.append(len(pods))
                found[port] = max(counts)
        return found

    def _has_frontends(self, raw: dict[str, Any]) -> bool:
        spec = raw["spec"]
        return spec.get("type") != "ExternalName" and spec.get("clusterIP") not in (None, "", "None")

    def _rows_of(self, key: str) -> list[tuple[Place, Row]]:
        raw = self.services[key]
        spec = raw["spec"]
        if not self._has_frontends(raw):
            return []
        balancers = [
            each["ip"]
            for each in raw["status"].get("loadBalancer", {}).get("ingress", [])
            if each.get("ip") and each.get("ipMode") != "Proxy"
        ]
        kinds = {
            "cluster": spec.get("clusterIPs", [spec["clusterIP"]]),
            "balancer": balancers,
            "external": spec.get("externalIPs", []),
            "node": self.node_addresses,
        }
        return [
            self._row(key, port, address, kind, port["nodePort" if kind == "node" else "port"])
            for port in spec["ports"]
            for kind, addresses in kinds.items()
            for address in addresses
            if kind != "node" or port.get("nodePort")
            if ip_address(address).version in self._versions(spec)
        ]

    def _versions(self, spec: dict[str, Any]) -> set[int]:
        """Return the families of a Service: those of its cluster addresses."""
        return {ip_address(each).version for each in spec.get("clusterIPs", [spec["clusterIP"]])}

    def _row(self, key: str, port: dict[str, Any], address: str, kind: str, number: int) -> tuple[Place, Row]:
        spec = self.services[key]["spec"]
        version = ip_address(address).version
        policy = "internalTrafficPolicy" if kind == "cluster" else "externalTrafficPolicy"
        is_local = spec.get(policy) == "Local"
        endpoints = self._endpoints(key, port, version)
        everywhere, here = self._usable(endpoints), self._usable([e for e in endpoints if e["here"]])
        if is_local:
            outside: Answer = here or (DROPPED if everywhere else REFUSED)
            inside = outside if kind == "cluster" else everywhere or REFUSED
        else:
            outside = inside = self._near(endpoints) or everywhere or REFUSED
        sources = None
        if kind == "balancer" and spec.get("loadBalancerSourceRanges"):
            ranges = map(ip_network, spec["loadBalancerSourceRanges"])
            sources = frozenset(str(each) for each in ranges if each.version == version)
        affinity = spec.get("sessionAffinityConfig", {}).get("clientIP", {}).get("timeoutSeconds", 10800)
        row = Row(
            service=key,
            outside=outside,
            inside=inside,
            masqueraded=self.masquerade_all if kind == "cluster" else not is_local,
            node_masqueraded=kind != "cluster",
            keep=affinity if spec.get("sessionAffinity") == "ClientIP" else 0,
            sources=sources,
            is_cluster=kind == "cluster",
            kept=frozenset(e["at"] for e in endpoints if e["serving"] or e["ready"]),
        )
        return Place(str(ip_address(address)), port.get("protocol", "TCP"), number), row

    def _usable(self, endpoints: list[dict[str, Any]]) -> frozenset[tuple[str, int]]:
        ready = frozenset(e["at"] for e in endpoints if e["ready"])
        return ready or frozenset(e["at"] for e in endpoints if e["serving"] and e["terminating"])

    def _near(self, endpoints: list[dict[str, Any]]) -> frozenset[tuple[str, int]]:
        ready = [e for e in endpoints if e["ready"]]
        for hint, mine in (("forNodes", self.node), ("forZones", self.zone)):
            if mine and all(e[hint] for e in ready):
                near = frozenset(e["at"] for e in ready if mine in e[hint])
                if near:
                    return near
        return frozenset()

    def _endpoints(self, key: str, port: dict[str, Any], version: int) -> list[dict[str, Any]]:
        """Return each endpoint once; of two that say different things the better one is believed."""
        namespace, _, name = key.partition("/")
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for each in self.slices.values():
            metadata = each["metadata"]
            owner = metadata["namespace"], metadata["labels"].get("kubernetes.io/service-name")
            if owner != (namespace, name) or each["addressType"] != f"IPv{version}":
                continue
            for target in each["ports"]:
                if (target.get("name") or "") != (port.get("name") or "") or not target.get("port"):
                    continue
                if target.get("protocol", "TCP") != port.get("protocol", "TCP"):
                    continue
                for raw in each["endpoints"]:
                    said = self._read(raw, target["port"])
                    held = found.get(said["at"])
                    if held is None or self._credit(said) > self._credit(held):
                        found[said["at"]] = said
        return list(found.values())

    def _credit(self, said: dict[str, Any]) -> tuple[Any, ...]:
        ties = said["node"], said["terminating"], said["forZones"], said["forNodes"]
        return said["here"], said["ready"], said["serving"], *ties

    def _read(self, raw: dict[str, Any], port: int) -> dict[str, Any]:
        conditions = raw.get("conditions", {})
        ready = conditions.get("ready") in (True, None)
        serving = conditions.get("serving")
        hints = raw.get("hints", {})
        return {
            "at": (str(ip_address(raw["addresses"][0])), port),
            "node": raw.get("nodeName", ""),
            "here": raw.get("nodeName") == self.node,
            "ready": ready,
            "serving": ready if serving is None else serving,
            "terminating": conditions.get("terminating") is True,
            "forNodes": [hint["name"] for hint in hints.get("forNodes", [])],
            "forZones": [hint["name"] for hint in hints.get("forZones", [])],
        }
