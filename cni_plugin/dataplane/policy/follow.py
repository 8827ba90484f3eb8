"""Starts what enforces a node's policies, where the settings ask for it; removes it where they do not."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cni_plugin.agent.journal import own, render_pairs
from cni_plugin.cluster.api import API
from cni_plugin.cluster.policy_objects import (
    NAMESPACES,
    PODS,
    POLICIES,
    NetworkPolicy,
    Pod,
    PodNamespace,
)
from cni_plugin.cluster.snapshot import Snapshot
from cni_plugin.cluster.watch import Watch
from cni_plugin.config.state_file import policy_file, policy_socket
from cni_plugin.contract.errors import CNIError
from cni_plugin.dataplane.nodes.conflist import read_ours
from cni_plugin.dataplane.policy.feed import PolicyFeed, PolicySources
from cni_plugin.dataplane.policy.questions import QuestionServer
from cni_plugin.dataplane.policy.sync import switch_policy_off
from cni_plugin.dataplane.worker import Worker
from cni_plugin.kernel.netns import open_host
from cni_plugin.kernel.nft_layout import POLICY_TABLE
from ipam.seam import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni_plugin.cluster.api import Access
    from cni_plugin.dataplane.follow import Order


_FIRST = 10.0  # seconds that the network's configuration waits for the first sync


@dataclass
class PolicyFollower:
    """The policies of one node: their watches, the thread that syncs them, and who answers ADDs."""

    order: Order
    access: Access
    _worker: Worker | None = field(default=None, init=False)
    _feed: PolicyFeed | None = field(default=None, init=False)

    @property
    def bereft(self) -> dict[str, Callable[[], None]]:
        """Return what is to be called when our table has lost something."""
        return {POLICY_TABLE: self._doubt}

    def _wake(self) -> None:
        if self._worker is not None:
            self._worker.wake()

    def _doubt(self) -> None:
        if self._feed is not None:
            self._feed.doubt()
            self._wake()

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow during the block; what is in the kernel stays there at its end."""
        if not self.order.settings.policy.on:
            remover = Worker("policies", self._remove, self.order.resync)
            remover.start()
            yield
            remover.stop()
            return
        sources = self._watch()
        feed = PolicyFeed(
            node=self.order.node,
            network=self.order.settings.network,
            sources=sources,
            api=API(self.access),
            state_file=policy_file(self.order.state_file),
        )
        self._feed = feed
        self._worker = Worker("policies", feed.step, self.order.resync)
        questions = QuestionServer(policy_socket(self.order.state_file), feed.answer)
        questions.start()
        self._worker.start()
        # Pods that run are in the maps before the rules come that close whoever is not.
        feed.in_force.wait(_FIRST)
        try:
            yield
        finally:
            questions.stop()
            self._worker.stop()

    def _watch(self) -> PolicySources:
        namespaces: Snapshot[PodNamespace] = Snapshot(self._wake)
        policies: Snapshot[NetworkPolicy] = Snapshot(self._wake)
        own_pods: Snapshot[Pod] = Snapshot(self._wake)
        mine = replace(PODS, field_selector=f"spec.nodeName={self.order.node}")
        Watch(API(self.access), NAMESPACES, namespaces).start()
        Watch(API(self.access), POLICIES, policies).start()
        Watch(API(self.access), mine, own_pods).start()
        return PolicySources(
            namespaces=namespaces,
            policies=policies,
            own_pods=own_pods,
            watch_every_pod=self._watch_every_pod,
        )

    def _watch_every_pod(self) -> Snapshot[Pod]:
        pods: Snapshot[Pod] = Snapshot(self._wake)
        Watch(API(self.access), PODS, pods).start()
        return pods

    def _remove(self) -> bool:
        """Remove what an agent with other settings has left; tell whether nothing of it is there.

        As long as the configuration still has the key, an ADD would make it again, and close its pod.
        """
        if "networkPolicy" in (read_ours(self.order.conflist) or ""):
            return False
        try:
            with open_host() as host:
                removed = switch_policy_off(host.nftables)
            files.remove_file(policy_file(self.order.state_file))
        except (CNIError, OSError) as error:
            own.warning(render_pairs(node=self.order.node, policies=f"not removed: {error}"))
            return False
        if removed:
            own.info(render_pairs(node=self.order.node, policies="removed"))
        return True
