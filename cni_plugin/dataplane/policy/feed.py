"""Keeps a node's policies in line with its cluster, and answers the ADDs of its pods.

Nothing is programmed before namespaces, policies and this node's pods have been listed. All pods of the
cluster are watched only once there is a policy, since nobody is a peer before. What is known stays in force
while the API is away. An ADD's question is answered at once, beside the steps: both hold one lock.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from netaddr import IPAddress

from cni_plugin.agent.journal import own, render_pairs
from cni_plugin.cluster.api import API, APIError
from cni_plugin.cluster.policy_objects import NAMESPACES, parse_namespace, parse_pod
from cni_plugin.config.state_file import PolicyState
from cni_plugin.contract.errors import CNIError
from cni_plugin.dataplane.nodes.published_files import replace_file
from cni_plugin.dataplane.policy.desired import LocalPod, PolicyModel
from cni_plugin.dataplane.policy.flows import end_all, end_denied
from cni_plugin.dataplane.policy.local import PodsHere, list_local_pods
from cni_plugin.dataplane.policy.sync import PolicyTable
from cni_plugin.features.policy_question import READY
from cni_plugin.kernel.addr import list_addresses
from cni_plugin.kernel.message import pack_address
from cni_plugin.kernel.netns import open_host

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cni_plugin.cluster.policy_objects import NetworkPolicy, Pod, PodNamespace
    from cni_plugin.cluster.snapshot import Snapshot
    from cni_plugin.features.policy_question import PolicyQuestion
    from cni_plugin.kernel.netns import Namespace

_MOST_REASONS = 20


@dataclass
class PolicySources:
    """What is known of the cluster. `every_pod` is there once somebody watches all pods."""

    namespaces: Snapshot[PodNamespace]
    policies: Snapshot[NetworkPolicy]
    own_pods: Snapshot[Pod]
    watch_every_pod: Callable[[], Snapshot[Pod]]
    every_pod: Snapshot[Pod] | None = None

    @property
    def named(self) -> dict[str, Snapshot[Any]]:
        """Return the lists that must be complete, by the names of their kinds."""
        pods = self.own_pods if self.every_pod is None else self.every_pod
        return {"namespaces": self.namespaces, "networkpolicies": self.policies, "pods": pods}

    @property
    def lack(self) -> str:
        """Return what has not been listed yet; empty when everything has."""
        return "; ".join(f"{k}: {each.problem}" for k, each in self.named.items() if not each.is_complete)

    @property
    def problems(self) -> list[str]:
        """Return why what is known may be out of date."""
        return [f"{name}: {each.problem}" for name, each in self.named.items() if each.problem]


@dataclass
class PolicyFeed:
    """Takes the steps of one node's policies; the state file says how the last one ended."""

    node: str
    network: str
    sources: PolicySources
    api: API
    state_file: str
    table: PolicyTable = field(default_factory=PolicyTable)
    _model: PolicyModel = field(init=False)
    _state: PolicyState = field(init=False)
    _guard: threading.Condition = field(default_factory=threading.Condition)
    _local: PodsHere = field(default_factory=lambda: PodsHere(pods=(), comments={}))
    _counts_every_pod: bool = False
    in_force: threading.Event = field(default_factory=threading.Event)
    """Set once the table has held everything."""

    def __post_init__(self) -> None:
        """Begin with nothing known."""
        self._model = PolicyModel(self.node)
        self._state = PolicyState(node=self.node)

    def doubt(self) -> None:
        """Have the next step read the table: somebody has changed it."""
        self.table.is_doubtful = True

    def step(self) -> bool:
        """Bring the table in line with what is known; tell whether it is."""
        with self._guard:
            reasons = self.sources.problems
            ready = False
            try:
                self._take()
                lack = self.sources.lack
                ready = not lack
                reasons += [lack] if lack else []
                if ready:
                    self._sync(look=True)
            except (CNIError, OSError) as error:
                reasons.append(str(error))
                self._fail()
            except Exception as error:  # noqa: BLE001  who ends here leaves a file that says that all is well
                own.exception("unexpected")
                reasons.append(f"{type(error).__name__}: {error}")
                self._fail()
            ready = ready and not self.table.is_doubtful
            if ready:
                self.in_force.set()
            reasons += [*self._model.problems(), *self.table.refused.values()]
            self._say(ready, tuple(reasons[:_MOST_REASONS]))
            self._guard.notify_all()
            return ready

    def _fail(self) -> None:
        self.table.is_doubtful = True
        self._state = replace(self._state, errors=self._state.errors + 1)

    def _take(self) -> None:
        """Give the model what has changed."""
        sources = self.sources
        self._model.put_namespaces(sources.namespaces.take_changes())
        self._model.put_policies(sources.policies.take_changes())
        if sources.every_pod is None and self._model.policies:
            sources.every_pod = sources.watch_every_pod()
        if sources.every_pod is None or not sources.every_pod.is_complete:
            self._model.put_pods(sources.own_pods.take_changes())
        elif self._counts_every_pod:
            sources.own_pods.take_changes()  # they are among all pods, and must not pile up
            self._model.put_pods(sources.every_pod.take_changes())
        else:
            self._counts_every_pod = True
            every = sources.every_pod.take_changes()
            gone = self._model.census.pods.keys() - every.keys()
            self._model.put_pods({**every, **dict.fromkeys(gone)})

    def _sync(self, *, look: bool) -> None:
        """Compute and program; `look` at the node's links for pods that have gone, or are from before."""
        with open_host() as host:
            if look:
                self._local = list_local_pods(host.netlink, self.network)
                known = self._model.local_identities
                self._model.put_local(pod for pod in self._local.pods if pod.identity not in known)
                self._model.keep_local(self._local.identities)
            started = time.monotonic()
            rules = self._model.compute()
            own_addresses = {pack_address(each.ip) for each in list_addresses(host.netlink)}

            def renewed(addresses: Collection[bytes]) -> None:
                end_all(host.nftables, addresses, own_addresses)

            done = self.table.sync(host.nftables, rules, self._local.comments, renewed)
            ended = self._end_denied(host, done.deprived, own_addresses)
        state = self._state
        self._state = replace(
            state,
            policies=len(self._model.policies),
            pods=len({binding.pod for binding in rules.bindings.values()}),
            pending=tuple(sorted(self._list_pending())),
            groups=len(rules.groups),
            members=sum(map(len, rules.members.values())),
            ended=state.ended + ended,
            syncs=state.syncs + 1,
            last_sync_seconds=round(time.monotonic() - started, 6),
            last_sync=time.time(),
        )

    def _end_denied(self, host: Namespace, deprived: Collection[bytes], mine: set[bytes]) -> int:
        isolated = {
            address
            for address in deprived
            if (binding := self._model.rules.bindings.get(address)) is not None and binding.isolates
        }
        return end_denied(host.nftables, self._model, isolated, mine) if isolated else 0

    def _list_pending(self) -> list[str]:
        bound = {binding.identity for binding in self._model.rules.bindings.values()}
        return [pod.key for pod in self._local.pods if pod.addresses and pod.identity not in bound]

    def answer(self, question: PolicyQuestion) -> str:
        """Return READY once the pod's policies are in force, or why they are not in the time given."""
        deadline = time.monotonic() + question.timeout
        pod = LocalPod(
            identity=question.identity,
            namespace=question.namespace,
            name=question.name,
            uid=question.uid,
            addresses=tuple(pack_address(IPAddress(each)) for each in question.addresses),
        )
        with self._guard:
            self._model.put_local([pod])
            asked = False
            while True:
                if not self.sources.lack and not self.table.is_doubtful:
                    self._sync(look=False)
                    if self._is_bound(pod):
                        return READY
                    if not asked:
                        asked = True
                        self._ask_api(pod)
                        continue
                left = deadline - time.monotonic()
                if left <= 0:
                    return self.sources.lack or f"pod {pod.key} is not known to the API's watch"
                self._guard.wait(left)

    def _is_bound(self, pod: LocalPod) -> bool:
        bindings = self._model.rules.bindings
        return all(
            (found := bindings.get(address)) is not None and found.identity == pod.identity
            for address in pod.addresses
        )

    def _ask_api(self, pod: LocalPod) -> None:
        """Ask the API once for a pod and its namespace, whose events are late; others go on meanwhile."""
        self._guard.release()
        try:
            found = parse_pod(self.api.get(f"{NAMESPACES.path}/{pod.namespace}/pods/{pod.name}"))
            space = parse_namespace(self.api.get(f"{NAMESPACES.path}/{pod.namespace}"))
        except APIError as error:
            own.warning(render_pairs(node=self.node, pod=pod.key, unknown=str(error)))
            return
        finally:
            self._guard.acquire()
        self._model.put_namespaces({space.name: space})
        self._model.put_pods({found.key: found})

    def _say(self, ready: bool, reasons: tuple[str, ...]) -> None:
        """Write how it stands; that this cannot be written must not end us."""
        before, state = self._state, replace(self._state, ready=ready, reasons=reasons, updated=time.time())
        if (before.ready, before.reasons) != (ready, reasons):
            own.info(render_pairs(node=self.node, policies_ready=ready, reasons="; ".join(reasons)))
        self._state = state
        try:
            replace_file(self.state_file, state.render())
        except OSError as error:
            own.warning(render_pairs(node=self.node, unsaid=str(error)))
