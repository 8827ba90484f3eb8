"""What a node's table of policies shall hold, computed as pods and policies change. Pure.

Only what concerns pods of this node is compiled, and only the sets that their groups name are filled. A
change of a pod anywhere costs a look at these sets; a change of a policy the pods of its namespace here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cni_plugin.dataplane.policy.census import Census
from cni_plugin.dataplane.policy.compile import CompiledPolicy, PortQuestion, compile_policy, make_group
from cni_plugin.dataplane.policy.ruleset import (
    ACCEPT,
    CLOSED,
    Binding,
    Direction,
    Group,
    PolicyRules,
    pack_port,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from cni_plugin.cluster.policy_objects import NetworkPolicy, Pod, PodNamespace, PolicyPeer


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPod:
    """A pod that this node has made: what its ADD knew. `uid` is empty where the runtime did not say."""

    identity: str
    namespace: str
    name: str
    uid: str = ""
    addresses: tuple[bytes, ...] = ()

    @property
    def key(self) -> str:
        """Return what the API knows it by."""
        return f"{self.namespace}/{self.name}"

    def is_the_same(self, pod: Pod) -> bool:
        """Tell whether it is this pod of the API, and not an earlier or later one of its name."""
        return not self.uid or self.uid in {pod.uid, pod.static_uid}


@dataclass
class LocalPods:
    """The pods that this node has made. An address is that one's that got it last."""

    by_identity: dict[str, LocalPod] = field(default_factory=dict)
    _by_key: dict[str, set[str]] = field(default_factory=dict)
    _holders: dict[bytes, str] = field(default_factory=dict)

    def put(self, pod: LocalPod) -> dict[bytes, str]:
        """Take over a pod; return the addresses that it takes from others, with their keys."""
        self.by_identity[pod.identity] = pod
        self._by_key.setdefault(pod.key, set()).add(pod.identity)
        taken = {}
        for address in pod.addresses:
            former = self.by_identity.get(self._holders.get(address, ""))
            self._holders[address] = pod.identity
            if former is not None and former.identity != pod.identity:
                taken[address] = former.key
        return taken

    def remove(self, identity: str) -> LocalPod:
        """Forget a pod."""
        pod = self.by_identity.pop(identity)
        self._by_key[pod.key].discard(identity)
        if not self._by_key[pod.key]:
            del self._by_key[pod.key]
        for address in pod.addresses:
            if self._holders.get(address) == identity:
                del self._holders[address]
        return pod

    def list_held(self, pod: Pod) -> Iterator[tuple[bytes, str]]:
        """Yield the addresses that a pod of the API has here, each with the identity that it has them by."""
        for identity in sorted(self._by_key.get(pod.key, ())):
            local = self.by_identity[identity]
            if local.is_the_same(pod):
                yield from ((a, identity) for a in local.addresses if self._holders.get(a) == identity)


@dataclass
class PolicyModel:
    """The cluster's policies as they concern this node."""

    node: str
    census: Census = field(default_factory=Census)
    policies: dict[str, NetworkPolicy] = field(default_factory=dict)
    rules: PolicyRules = field(default_factory=PolicyRules)
    _compiled: dict[tuple[str, Direction], CompiledPolicy] = field(default_factory=dict)
    _by_namespace: dict[str, set[str]] = field(default_factory=dict)
    _local: LocalPods = field(default_factory=LocalPods)
    _groups: dict[tuple[Direction, tuple[str, ...]], Group] = field(default_factory=dict)
    _published: dict[str, Pod] = field(default_factory=dict)
    """This node's pods as the API has them: their addresses come there seconds after ADD."""
    _used: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The groups of each pod of this node, by its key."""
    _asked: dict[str, PortQuestion | PolicyPeer] = field(default_factory=dict)
    """What each set that is filled means."""
    _asked_of: dict[str, set[str]] = field(default_factory=dict)
    """Those sets by the namespace that they are about, under "" those that may be about any."""
    _ports: dict[str, dict[str, tuple[bytes, ...]]] = field(default_factory=dict)
    """The keys of each set of named ports by the pod that they are there for."""
    _touched: dict[str, set[bytes]] = field(default_factory=dict)
    """Pods that may mean something else, with the addresses that they had."""
    _dirty: set[str] = field(default_factory=set)
    """Pods of this node whose policies may be others."""

    def put_pods(self, changed: Mapping[str, Pod | None]) -> None:
        """Take over pods by their keys; None for one that is gone."""
        for key, pod in changed.items():
            former = self.census.pods.get(key)
            self._published.pop(key, None)
            if pod is not None and pod.node == self.node:
                self._published[key] = pod
            self._place(key, pod)
            if any(found is not None and found.node == self.node for found in (former, pod)):
                self._dirty.add(key)

    def _place(self, key: str, pod: Pod | None) -> None:
        """Let the census have a pod with the addresses that the API knows and those that ADD gave it."""
        former = self.census.pods.get(key)
        if pod is not None and pod.node == self.node and pod.counts:
            given = [address for address, _ in self._local.list_held(pod)]
            pod = replace(pod, addresses=tuple(dict.fromkeys((*given, *pod.addresses))))
        if pod is not None and pod == former:
            return
        for each in self.census.put_pod(key, pod):
            self._touch(each)
        self._touched[key].update(former.addresses if former else ())

    def put_namespaces(self, changed: Mapping[str, PodNamespace | None]) -> None:
        """Take over namespaces by their names; None for one that is gone."""
        for name, namespace in changed.items():
            for key in self.census.put_namespace(name, namespace):
                self._touch(key)

    def put_policies(self, changed: Mapping[str, NetworkPolicy | None]) -> None:
        """Take over policies by their keys; None for one that is gone."""
        for key, policy in changed.items():
            self._forget_policy(key)
            if policy is not None:
                self.policies[key] = policy
                self._by_namespace.setdefault(policy.namespace, set()).add(key)
                for direction in Direction:
                    if (compiled := compile_policy(policy, direction)) is not None:
                        self._compiled[key, direction] = compiled
            self._groups.clear()
            namespace = key.partition("/")[0]
            self._dirty |= {pod.key for pod in self.census.pods_of(namespace) if pod.node == self.node}
            self._dirty |= {pod.key for pod in self._local.by_identity.values() if pod.namespace == namespace}

    def _forget_policy(self, key: str) -> None:
        former = self.policies.pop(key, None)
        if former is not None:
            self._by_namespace[former.namespace].discard(key)
        for direction in Direction:
            self._compiled.pop((key, direction), None)

    def put_local(self, pods: Iterable[LocalPod]) -> None:
        """Take over pods that this node has made."""
        for pod in pods:
            self._dirty.add(pod.key)
            if self._local.by_identity.get(pod.identity) == pod:
                continue
            for address, former in self._local.put(pod).items():
                self.rules.bindings.pop(address, None)
                self._place_again(former)
            self._place_again(pod.key)

    def _place_again(self, key: str) -> None:
        if (published := self._published.get(key)) is not None:
            self._place(key, published)

    @property
    def local_identities(self) -> set[str]:
        """Return the identities of the pods that this node has made."""
        return set(self._local.by_identity)

    def keep_local(self, identities: set[str]) -> None:
        """Forget the pods of this node that are none of these."""
        for identity in self._local.by_identity.keys() - identities:
            pod = self._local.remove(identity)
            self._place_again(pod.key)
            for address in pod.addresses:
                if self.rules.bindings.get(address, _NOBODY).identity == identity:
                    del self.rules.bindings[address]
            self._dirty.add(pod.key)

    def _touch(self, key: str) -> None:
        pod = self.census.pods.get(key)
        self._touched.setdefault(key, set()).update(pod.addresses if pod else ())

    def compute(self) -> PolicyRules:
        """Bring the rules in line with all that has changed, and return them."""
        dirty, self._dirty = self._dirty, set()
        for key in dirty:
            self._bind(key)
        touched, self._touched = self._touched, {}
        for key, addresses in touched.items():
            for about in (key.partition("/")[0], ""):
                for name in self._asked_of.get(about, ()):
                    self._update_member(name, self._asked[name], key, addresses)
        if dirty:
            self._choose_sets()
        return self.rules

    def problems(self) -> list[str]:
        """Return which policies are not in force, and why."""
        return sorted({each.problem for each in self._compiled.values() if each.problem})

    def policies_of(self, pod: Pod, direction: Direction) -> list[CompiledPolicy]:
        """Return the policies that select a pod and speak of a direction."""
        keys = sorted(self._by_namespace.get(pod.namespace, ()))
        selecting = [key for key in keys if self.policies[key].pods.matches(pod.labels)]
        found = [self._compiled.get((key, direction)) for key in selecting]
        return [each for each in found if each is not None]

    def find_group(self, pod: Pod, direction: Direction) -> str:
        """Return the pod's group by name, ACCEPT when no policy selects it, CLOSED when one is too large."""
        selecting = self.policies_of(pod, direction)
        if not selecting:
            return ACCEPT
        if any(each.problem for each in selecting):
            return CLOSED
        known = (direction, tuple(each.key for each in selecting))
        if known not in self._groups:
            self._groups[known] = make_group(direction, selecting)
        group = self._groups[known]
        self.rules.groups[group.name] = group
        return group.name

    def _bind(self, key: str) -> None:
        """Find the groups of a pod of this node, and what holds for the addresses that it was given."""
        pod = self.census.pods.get(key)
        if pod is None or pod.node != self.node or not pod.counts:
            # What it was bound to stays until its network is gone.
            self._used.pop(key, None)
            return
        groups = tuple(self.find_group(pod, direction) for direction in Direction)
        self._used[key] = (groups[0], groups[1])
        for address, identity in self._local.list_held(pod):
            binding = Binding(pod=key, identity=identity, ingress=groups[0], egress=groups[1])
            self.rules.bindings[address] = binding

    def _choose_sets(self) -> None:
        """Keep the groups that somebody is in, and the sets that these name."""
        used = Counter(name for names in self._used.values() for name in names)
        used.update(name for each in self.rules.bindings.values() for name in (each.ingress, each.egress))
        groups = {name: group for name, group in self.rules.groups.items() if used[name]}
        self.rules.groups = groups
        named = {n for group in groups.values() for a in group.allowances for n in (a.peers, a.named) if n}
        for name in self._asked.keys() - named:
            del self._asked[name], self.rules.members[name]
            self._ports.pop(name, None)
            self.rules.touched.pop(name, None)
            for names in self._asked_of.values():
                names.discard(name)
        if new := named - self._asked.keys():
            wanted = self._list_wanted()
            for name in new:
                self._fill(name, wanted[name])

    def _list_wanted(self) -> dict[str, PortQuestion | PolicyPeer]:
        wanted: dict[str, PortQuestion | PolicyPeer] = {}
        for compiled in self._compiled.values():
            wanted |= compiled.peers
            wanted |= compiled.named
        return wanted

    def _fill(self, name: str, meant: PortQuestion | PolicyPeer) -> None:
        """Make a set of all pods that it means."""
        self._asked[name] = meant
        self.rules.members[name] = {}
        if isinstance(meant, PortQuestion):
            self._ports[name] = {}
        peer = _peer_of(meant)
        about = "" if peer is None or peer.namespaces is not None else peer.namespace
        self._asked_of.setdefault(about, set()).add(name)
        pods = self.census.pods.values() if peer is None else self.census.candidates(peer)
        for pod in pods:
            self._add_member(name, meant, pod)

    def _update_member(
        self, name: str, meant: PortQuestion | PolicyPeer, key: str, former: set[bytes]
    ) -> None:
        """Let a set have a pod as it is now; `former` are the addresses that it may be there with."""
        members = self.rules.members[name]
        keys = self._ports[name].pop(key, ()) if name in self._ports else former
        for each in keys:
            if members.get(each) == key:
                del members[each]
                self.rules.touched.setdefault(name, set()).add(each)
        if (pod := self.census.pods.get(key)) is not None:
            self._add_member(name, meant, pod)

    def _add_member(self, name: str, meant: PortQuestion | PolicyPeer, pod: Pod) -> None:
        if isinstance(meant, PortQuestion) and meant.is_local and pod.node != self.node:
            return
        peer = _peer_of(meant)
        if peer is not None and not self.census.means(peer, pod):
            return
        keys = tuple(self.census.addresses_of(pod))
        if isinstance(meant, PortQuestion):
            keys = tuple(_list_ports(meant, pod, keys))
            self._ports[name][pod.key] = keys
        if keys:
            self.rules.members[name] |= dict.fromkeys(keys, pod.key)
            self.rules.touched.setdefault(name, set()).update(keys)


def _list_ports(question: PortQuestion, pod: Pod, addresses: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the keys of a pod's ports of a name: address, protocol, port."""
    for port_name, protocol, number in pod.ports:
        if (port_name, protocol) == (question.name, question.protocol):
            for address in addresses:
                yield pack_port(address, protocol, number)


def _peer_of(meant: PortQuestion | PolicyPeer) -> PolicyPeer | None:
    """Return whom a set is about; None for everybody."""
    return meant.peer if isinstance(meant, PortQuestion) else meant


_NOBODY = Binding(pod="", identity="", ingress="", egress="")
