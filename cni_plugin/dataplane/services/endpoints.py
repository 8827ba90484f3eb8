"""Which endpoints of a Service's port take connections: merged from slices, chosen by state. Pure.

The rules are kube-proxy's (pkg/proxy: endpointslicecache, topology): ready ones, and when there is none
those that end but still serve, separately for all and for this node; of the ready ones those that hints
mean for this node or its zone, where every one has a hint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_plugin.dataplane.services.plan import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_plugin.cluster.service_objects import ServicePort, Slice, SliceEndpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """Where this node is."""

    node: str
    zone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The endpoints of a port, in an order that depends on nothing but themselves."""

    everywhere: tuple[Endpoint, ...] = ()
    near: tuple[Endpoint, ...] = ()
    """Those of everywhere that hints mean for this node; all of them without hints."""
    local: tuple[Endpoint, ...] = ()
    """Those on this node."""
    serving: tuple[Endpoint, ...] = ()
    """All that answer, those that end included: they keep their UDP flows."""
    local_ready: tuple[bytes, ...] = ()
    """The addresses of the ready ones on this node."""


NOBODY = Choice()


def choose(slices: Iterable[Slice], port: ServicePort, version: int, here: Here) -> Choice:
    """Return the endpoints of a Service's port in one family."""
    merged = _merge(slices, port, version, here)
    if not merged:
        return NOBODY
    ready = [(endpoint, found) for endpoint, found in merged if found.ready]
    ending = [(endpoint, found) for endpoint, found in merged if found.serving and found.terminating]
    local = [each for each in ready if each[1].node == here.node]
    ending_local = [each for each in ending if each[1].node == here.node]
    near = _find_near(ready, here)
    everywhere = _only(ready or ending)
    return Choice(
        everywhere=everywhere,
        near=_only(near) if near else everywhere,
        local=_only(local or ending_local),
        serving=everywhere
        if len(ready) == len(merged)
        else _only([each for each in merged if each[1].ready or each[1].serving]),
        local_ready=tuple(endpoint.address for endpoint, _ in local),
    )


_Found = tuple[Endpoint, "SliceEndpoint"]


def _only(found: list[_Found]) -> tuple[Endpoint, ...]:
    return tuple(endpoint for endpoint, _ in found)


def _merge(slices: Iterable[Slice], port: ServicePort, version: int, here: Here) -> list[_Found]:
    """Return each endpoint once: while it moves between two slices it is in both, or in none."""
    found: dict[Endpoint, SliceEndpoint] = {}
    for each in slices:
        if each.version != version:
            continue
        for target in each.ports:
            if (target.name, target.protocol) != (port.name, port.protocol):
                continue
            for endpoint in each.endpoints:
                known = Endpoint(endpoint.address, target.port)
                if known not in found or _rank(endpoint, here) > _rank(found[known], here):
                    found[known] = endpoint
    return sorted(found.items(), key=lambda item: item[0])


def _rank(endpoint: SliceEndpoint, here: Here) -> tuple[bool, bool, bool, SliceEndpoint]:
    """Return which of two that are the same one is believed: the local one, the ready one.

    Between those that still differ in something it is always the same one, whichever slice came first.
    """
    return endpoint.node == here.node, endpoint.ready, endpoint.serving, endpoint


def _find_near(ready: list[_Found], here: Here) -> list[_Found]:
    """Return the endpoints that are meant for this node, else for its zone; none to use all of them.

    Hints count only when every ready endpoint has one and at least one is for us.
    """
    if ready and all(found.node_hints for _, found in ready):
        meant = [each for each in ready if here.node in each[1].node_hints]
        if meant:
            return meant
    if here.zone and ready and all(found.zone_hints for _, found in ready):
        return [each for each in ready if here.zone in each[1].zone_hints]
    return []
