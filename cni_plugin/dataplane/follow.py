"""Keeps a node in line with its cluster: reads what is known, writes files, syncs peers, reports.

Level-triggered: a step looks at everything, whatever is the reason for it (node/loop.py). A node's
network survives whatever we do: its configuration is replaced, never removed, and what is known
stays in force when nothing new can be learnt.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from cni_plugin.agent.journal import own, render_pairs
from cni_plugin.agent.upkeep import Keeper
from cni_plugin.attach.both_kinds import find_bridge
from cni_plugin.backend.host_gateway import on_link
from cni_plugin.cluster.api import APIError
from cni_plugin.cluster.settings import HOST_GATEWAY, ROUTED
from cni_plugin.config.paths import BIN_DIR
from cni_plugin.config.state_file import ClusterState, policy_socket
from cni_plugin.contract.errors import CNIError, Code
from cni_plugin.contract.inet import parse_cidr
from cni_plugin.contract.request import make_request
from cni_plugin.dataplane.nodes.conflist import read_ours, render, write_ours
from cni_plugin.dataplane.nodes.desired import (
    PeerPlan,
    Places,
    plan_peers,
    render_network,
    require_address,
    require_pod_cidrs,
)
from cni_plugin.dataplane.nodes.published_files import read_text, replace_file
from cni_plugin.kernel.addr import find_holder, list_addresses
from cni_plugin.kernel.link import get_link_by_index
from cni_plugin.kernel.netns import open_host
from cni_plugin.plugins import podwire

if TYPE_CHECKING:
    from collections.abc import Collection

    from netaddr import IPAddress

    from cni_plugin.cluster.api import API
    from cni_plugin.cluster.objects import Node
    from cni_plugin.cluster.settings import ClusterSettings
    from cni_plugin.cluster.snapshot import Known, Snapshot
    from cni_plugin.contract.request import Request
    from cni_plugin.kernel.netlink import Netlink


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to follow and where to write; `resync` in seconds."""

    node: str
    settings: ClusterSettings
    conflist: str
    state_file: str
    resync: float
    results_dir: str

    @property
    def keeper(self) -> Keeper:
        """Return who mends what this node's pods have lost."""
        return Keeper(conf_dir=os.path.dirname(self.conflist), bin_dir=BIN_DIR, results_dir=self.results_dir)

    @property
    def places(self) -> Places:
        """Return what the configuration names: the peers file is where hints are kept, on a disk."""
        peers = f"{self.settings.data_dir}/.podwire/{self.settings.network}.nodes"
        return Places(
            peers_file=peers, state_file=self.state_file, policy_socket=policy_socket(self.state_file)
        )

    @property
    def settings_file(self) -> str:
        """Return where it is kept which settings the configuration was made of."""
        return f"{self.settings.data_dir}/.podwire/{self.settings.network}.settings"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the node shall have: its configuration as text, its peers, and the settings that made both."""

    network: str
    peers: PeerPlan
    settings: str


class Follower:
    """Takes the steps; the state file says how the last one ended."""

    def __init__(self, order: Order, nodes: Snapshot[Node], api: API) -> None:
        """Begin with what an earlier run left on disk."""
        self._order = order
        self._nodes = nodes
        self._api = api
        self._wanted = _read_wanted(order)
        self._synced: Wanted | None = None
        self._keeper = order.keeper
        settings = order.settings
        self._state = ClusterState(
            node=order.node, mode=f"{settings.attach}, {settings.backend}", network=settings.network
        )

    def step(self) -> bool:
        """Bring the node in line with what is known; tell whether it is."""
        known = self._nodes.known()
        reasons = [f"nodes: {known.problem}"] if known.problem else []
        ready = False
        try:
            self._mend()
            lacking = self._learn(known)
            self._apply()
            ready = not lacking
            reasons += [lacking] if lacking else []
        except (CNIError, OSError) as error:
            reasons.append(str(error))
            self._state = replace(self._state, errors=self._state.errors + 1)
        except Exception as error:  # noqa: BLE001  who ends here leaves a file that says that all is well
            own.exception("unexpected")
            reasons.append(f"{type(error).__name__}: {error}")
            self._state = replace(self._state, errors=self._state.errors + 1)
        said = self._say(ready, (*reasons, *(self._wanted.peers.problems if self._wanted else ())))
        if ready and known.objects:
            self._claim_network(known.objects[self._order.node])
        return ready and said

    def _mend(self) -> None:
        """Mend what networks and running pods have lost, before it is asked what else they shall have."""
        kinds = Counter(self._state.repairs_by_kind)
        kinds.update(wrong.damage.kind for wrong in self._keeper.mend())
        self._state = replace(self._state, repairs=kinds.total(), repairs_by_kind=dict(kinds))

    def _learn(self, known: Known[Node]) -> str:
        """Take over what is known of the cluster; return what this node still lacks."""
        if known.objects is None:
            return self._find_unknown()
        me = known.objects.get(self._order.node)
        if me is None:
            return (
                f"node {self._order.node}: wanted it among the API's nodes, found {len(known.objects)} others"
            )
        lacking = ""
        network, settings = (self._wanted.network, self._wanted.settings) if self._wanted else ("", "")
        try:
            network, settings = self._render(me), repr(self._order.settings)
        except CNIError as error:
            lacking = error.msg
        if network:
            # A subnet that this node has lost stays its own until it gets another.
            mine = me if me.pod_cidrs else replace(me, pod_cidrs=_cidrs_of(network))
            peers = _plan_peers(self._order.settings, mine, known.objects)
            self._wanted = Wanted(network=network, peers=peers, settings=settings)
        return lacking

    def _find_unknown(self) -> str:
        """Return what only the API can tell this node, before it has answered for the first time."""
        if self._wanted is None:
            return f"node {self._order.node}: wanted it from the API, found no answer yet"
        if self._wanted.settings != repr(self._order.settings):
            return "settings: wanted the API's nodes to bring them into force, found no answer yet"
        return ""

    def _render(self, me: Node) -> str:
        require_pod_cidrs(me)
        device = _find_device(me, require_address(self._order.settings, me))
        settings, places = self._order.settings, self._order.places
        former = settings.attach == ROUTED and _has_bridge(settings.bridge)
        return render(render_network(settings, me, device, places, former_bridge=former))

    def _apply(self) -> None:
        """Write what is wanted and make the kernel equal to it; the configuration appears last."""
        wanted = self._wanted
        if wanted is None:
            return
        replace_file(self._order.places.peers_file, wanted.peers.text)
        started = time.monotonic()
        changes = podwire.synchronize(_request_of(wanted.network))
        seconds = time.monotonic() - started
        written = write_ours(self._order.conflist, wanted.network)
        replace_file(self._order.settings_file, wanted.settings)
        if changes or written or wanted != self._synced:
            own.info(_line(self._order, wanted, changes, seconds))
        state = self._state
        self._state = replace(
            state,
            pod_cidrs=tuple(map(str, _cidrs_of(wanted.network))),
            peers_wanted=wanted.peers.wanted,
            peers_programmed=wanted.peers.named,
            syncs=state.syncs + 1,
            last_sync_seconds=round(seconds, 4),
            last_sync=time.time(),
        )
        self._synced = wanted

    def _say(self, ready: bool, reasons: tuple[str, ...]) -> bool:
        """Write how it stands; False when that cannot be written, which must not end us."""
        before, state = self._state, replace(self._state, ready=ready, reasons=reasons, updated=time.time())
        if (before.ready, before.reasons) != (ready, reasons):
            own.info(render_pairs(node=state.node, ready=ready, reasons="; ".join(reasons)))
        self._state = state
        try:
            replace_file(self._order.state_file, state.render())
        except OSError as error:
            own.warning(render_pairs(node=state.node, unsaid=str(error)))
            return False
        return True

    def _claim_network(self, me: Node) -> None:
        """Say that the network is there, where a cloud's controller waits for it."""
        if not me.network_unavailable:
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        condition = {
            "type": "NetworkUnavailable",
            "status": "False",
            "reason": "PodwireIsReady",
            "message": "podwire has made this node's pod network",
            "lastTransitionTime": now,
            "lastHeartbeatTime": now,
        }
        try:
            self._api.patch_node_status(me.name, {"status": {"conditions": [condition]}})
        except APIError as error:
            own.warning(render_pairs(node=me.name, unsaid=str(error)))


def _read_wanted(order: Order) -> Wanted | None:
    """Return what an earlier run wrote; None when that is no network of ours."""
    network, peers = read_ours(order.conflist), read_text(order.places.peers_file)
    try:
        if network is None or peers is None or not _cidrs_of(network):
            return None
        count = len(json.loads(peers))
        _request_of(network)
    except (ValueError, LookupError, TypeError, CNIError):
        return None
    plan = PeerPlan(text=peers, wanted=count, named=count, problems=())
    return Wanted(network=network, peers=plan, settings=read_text(order.settings_file) or "")


def _plugin_of(network: str) -> dict[str, Any]:
    """Return the one plugin of a configuration that we wrote."""
    plugin: dict[str, Any] = json.loads(network)["plugins"][0]
    return plugin


def _cidrs_of(network: str) -> tuple[Any, ...]:
    return tuple(parse_cidr(r["subnet"], "subnet") for (r,) in _plugin_of(network)["ipam"]["ranges"])


def _request_of(network: str) -> Request:
    """Return what the runtime would ask of the plugin, in the newest version."""
    conflist = json.loads(network)
    common = {"name": conflist["name"], "cniVersion": conflist["cniVersions"][-1]}
    return make_request("STATUS", _plugin_of(network) | common, path=BIN_DIR)


def _find_device(me: Node, address: IPAddress) -> str:
    """Return the link that holds the node's address; CNIError 50 when none does."""
    with open_host() as host:
        index = find_holder(host.netlink, address)
        link = get_link_by_index(host.netlink, index) if index else None
    if link is None:
        raise CNIError(
            Code.NOT_AVAILABLE,
            f"node {me.name}: wanted its InternalIP {address} on a link of this machine, found none with it",
        )
    return link.name


def _has_bridge(name: str) -> bool:
    with open_host() as host:
        return find_bridge(name, host) is not None


def _plan_peers(settings: ClusterSettings, me: Node, nodes: dict[str, Node]) -> PeerPlan:
    """Return the peers that this machine can have: none of its own, behind a host gateway neighbours."""
    with open_host() as host:
        if settings.backend == HOST_GATEWAY:
            return plan_peers(settings, me, nodes.values(), partial(_refuse_distant, host.netlink))
        ours = frozenset(address.ip for address in list_addresses(host.netlink))
        return plan_peers(settings, me, nodes.values(), partial(_refuse_ours, ours))


def _refuse_ours(ours: frozenset[IPAddress], theirs: Collection[IPAddress]) -> str:
    found = ours & set(theirs)
    return f"wanted another machine's address, found {min(found)} on this one" if found else ""


def _refuse_distant(nl: Netlink, theirs: Collection[IPAddress]) -> str:
    try:
        for address in theirs:
            on_link(nl, address)
    except CNIError as error:
        return error.msg
    return ""


def _line(order: Order, wanted: Wanted, changes: int, seconds: float) -> str:
    return render_pairs(
        node=order.node,
        network=order.settings.network,
        peers=wanted.peers.named,
        changes=changes,
        duration=f"{seconds:.4f}",
    )
