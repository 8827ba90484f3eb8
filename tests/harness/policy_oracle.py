"""A second, naive evaluator of NetworkPolicy: from the API's objects, and nothing of the product's."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Attempt:
    """A connection, as one end of it sees it."""

    direction: str
    other: str
    target: dict[str, Any] | None
    protocol: str
    port: int


@dataclass
class World:
    """The objects of a cluster as the API has them, by their keys."""

    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    namespaces: dict[str, dict[str, Any]] = field(default_factory=dict)
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)

    def owner(self, address: str) -> dict[str, Any] | None:
        """Return the pod that has an address: of several the newest that lives."""
        having = [pod for pod in self.pods.values() if address in _addresses(pod) and _counts(pod)]
        return max(having, key=_age, default=None)

    def allows(self, source: str, destination: str, protocol: str, port: int) -> dict[str, bool]:
        """Return what each end says that a pod is at."""
        found = {}
        for direction, mine, other in (("Egress", source, destination), ("Ingress", destination, source)):
            pod = self.owner(mine)
            if pod is not None:
                attempt = Attempt(direction, other, self.owner(destination), protocol, port)
                found[direction] = self._end_allows(pod, attempt)
        return found

    def _end_allows(self, pod: dict[str, Any], attempt: Attempt) -> bool:
        namespace, direction = pod["metadata"]["namespace"], attempt.direction
        selecting = [
            p["spec"]
            for p in self.policies.values()
            if p["metadata"]["namespace"] == namespace
            and _selects(p["spec"].get("podSelector") or {}, pod["metadata"].get("labels", {}))
            and direction in _types(p["spec"])
        ]
        if not selecting or attempt.other in _addresses(pod):
            return True
        side, kind = ("from", "ingress") if direction == "Ingress" else ("to", "egress")
        for spec in selecting:
            for rule in spec.get(kind) or []:
                for peer in rule.get(side) or [None]:
                    if peer is not None and not self._is_peer(peer, attempt.other, namespace):
                        continue
                    named = direction == "Ingress" or peer is None or "ipBlock" not in peer
                    if any(_is_port(each, attempt, named) for each in rule.get("ports") or [None]):
                        return True
        return False

    def _is_peer(self, peer: dict[str, Any], address: str, namespace: str) -> bool:
        block = peer.get("ipBlock")
        if block:
            ip = ipaddress.ip_address(address)
            inside = ip in ipaddress.ip_network(block["cidr"], strict=False)
            return inside and not any(
                ip in ipaddress.ip_network(each, strict=False) for each in block.get("except") or []
            )
        pod = self.owner(address)
        if pod is None:
            return False
        there = pod["metadata"]["namespace"]
        if "namespaceSelector" in peer:
            selector = peer["namespaceSelector"]
            if there not in self.namespaces and any(selector.values()):
                return False
            labels = self.namespaces.get(there, {}).get("metadata", {}).get("labels", {})
            if not _selects(selector, labels):
                return False
        elif there != namespace:
            return False
        return _selects(peer.get("podSelector") or {}, pod["metadata"].get("labels", {}))


def _addresses(pod: dict[str, Any]) -> list[str]:
    return [each["ip"] for each in pod["status"].get("podIPs", [])]


def _counts(pod: dict[str, Any]) -> bool:
    ended = pod["status"].get("phase") in {"Succeeded", "Failed"}
    return not ended and not pod["spec"].get("hostNetwork")


def _types(spec: dict[str, Any]) -> list[str]:
    return spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for term in selector.get("matchExpressions") or []:
        has, operator = term["key"] in labels, term["operator"]
        among = has and labels[term["key"]] in (term.get("values") or [])
        wanted = {"In": among, "NotIn": not among, "Exists": has, "DoesNotExist": not has}
        if not wanted.get(operator, False):
            return False
    return True


def _is_port(wanted: dict[str, Any] | None, attempt: Attempt, named: bool) -> bool:
    """Tell whether it is the wanted port; what is no pod has none by name."""
    if wanted is None:
        return True
    if wanted.get("protocol", "TCP") != attempt.protocol:
        return False
    number = wanted.get("port")
    if number is None:
        return True
    if isinstance(number, int):
        return bool(number <= attempt.port <= (wanted.get("endPort") or number))
    if attempt.target is None or not named:
        return False
    ports = [p for c in attempt.target["spec"].get("containers", []) for p in c.get("ports", [])]
    return any(
        (p.get("name"), p.get("protocol", "TCP"), p["containerPort"])
        == (number, attempt.protocol, attempt.port)
        for p in ports
    )


def _age(pod: dict[str, Any]) -> tuple[str, str]:
    return pod["metadata"]["creationTimestamp"], pod["metadata"]["uid"]
