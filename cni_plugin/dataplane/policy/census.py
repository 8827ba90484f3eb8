"""Who is in the cluster: pods by namespace and by address, and which of them a peer means. Pure.

An address that two pods claim, because one of them has gone and the API has not said so yet, is the
newer one's. Pods that have ended and pods on their node's network are nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from cni_plugin.cluster.policy_objects import Pod, PodNamespace, PolicyPeer

_NO_LABELS: dict[str, str] = {}


@dataclass
class Census:
    """The pods and namespaces that are known."""

    pods: dict[str, Pod] = field(default_factory=dict)
    namespaces: dict[str, PodNamespace] = field(default_factory=dict)
    _by_namespace: dict[str, set[str]] = field(default_factory=dict)
    _by_address: dict[bytes, list[str]] = field(default_factory=dict)

    def put_pod(self, key: str, pod: Pod | None) -> set[str]:
        """Take over a pod, None for one that is gone; return the keys of pods that may mean others now."""
        former = self.pods.pop(key, None)
        touched = {key}
        for address in former.addresses if former and former.counts else ():
            claimants = self._by_address[address]
            claimants.remove(key)
            touched |= set(claimants)
            if not claimants:
                del self._by_address[address]
        if former is not None:
            self._by_namespace[former.namespace].discard(key)
        if pod is not None:
            self.pods[key] = pod
            self._by_namespace.setdefault(pod.namespace, set()).add(key)
            for address in pod.addresses if pod.counts else ():
                claimants = self._by_address.setdefault(address, [])
                touched |= set(claimants)
                claimants.append(key)
        return touched

    def put_namespace(self, name: str, namespace: PodNamespace | None) -> set[str]:
        """Take over a namespace, None for one that is gone; return the keys of its pods."""
        if namespace is None:
            self.namespaces.pop(name, None)
        else:
            self.namespaces[name] = namespace
        return set(self._by_namespace.get(name, ()))

    def labels_of(self, namespace: str) -> Mapping[str, str]:
        """Return the labels of a namespace; none of one that is not known."""
        found = self.namespaces.get(namespace)
        return found.labels if found else _NO_LABELS

    def pods_of(self, namespace: str) -> Iterable[Pod]:
        """Return the pods of a namespace."""
        return (self.pods[key] for key in self._by_namespace.get(namespace, ()))

    def owner(self, address: bytes) -> Pod | None:
        """Return the pod that has an address: the newest of those that claim it."""
        claimants = self._by_address.get(address)
        if not claimants:
            return None
        if len(claimants) == 1:
            return self.pods[claimants[0]]
        return max((self.pods[key] for key in claimants), key=lambda pod: (pod.created, pod.uid))

    def addresses_of(self, pod: Pod) -> Iterator[bytes]:
        """Yield the addresses that a pod really has."""
        for address in pod.addresses if pod.counts else ():
            if self.owner(address) is pod:
                yield address

    def means(self, peer: PolicyPeer, pod: Pod) -> bool:
        """Tell whether a peer that is no ipBlock means a pod."""
        if peer.namespaces is not None:
            # A pod may come before its namespace: labels that nobody knows are not labels that it lacks.
            if peer.namespaces.terms and pod.namespace not in self.namespaces:
                return False
            if not peer.namespaces.matches(self.labels_of(pod.namespace)):
                return False
        elif pod.namespace != peer.namespace:
            return False
        return peer.pods.matches(pod.labels)

    def candidates(self, peer: PolicyPeer) -> Iterable[Pod]:
        """Return the pods that a peer may mean: those of its namespace, or all."""
        return self.pods_of(peer.namespace) if peer.namespaces is None else self.pods.values()
