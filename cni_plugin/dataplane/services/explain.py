"""Says what a client meets at a frontend and why, and why a port has no usable endpoint. Pure.

It follows a packet through the table of Services: source ranges, translation, what is refused behind it,
and as whom the endpoint sees the client.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from cni_plugin.contract.errors import invalid_config
from cni_plugin.contract.inet import parse_ip
from cni_plugin.dataplane.services.desired import describe
from cni_plugin.dataplane.services.endpoints import choose
from cni_plugin.dataplane.services.plan import PROTOCOL_NAMES, PROTOCOLS, Frontend
from cni_plugin.kernel.message import pack_address, parse_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from netaddr import IPNetwork

    from cni_plugin.cluster.service_objects import Service, ServicePort, Slice, SliceEndpoint
    from cni_plugin.dataplane.services.endpoints import Here
    from cni_plugin.dataplane.services.plan import Endpoint, FrontendPlan, Surroundings

_LAST_PORT = 65535
_MOST_SHOWN = 20  # endpoints


class Origin(Enum):
    """Where a client is, as far as it makes a difference."""

    POD = "pod"
    NODE = "node"
    ELSEWHERE = "elsewhere"
    OUTSIDE = "outside"

    @property
    def text(self) -> str:
        """Return it as people say it."""
        return {
            Origin.POD: "a pod of this node",
            Origin.NODE: "this node",
            Origin.ELSEWHERE: "a pod or a node elsewhere in the cluster",
            Origin.OUTSIDE: "outside of the cluster",
        }[self]

    @property
    def is_inside(self) -> bool:
        """Tell whether it is this node or one of its pods."""
        return self in {Origin.POD, Origin.NODE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Who asks; without an address it is anybody of that origin."""

    origin: Origin
    address: bytes = b""


class Fate(Enum):
    """What becomes of a new connection."""

    ANSWERED = "answered"
    REFUSED = "refused"
    DROPPED = "dropped"
    UNTOUCHED = "untouched"
    """It is no frontend of Services, and goes where it would without them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a client meets; each reason is a sentence without its full stop."""

    frontend: Frontend
    client: Client
    outcome: Fate
    service: str = ""
    endpoints: tuple[Endpoint, ...] = ()
    masqueraded: bool = False
    """Its endpoint sees this node as the client, whichever it is."""
    reasons: tuple[str, ...] = ()

    def render(self) -> list[str]:
        """Return it as lines."""
        who = str(parse_address(self.client.address)) if self.client.address else "a client"
        lines = [f"{describe(self.frontend)}: {self.service or 'no Service'}"]
        lines.append(f"from {who}, {self.client.origin.text}: {self.outcome.value}")
        shown = [show_endpoint(each) for each in self.endpoints[:_MOST_SHOWN]]
        more = len(self.endpoints) - len(shown)
        if shown:
            lines.append(
                f"by one of {len(self.endpoints)}: {' '.join(shown)}{f' and {more} more' * (more > 0)}"
            )
            lines.append(f"which sees {'this node' if self.masqueraded else 'the client itself'}")
        return [*lines, *(f"  {reason}" for reason in self.reasons)]


def show_endpoint(endpoint: Endpoint) -> str:
    """Return an endpoint as people write it."""
    address = parse_address(endpoint.address)
    return f"[{address}]:{endpoint.port}" if address.version == 6 else f"{address}:{endpoint.port}"


def parse_frontend(text: str) -> Frontend:
    """Return the frontend of ADDRESS:PORT[/PROTOCOL], TCP by default; CNIError 7 for what is none."""
    where, _, name = text.partition("/")
    host, _, port = where.rpartition(":")
    protocol = PROTOCOLS.get(name.upper() or "TCP")
    is_port = port.isascii() and port.isdigit() and 0 < int(port[:6]) <= _LAST_PORT
    if not (is_port and protocol) or (":" in host) != host.startswith("["):
        raise invalid_config(f'wanted ADDRESS:PORT[/PROTOCOL], an IPv6 address in brackets, found "{text}"')
    address = parse_ip(host.removeprefix("[").removesuffix("]"), "the address of a frontend")
    return Frontend(pack_address(address), protocol, int(port))


def parse_client(text: str, frontend: Frontend, around: Surroundings) -> Client:
    """Return who is meant by an address or by `pod`, `node`, `elsewhere`, `outside`; CNIError 7."""
    words = {origin.value: origin for origin in Origin}
    if text == Origin.NODE.value:
        return Client(origin=Origin.NODE, address=around.first_address(frontend.version))
    if text in words:
        return Client(origin=words[text])
    address = parse_ip(text, f"the client, where it is none of {', '.join(words)},")
    if address.version != frontend.version:
        raise invalid_config(f"wanted a client of IPv{frontend.version}, as the frontend is, found {address}")
    packed = pack_address(address)
    return Client(origin=find_origin(packed, around), address=packed)


def find_origin(address: bytes, around: Surroundings) -> Origin:
    """Return where the holder of an address is."""
    if address in around.addresses:
        return Origin.NODE
    if around.is_own_pod(address):
        return Origin.POD
    if address in around.peer_addresses or _is_within(address, around.pod_networks):
        return Origin.ELSEWHERE
    return Origin.OUTSIDE


def _is_within(address: bytes, networks: Iterable[IPNetwork]) -> bool:
    return any(parse_address(address) in cidr for cidr in networks)


def explain(
    plans: Mapping[Frontend, FrontendPlan], around: Surroundings, client: Client, frontend: Frontend
) -> Explanation:
    """Return what becomes of a new connection of the client to the frontend."""
    plan = plans.get(frontend)
    is_cluster = any(each.is_cluster and where.address == frontend.address for where, each in plans.items())
    if plan is None:
        outcome, reason = _explain_unknown(frontend, around, is_cluster=is_cluster)
        return Explanation(frontend=frontend, client=client, outcome=outcome, reasons=(reason,))
    outcome, endpoints, reasons = _explain_choice(plan, around, client)
    views = list(_explain_view(plan, client, is_cluster=is_cluster)) if endpoints else []
    if client.origin is Origin.POD and client.address in {each.address for each in endpoints}:
        reasons.append("it is an endpoint itself: where it is sent to itself it is seen as this node")
    if endpoints and plan.keep:
        reasons.append(f"session affinity: a client keeps its endpoint for {plan.keep} s after a connection")
    return Explanation(
        frontend=frontend,
        client=client,
        outcome=outcome,
        service=plan.name,
        endpoints=endpoints,
        masqueraded=bool(views),
        reasons=(*reasons, *views),
    )


def _explain_unknown(frontend: Frontend, around: Surroundings, *, is_cluster: bool) -> tuple[Fate, str]:
    """Return what becomes of a packet to what no Service has."""
    if frontend.address in around.addresses:
        return Fate.UNTOUCHED, "it is this node's own address, and no Service has the port"
    if is_cluster:
        name = PROTOCOL_NAMES[frontend.protocol]
        return Fate.REFUSED, f"a Service has the address, and not the port {frontend.port}/{name}"
    if _is_within(frontend.address, around.cluster_cidrs):
        return Fate.REFUSED, "no Service has the cluster address"
    return Fate.UNTOUCHED, "no Service has the address and port"


def _explain_choice(
    plan: FrontendPlan, around: Surroundings, client: Client
) -> tuple[Fate, tuple[Endpoint, ...], list[str]]:
    """Return which endpoints there are for a client, and why these."""
    reasons = []
    if plan.sources is not None:
        ranges = ", ".join(map(str, plan.sources)) or "none of this family"
        if client.address and not _may_ask(plan.sources, around, client):
            return Fate.DROPPED, (), [f"its address is outside of loadBalancerSourceRanges: {ranges}"]
        reasons.append(f"only from loadBalancerSourceRanges: {ranges}")
    if plan.inside is not None and client.origin.is_inside:
        reasons.append("externalTrafficPolicy Local: this node and its pods may use all endpoints")
        return Fate.ANSWERED, plan.inside, reasons
    if plan.inside is not None and plan.endpoints:
        reasons.append("externalTrafficPolicy Local: only endpoints on this node")
    if plan.endpoints:
        return Fate.ANSWERED, plan.endpoints, reasons
    if plan.refuses:
        return Fate.REFUSED, (), [*reasons, "the Service has no usable endpoint"]
    policy = "internalTrafficPolicy" if plan.is_cluster else "externalTrafficPolicy"
    return Fate.DROPPED, (), [*reasons, f"{policy} Local: no endpoint on this node, others elsewhere"]


def _may_ask(sources: tuple[IPNetwork, ...], around: Surroundings, client: Client) -> bool:
    """Tell whether a client may ask a balancer's address, which the node may hold itself."""
    if _is_within(client.address, sources):
        return True
    return client.origin is Origin.NODE and any(_is_within(each, sources) for each in around.addresses)


def _explain_view(plan: FrontendPlan, client: Client, *, is_cluster: bool) -> Iterator[str]:
    """Yield why endpoints see this node as the client; nothing when they see the client itself."""
    if plan.masquerade and plan.is_cluster:
        yield "masqueradeAll: endpoints see this node"
    elif plan.masquerade:
        yield "externalTrafficPolicy Cluster: endpoints see this node, so that answers come back"
    elif plan.masquerade_node and client.origin is Origin.NODE:
        yield "the node itself asks: endpoints see its address"
    elif is_cluster and client.origin is Origin.OUTSIDE:
        yield "a cluster address asked from outside: endpoints see this node, so that answers come back"


def explain_lack(
    service: Service, port: ServicePort, version: int, slices: Iterable[Slice], here: Here
) -> list[str]:
    """Return why a Service's port has no usable endpoint in a family on this node; empty when it has one."""
    wanted = f"{port.name or 'without a name'}/{PROTOCOL_NAMES[port.protocol]}"
    all_slices = list(slices)
    mine = [each for each in all_slices if each.version == version]
    if not mine:
        others = sorted({f"IPv{each.version}" for each in all_slices})
        found = f"slices of {', '.join(others)} only" if others else "no slice of it"
        return [f"wanted an EndpointSlice of IPv{version}, found {found}: does its selector match pods?"]
    named = [each for each in mine if any(_is_meant(target, port) for target in each.ports)]
    if not named:
        ports = {f"{p.name or 'without a name'}/{PROTOCOL_NAMES[p.protocol]}" for s in mine for p in s.ports}
        found = ", ".join(sorted(ports)) or "none"
        return [
            f"wanted a port {wanted} in its slices, found {found}: does targetPort name a port of the pods?"
        ]
    endpoints = [endpoint for each in named for endpoint in each.endpoints]
    if not endpoints:
        return ["wanted an endpoint in its slices, found none: does its selector match running pods?"]
    choice = choose(mine, port, version, here)
    if not choice.everywhere:
        return [f"wanted a ready endpoint, found {_count(endpoints)}"]
    policies = ("internal", service.internal_local), ("external", service.external_local)
    distant = len(choice.everywhere)
    return [
        f"{which}TrafficPolicy Local: wanted an endpoint on this node, found {distant} on others"
        for which, is_local in policies
        if is_local and not choice.local
    ]


def _is_meant(target: tuple[str, int, int], port: ServicePort) -> bool:
    return target[:2] == (port.name, port.protocol)


def _count(endpoints: list[SliceEndpoint]) -> str:
    ending = sum(each.terminating for each in endpoints)
    counts = ((len(endpoints) - ending, "not ready"), (ending, "terminating that do not serve"))
    return " and ".join(f"{count} {what}" for count, what in counts if count)


def explain_endpoints(slices: Iterable[Slice]) -> Iterator[str]:
    """Yield each endpoint of a Service's slices with its state."""
    for found in slices:
        ports = " ".join(f"{port.name or '-'}={port.port}" for port in found.ports) or "no port"
        for each in found.endpoints:
            words = [word for word in ("ready", "serving", "terminating") if getattr(each, word)]
            hints = [f"zone {zone}" for zone in each.zone_hints] + [
                f"node {name}" for name in each.node_hints
            ]
            said = " ".join(words) or "not ready"
            meant = f", meant for {' '.join(hints)}" if hints else ""
            where = f" on {each.node}" if each.node else ""
            yield f"{parse_address(each.address)} ({ports}){where}: {said}{meant}"
