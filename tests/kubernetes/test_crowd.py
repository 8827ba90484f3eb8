"""Sixty pods at once: how long until each runs and until nothing is left, beside the reference plugins."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from threading import Thread
from typing import TYPE_CHECKING, Self

from tests.harness.kubernetes import pods, podwire, reference
from tests.harness.kubernetes.host import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.kubernetes.kubernetes import Kubernetes
    from tests.harness.kubernetes.worker import Worker

COUNT = 60


@dataclass
class Crowd:
    """Seconds: of each pod from its creation until it ran, of all, and of all until no network was left."""

    starts: list[float]
    running: float
    gone: float

    def __str__(self) -> str:
        median = statistics.median(self.starts)
        return f"median {median:.1f} s, all Running {self.running:.1f} s, all networks gone {self.gone:.1f} s"


def test_sixty_pods_at_once_beside_the_reference_plugins(
    cluster: Kubernetes, record_property: Callable[[str, object], None]
) -> None:
    worker = cluster.workers[1]
    ours = crowd(cluster, "ours", worker, podwire.assert_nothing_left)
    with reference.installed(worker):
        theirs = crowd(cluster, "theirs", worker, reference.assert_nothing_left)
    record_property("figures", f"{COUNT} pods of podwire: {ours}")
    record_property("figures", f"{COUNT} pods of bridge, host-local and portmap: {theirs}")
    for name, (memory, seconds) in sorted(podwire.used(worker).items()):
        record_property(
            "figures",
            f"process {name} until then: {memory:.0f} MiB at most, {seconds:.1f} s of processor time",
        )


def crowd(
    cluster: Kubernetes, app: str, worker: Worker, assert_nothing_left: Callable[[Worker], None]
) -> Crowd:
    """Make pods at once on one node, which must have two addresses each, and delete them at once."""
    with Watch(cluster, app) as watch:
        started = time.monotonic()
        cluster.apply(pods.deployment(app, COUNT, node=worker.name))
        eventually(lambda: len(watch.starts()) == COUNT, lambda: podwire.explain(cluster), within=150)
        running = time.monotonic() - started
        assert len({address for each in watch.addresses.values() for address in each}) == 2 * COUNT
        started = time.monotonic()
        cluster.delete("deployment", app)
        assert_nothing_left(worker)
        return Crowd(watch.starts(), running, time.monotonic() - started)


@dataclass
class Watch:
    """When each pod of an app was first seen, and first seen running, and its addresses."""

    cluster: Kubernetes
    app: str
    seen: dict[str, float] = field(default_factory=dict)
    ran: dict[str, float] = field(default_factory=dict)
    addresses: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        shown = "{.type} {.object.metadata.name} {.object.status.phase} {.object.status.podIPs[*].ip}"
        words = ("--watch", "--output-watch-events", "-o", f'jsonpath={shown}{{"\\n"}}')
        self._process = self.cluster.control.follow("get", "pods", "-l", f"app={self.app}", *words)
        self._thread = Thread(target=self._read)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)
        self._thread.join()

    def starts(self) -> list[float]:
        """Return the seconds each running pod took."""
        return [self.ran[name] - self.seen[name] for name in list(self.ran)]

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                event, name, phase, *addresses = line.split()
                self.seen.setdefault(name, time.monotonic())
                if event != "DELETED" and phase == "Running" and addresses:
                    self.addresses[name] = tuple(addresses)
                    self.ran.setdefault(name, time.monotonic())
