"""Two nodes with pods, an outside, and a table of Services on the first: who answers whom, seen as whom."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from netaddr import IPNetwork

from cni_plugin.dataplane.services.flows import end_affinity, end_flows
from cni_plugin.dataplane.services.plan import PROTOCOLS, Endpoint, Frontend, FrontendPlan, Surroundings
from cni_plugin.dataplane.services.sync import ServicesTable, Sync
from cni_plugin.kernel.netns import open_pod
from tests.harness.cluster import ROUTED_RANGES, ROUTER, Cluster, address_of, make_cluster
from tests.harness.services import ask, offering

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import Node, Pod, Space

# Where each client is, and where the endpoints are that answer with their own name.
CLIENTS = ("pod", "node", "elsewhere", "outside")
CLUSTER = {4: "10.96.0.10", 6: "fd00:96::10"}
EXTERNAL = {4: "203.0.113.10", 6: "2001:db8:cafe::10"}
PORT, TARGET = 80, 8080


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


@dataclass
class ServiceLab:
    """The first node's pods `client` and `local`, the second's `remote`; the underlay is the outside."""

    cluster: Cluster
    version: int
    client: Pod
    local: Pod
    remote: Pod
    table: ServicesTable = field(default_factory=ServicesTable)
    plans: dict[Frontend, FrontendPlan] = field(default_factory=dict)

    @property
    def node(self) -> Node:
        return self.cluster.nodes[1]

    @property
    def node_address(self) -> str:
        return self.cluster.address(1, self.version)

    def space(self, who: str) -> Space:
        """Return where a client is."""
        places = {
            "pod": self.client,
            "itself": self.local,
            "node": self.node,
            "elsewhere": self.remote,
            "outside": self.cluster.underlay,
        }
        return places[who]

    def source(self, who: str) -> str:
        """Return the address that a client has by itself."""
        if who in {"node", "outside"}:
            return self.node_address if who == "node" else ROUTER[self.version]
        return address_of(
            {"pod": self.client, "itself": self.local, "elsewhere": self.remote}[who], self.version
        )

    def endpoints(self, *names: str) -> tuple[Endpoint, ...]:
        """Return the endpoints of these pods."""
        pods = {"local": self.local, "remote": self.remote, "client": self.client}
        return tuple(Endpoint(packed(address_of(pods[name], self.version)), TARGET) for name in names)

    @property
    def around(self) -> Surroundings:
        ranges = {i: [IPNetwork(each.format(i=i)) for each in ROUTED_RANGES] for i in (1, 2)}
        own = tuple(packed(self.cluster.address(1, version)) for version in (4, 6))
        others = {packed(self.cluster.address(2, version)) for version in (4, 6)}
        return Surroundings(
            addresses=own,
            own_subnets=tuple(ranges[1]),
            pod_networks=(*ranges[1], *ranges[2]),
            peer_addresses=frozenset({*own, *others}),
        )

    def put(self, address: str, port: int = PORT, plan: FrontendPlan | None = None) -> Sync:
        """Give a frontend a plan over TCP and UDP; None takes it away."""
        changed = {Frontend(packed(address), PROTOCOLS[name], port): plan for name in ("TCP", "UDP")}
        self.plans |= {frontend: plan for frontend in changed if plan}
        with open_pod(self.node.path) as host, host.entered():
            if self.table.is_doubtful:
                return self.table.sync(host.nftables, self.plans, self.around)
            return self.table.update(host.nftables, changed, self.around)

    def sync(self, table: ServicesTable | None = None) -> Sync:
        """Read the kernel's table and make it right, as whoever begins does."""
        self.table = table or self.table
        with open_pod(self.node.path) as host, host.entered():
            return self.table.sync(host.nftables, self.plans, self.around)

    def end_flows(self, address: str) -> None:
        """End the UDP flows to a frontend whose endpoints are gone."""
        frontend = Frontend(packed(address), PROTOCOLS["UDP"], PORT)
        with open_pod(self.node.path) as host:
            end_flows(host.nftables, [frontend], self.table.held)

    def end_affinity(self, address: str) -> int:
        """Let clients of a frontend whose endpoint is gone choose again; return how many."""
        frontends = [Frontend(packed(address), PROTOCOLS[name], PORT) for name in ("TCP", "UDP")]
        with open_pod(self.node.path) as host:
            return end_affinity(host.nftables, frontends, self.table.held)

    def ask(self, who: str, address: str, port: int = PORT, *, times: int = 1) -> set[tuple[str, str]]:
        """Return who answers over TCP and UDP, and as whom it sees the client."""
        answers = {
            ask(self.space(who), address, port, protocol, within=1.0)
            for protocol in ("tcp", "udp")
            for _ in range(times)
        }
        return {tuple(answer.split(" ")) if " " in answer else (answer, "") for answer in answers}  # type: ignore[misc]

    def listing(self) -> str:
        return self.node.run("nft", "list", "table", "inet", "podwire_services").stdout


@contextmanager
def service_lab(tmp: Path, bin_dir: Path, version: int) -> Iterator[ServiceLab]:
    """Return the lab; every endpoint answers with its name and as whom it sees the client."""
    cluster = make_cluster(tmp, bin_dir, 2)
    try:
        client = cluster.nodes[1].pod()
        cluster.nodes[1].add({**cluster.config("tunnel", 1), "ipMasq": True}, client)
        pods = {1: cluster.nodes[1].pod(), 2: cluster.nodes[2].pod()}
        for i, pod in pods.items():
            cluster.nodes[i].add({**cluster.config("tunnel", i), "ipMasq": True}, pod)
        lab = ServiceLab(cluster, version, client, pods[1], pods[2])
        for neighbour in (cluster.address(2, version), ROUTER[version]):
            # The underlay's neighbours are found before anything is timed.
            cluster.nodes[1].run("ping", "-c", "1", "-W", "5", neighbour)
        for destination in (CLUSTER[version], EXTERNAL[version]):
            cluster.underlay.run("ip", "route", "add", destination, "via", cluster.address(1, version))
            cluster.nodes[2].run("ip", "route", "add", destination, "via", cluster.address(1, version))
        with ExitStack() as stack:
            for name in ("client", "local", "remote"):
                stack.enter_context(offering(getattr(lab, name), TARGET, name=f"{name} "))
            yield lab
    finally:
        cluster.remove()
