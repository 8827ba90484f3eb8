"""Ends what leads to endpoints that are gone: UDP flows, and clients that keep an endpoint.

A UDP flow has no end that anybody sees, so that its entry in the connection tracking would lead to where
nobody is, for as long as the client sends. A TCP connection is never touched: its endpoint ends it.
Endpoints that end and still serve keep their flows. By hand: `conntrack -D -p udp --orig-dst FRONTEND`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from cni_plugin.dataplane.services.plan import PROTOCOLS, VERSIONS, Frontend
from cni_plugin.dataplane.services.table import key_of, value_of
from cni_plugin.kernel.conntrack import forget_flows
from cni_plugin.kernel.errors import KernelError
from cni_plugin.kernel.message import pack_address
from cni_plugin.kernel.nft_layout import SERVICES_TABLE
from cni_plugin.kernel.nft_message import Element, pack_pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cni_plugin.dataplane.services.plan import FrontendPlan
    from cni_plugin.kernel.conntrack import Flow
    from cni_plugin.kernel.nfnetlink import Nftables

_UDP = PROTOCOLS["UDP"]


def end_flows(
    nftables: Nftables, frontends: Iterable[Frontend], plans: Mapping[Frontend, FrontendPlan]
) -> None:
    """Delete the UDP flows to these frontends that are answered by none of their endpoints.

    A frontend without a plan is gone, and with it all flows to it.
    """
    for version in VERSIONS:
        changed = {each for each in frontends if each.protocol == _UDP and each.version == version}
        responders = {frontend: _list_responders(plans.get(frontend)) for frontend in changed}

        def is_stale(flow: Flow, known: Mapping[Frontend, set[tuple[bytes, int]]] = responders) -> bool:
            frontend = Frontend(pack_address(flow.destination), _UDP, flow.port)
            responder = (pack_address(flow.responder), flow.responder_port)
            return frontend in known and responder not in known[frontend]

        if changed:
            forget_flows(nftables, version, {each.port for each in changed}, is_stale)


def _list_responders(plan: FrontendPlan | None) -> set[tuple[bytes, int]]:
    if plan is None:
        return set()
    return {(each.address, each.port) for each in (*plan.endpoints, *(plan.inside or ()), *plan.draining)}


def end_affinity(
    nftables: Nftables, frontends: Iterable[Frontend], plans: Mapping[Frontend, FrontendPlan]
) -> int:
    """Let clients of these frontends that keep an endpoint which is gone choose again; return how many."""
    count = 0
    for version in VERSIONS:
        wanted = {
            key_of(frontend): {value_of(each) for each in (*plan.endpoints, *(plan.inside or ()))}
            for frontend in frontends
            if frontend.version == version and (plan := plans.get(frontend)) is not None and plan.keep
        }
        if not wanted:
            continue
        name = f"aff{version}"
        clients = nftables.list_pairs("inet", name, table=SERVICES_TABLE)
        length = len(next(iter(wanted)))
        stale = [
            (key, None)
            for key, value in clients.items()
            if key[-length:] in wanted and value not in wanted[key[-length:]]
        ]
        place = Element(family="inet", table=SERVICES_TABLE, set_name=name, key=b"")
        # One at a time: a client whose time was over meanwhile must not keep the others.
        for pair in stale:
            try:
                nftables.apply(list(pack_pairs(place, [pair], present=False)))
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise
        count += len(stale)
    return count
