"""Says what a client of a frontend meets, and why: from the plans that the table is made of. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.dataplane.services.desired import describe
from cni_plugin.kernel.message import parse_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_plugin.dataplane.services.desired import ServicesModel
    from cni_plugin.dataplane.services.plan import Endpoint, Frontend, FrontendPlan, Surroundings

NODE = "node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Who asks: this node itself, when its address is empty, or whoever has the address."""

    address: bytes = b""

    def is_node(self, around: Surroundings) -> bool:
        """Tell whether it is this node itself."""
        return not self.address or self.address in around.addresses

    def is_inside(self, around: Surroundings) -> bool:
        """Tell whether it is this node or one of its pods, to whom policy Local does not apply."""
        return self.is_node(around) or around.is_own_pod(self.address)

    def is_of_cluster(self, around: Surroundings) -> bool:
        """Tell whether it is a pod or a node of the cluster."""
        if self.is_node(around) or self.address in around.peer_addresses:
            return True
        found = parse_address(self.address)
        return any(found in cidr for cidr in around.pod_networks)

    def place(self, around: Surroundings) -> str:
        """Return where it is, in words."""
        if self.is_node(around):
            return "this node"
        if around.is_own_pod(self.address):
            return "a pod of this node"
        return "in the cluster, elsewhere" if self.is_of_cluster(around) else "outside of the cluster"


def explain(client: Client, frontend: Frontend, model: ServicesModel, around: Surroundings) -> Iterator[str]:
    """Yield what a new connection of the client's to the frontend meets."""
    plan = model.plans().get(frontend)
    yield f"from {client.place(around)} to {describe(frontend)}"
    if plan is None:
        yield from _explain_nobody(frontend, model, around)
        return
    yield f"it is {plan.name}"
    if plan.sources is not None and not _may_ask(client, plan, around):
        yield f"dropped: only {' '.join(map(str, plan.sources)) or 'nobody of this family'} may ask"
        return
    endpoints = plan.endpoints
    if plan.inside is not None and client.is_inside(around):
        endpoints = plan.inside
        yield "policy Local does not apply to this node and its pods: all endpoints"
    if not endpoints:
        yield _explain_none(plan)
        return
    yield f"one of: {' '.join(map(show_endpoint, endpoints))}"
    if plan.keep:
        yield f"and the same again within {plan.keep} s"
    yield _explain_source(client, plan, around)


def _may_ask(client: Client, plan: FrontendPlan, around: Surroundings) -> bool:
    addresses = around.addresses if client.is_node(around) else (client.address,)
    found = [parse_address(each) for each in addresses]
    return any(address in cidr for cidr in plan.sources or () for address in found)


def _explain_nobody(frontend: Frontend, model: ServicesModel, around: Surroundings) -> Iterator[str]:
    if any(each.address == frontend.address and plan.is_cluster for each, plan in model.plans().items()):
        yield "refused: the address is a Service's, and has no such port"
    elif any(parse_address(frontend.address) in cidr for cidr in around.cluster_cidrs):
        yield "refused: no Service has this address"
    else:
        yield "it is no frontend of a Service: routed like any other address"


def _explain_none(plan: FrontendPlan) -> str:
    if plan.refuses:
        return "refused: no endpoint is ready anywhere"
    return "dropped: policy Local, and no endpoint on this node"


def _explain_source(client: Client, plan: FrontendPlan, around: Surroundings) -> str:
    if plan.masquerade:
        return "the endpoint sees this node: policy Cluster, or masqueradeAll"
    if plan.masquerade_node and client.is_node(around):
        return "the endpoint sees this node"
    if plan.is_cluster and not client.is_of_cluster(around):
        return "the endpoint sees this node: the client is outside of the cluster"
    return "the endpoint sees the client; one that is led to itself sees this node"


def show_endpoint(endpoint: Endpoint) -> str:
    """Return an endpoint as people write it."""
    address = parse_address(endpoint.address)
    return f"[{address}]:{endpoint.port}" if address.version == 6 else f"{address}:{endpoint.port}"


def explain_endpoints(key: str, model: ServicesModel) -> Iterator[str]:
    """Yield each endpoint of a Service's slices with its state."""
    slices = model.slices_of(key)
    if not slices:
        yield "no EndpointSlice: does a pod match the Service's selector?"
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
