"""Objects of the API, reduced to what policies need: Pod, namespaces, NetworkPolicy.

What cannot be is passed over where that allows nothing: a rule's peer that is none matches nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from sys import intern
from typing import TYPE_CHECKING, Any, NamedTuple

from netaddr import AddrFormatError, IPNetwork

from cni_plugin.cluster.resources import Resource
from cni_plugin.cluster.selectors import EVERYTHING, Selector, parse_selector
from cni_plugin.cluster.service_objects import PROTOCOLS, pack_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_ENDED = {"Succeeded", "Failed"}
_STATIC = "kubernetes.io/config.hash"  # of a static pod's mirror: what its runtime is told as UID
_HIGHEST = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod; `ports` are its named ones: name, protocol and number."""

    namespace: str
    name: str
    uid: str = ""
    static_uid: str = ""
    node: str = ""
    created: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[bytes, ...] = ()
    ports: tuple[tuple[str, int, int], ...] = ()
    host_network: bool = False
    ended: bool = False
    """Its containers have: its addresses may be another pod's by now."""

    @property
    def key(self) -> str:
        """Return what it is known by."""
        return f"{self.namespace}/{self.name}"

    @property
    def counts(self) -> bool:
        """Tell whether policies are about it: one on the node's network is the node."""
        return not self.ended and not self.host_network


@dataclass(frozen=True, slots=True, kw_only=True)
class PodNamespace:
    """A namespace's labels."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


class PolicyPort(NamedTuple):
    """A rule's port: from `first` to `last`, or a name; neither for all of the protocol's."""

    protocol: int
    first: int = 0
    last: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """An ipBlock: a network without some of its parts."""

    cidr: IPNetwork
    excepted: tuple[IPNetwork, ...] = ()

    def __str__(self) -> str:
        """Return it as people write it."""
        without = f" but not {' '.join(map(str, self.excepted))}" if self.excepted else ""
        return f"{self.cidr}{without}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyPeer:
    """Whom a rule is about: an ipBlock, or pods of a namespace or of those that a selector selects."""

    block: Block | None = None
    namespace: str = ""
    namespaces: Selector | None = None
    pods: Selector = EVERYTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRule:
    """A rule: any of the peers, None for everybody, at any of the ports, None for all protocols."""

    peers: tuple[PolicyPeer, ...] | None = None
    ports: tuple[PolicyPort, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPolicy:
    """A NetworkPolicy; None for the rules of a direction that it says nothing of."""

    namespace: str
    name: str
    pods: Selector = EVERYTHING
    ingress: tuple[PolicyRule, ...] | None = None
    egress: tuple[PolicyRule, ...] | None = None

    @property
    def key(self) -> str:
        """Return what it is known by."""
        return f"{self.namespace}/{self.name}"


def parse_pod(raw: dict[str, Any]) -> Pod:
    """Return what the API's JSON says of a pod."""
    metadata, spec, status = (raw.get(key) or {} for key in ("metadata", "spec", "status"))
    addresses = [each.get("ip") for each in status.get("podIPs") or ()] or [status.get("podIP")]
    return Pod(
        namespace=intern(metadata.get("namespace") or ""),
        name=metadata.get("name") or "",
        uid=metadata.get("uid") or "",
        static_uid=(metadata.get("annotations") or {}).get(_STATIC) or "",
        node=intern(spec.get("nodeName") or ""),
        created=metadata.get("creationTimestamp") or "",
        labels=_intern_all(metadata.get("labels")),
        addresses=tuple(filter(None, map(pack_address, addresses))),
        ports=tuple(_list_named_ports(spec)),
        host_network=bool(spec.get("hostNetwork")),
        ended=status.get("phase") in _ENDED,
    )


def _intern_all(labels: dict[str, str] | None) -> dict[str, str]:
    return {intern(key): intern(value) for key, value in (labels or {}).items()}


def _list_named_ports(spec: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Yield the named ports of containers, and of those beside them that live as long (sidecars)."""
    sidecars = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    for container in (*(spec.get("containers") or ()), *sidecars):
        for port in container.get("ports") or ():
            protocol = PROTOCOLS.get(port.get("protocol") or "TCP")
            if port.get("name") and protocol and port.get("containerPort"):
                yield intern(port["name"]), protocol, port["containerPort"]


def parse_namespace(raw: dict[str, Any]) -> PodNamespace:
    """Return what the API's JSON says of a namespace."""
    metadata = raw.get("metadata") or {}
    return PodNamespace(name=metadata.get("name") or "", labels=_intern_all(metadata.get("labels")))


def parse_policy(raw: dict[str, Any]) -> NetworkPolicy:
    """Return what the API's JSON (networking.k8s.io/v1) says of a NetworkPolicy."""
    metadata, spec = raw.get("metadata") or {}, raw.get("spec") or {}
    namespace = metadata.get("namespace") or ""
    types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    return NetworkPolicy(
        namespace=namespace,
        name=metadata.get("name") or "",
        pods=parse_selector(spec.get("podSelector")) or EVERYTHING,
        ingress=_parse_rules(spec, "ingress", "from", namespace) if "Ingress" in types else None,
        egress=_parse_rules(spec, "egress", "to", namespace) if "Egress" in types else None,
    )


def _parse_rules(spec: dict[str, Any], kind: str, side: str, namespace: str) -> tuple[PolicyRule, ...]:
    return tuple(_parse_rule(rule or {}, side, namespace) for rule in spec.get(kind) or ())


def _parse_rule(rule: dict[str, Any], side: str, namespace: str) -> PolicyRule:
    peers, ports = rule.get(side), rule.get("ports")
    return PolicyRule(
        peers=tuple(_parse_peers(peers, namespace)) if peers else None,
        ports=tuple(_parse_ports(ports)) if ports else None,
    )


def _parse_peers(peers: Iterable[dict[str, Any]], namespace: str) -> Iterator[PolicyPeer]:
    for peer in peers:
        namespaces = parse_selector(peer.get("namespaceSelector"))
        pods = parse_selector(peer.get("podSelector"))
        if peer.get("ipBlock"):
            yield from _parse_block(peer["ipBlock"])
        elif namespaces is not None:
            yield PolicyPeer(namespaces=namespaces, pods=EVERYTHING if pods is None else pods)
        elif pods is not None:
            yield PolicyPeer(namespace=namespace, pods=pods)


def _parse_block(raw: dict[str, Any]) -> Iterator[PolicyPeer]:
    """Yield an ipBlock; none when a part cannot be read: it must not allow what is excepted."""
    try:
        cidr = IPNetwork(raw.get("cidr") or "").cidr
        excepted = [IPNetwork(each).cidr for each in raw.get("except") or ()]
    except (AddrFormatError, ValueError, TypeError):
        return
    if not any(cidr in each for each in excepted):
        yield PolicyPeer(
            block=Block(cidr=cidr, excepted=tuple(sorted(each for each in excepted if each in cidr)))
        )


def _parse_ports(ports: Iterable[dict[str, Any]]) -> Iterator[PolicyPort]:
    for each in ports:
        protocol = PROTOCOLS.get(each.get("protocol") or "TCP")
        port, last = each.get("port"), each.get("endPort")
        if not protocol:
            continue
        if port is None:
            yield PolicyPort(protocol)
        elif isinstance(port, str):
            yield PolicyPort(protocol, name=port)
        elif 0 < port <= (last or port) <= _HIGHEST:
            yield PolicyPort(protocol, port, last or port)


NAMESPACES: Resource[PodNamespace] = Resource(
    name="namespaces", path="/api/v1/namespaces", parse=parse_namespace, page=500
)
POLICIES: Resource[NetworkPolicy] = Resource(
    name="networkpolicies",
    path="/apis/networking.k8s.io/v1/networkpolicies",
    parse=parse_policy,
    page=500,
)
PODS: Resource[Pod] = Resource(name="pods", path="/api/v1/pods", parse=parse_pod, page=500)
