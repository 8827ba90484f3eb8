"""Conntrack entries of UDP host ports: forgotten when the port leads elsewhere.

Forgotten is only what is about the host port: what was sent to it at one of the node's own addresses, or at
the one address that it is restricted to.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

from cni_plugin.features.hostports import HostPort
from cni_plugin.kernel.conntrack import forget_flows
from cni_plugin.kernel.route import find_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from netaddr import IPAddress

    from cni_plugin.kernel.conntrack import Flow
    from cni_plugin.kernel.netns import Namespace


def forget_udp(
    host: Namespace,
    targets: Mapping[HostPort, tuple[IPAddress, int]],
    is_stale: Callable[[object, object], bool],
) -> None:
    """Forget the flows to UDP ports whose answering end compares so with where the port leads."""
    is_local = cache(partial(_is_local, host))

    def stale(flow: Flow) -> bool:
        port = _find_port(flow, targets)
        if port is None or not (port.address or is_local(flow.destination)):
            return False
        return is_stale((flow.responder, flow.responder_port), targets[port])

    for version in sorted({port.version for port in targets}):
        ports = {port.port for port in targets if port.version == version}
        forget_flows(host.nftables, version, ports, stale)


def _find_port(flow: Flow, known: Mapping[HostPort, object]) -> HostPort | None:
    """Return the host port that a flow was sent to, the one of its address before the one of all."""
    asked = partial(HostPort, version=flow.destination.version, protocol="udp", port=flow.port)
    return next((p for p in (asked(address=flow.destination), asked(address=None)) if p in known), None)


def _is_local(host: Namespace, address: IPAddress) -> bool:
    path = find_path(host.netlink, address)
    return path is not None and path.local
