"""Starts what keeps a node's Services, where the settings ask for it; removes it where they do not."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cni_plugin.agent.journal import own, render_pairs
from cni_plugin.cluster.api import API
from cni_plugin.cluster.service_objects import SERVICES, SLICES, Service, Slice
from cni_plugin.cluster.snapshot import Snapshot
from cni_plugin.cluster.watch import Watch
from cni_plugin.config.state_file import services_file
from cni_plugin.contract.errors import CNIError
from cni_plugin.dataplane.services.feed import ServicesFeed, Sources
from cni_plugin.dataplane.services.routes import ensure_routes
from cni_plugin.dataplane.services.sync import switch_off
from cni_plugin.dataplane.worker import Worker
from cni_plugin.kernel.netns import open_host
from cni_plugin.kernel.nft_layout import SERVICES_TABLE
from ipam.seam import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cni_plugin.cluster.api import Access
    from cni_plugin.cluster.objects import Node
    from cni_plugin.dataplane.follow import Order


@dataclass
class ServicesFollower:
    """The Services of one node: their watches, and the thread that syncs them."""

    order: Order
    access: Access
    _worker: Worker | None = field(default=None, init=False)
    _feed: ServicesFeed | None = field(default=None, init=False)

    @property
    def bereft(self) -> dict[str, Callable[[], None]]:
        """Return what is to be called when our table has lost something."""
        return {SERVICES_TABLE: self._doubt}

    def wake(self) -> None:
        """Have the Services looked at soon; from any thread."""
        if self._worker is not None:
            self._worker.wake()

    def _doubt(self) -> None:
        if self._feed is not None:
            self._feed.doubt()
            self.wake()

    @contextmanager
    def following(self, nodes: Snapshot[Node]) -> Iterator[None]:
        """Follow during the block; what is in the kernel stays there at its end."""
        if not self.order.settings.services.on:
            self._remove()
            yield
            return
        services: Snapshot[Service] = Snapshot(self.wake)
        slices: Snapshot[Slice] = Snapshot(self.wake)
        feed = ServicesFeed(
            node=self.order.node,
            settings=self.order.settings,
            sources=Sources(nodes=nodes, services=services, slices=slices),
            state_file=services_file(self.order.state_file),
        )
        self._feed = feed
        self._worker = Worker("services", feed.step, self.order.resync)
        Watch(API(self.access), SERVICES, services).start()
        Watch(API(self.access), SLICES, slices).start()
        self._worker.start()
        try:
            yield
        finally:
            self._worker.stop()
            feed.health.close()

    def _remove(self) -> None:
        """Remove what an agent with other settings has left: Services are somebody else's here."""
        try:
            with open_host() as host:
                removed = switch_off(host.nftables)
                ensure_routes(host.netlink, (), ())
        except CNIError as error:
            own.warning(render_pairs(node=self.order.node, services=f"not removed: {error}"))
            return
        files.remove_file(services_file(self.order.state_file))
        if removed:
            own.info(render_pairs(node=self.order.node, services="removed"))
