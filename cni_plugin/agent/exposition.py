"""Renders the agent's metrics for Prometheus: `GET /metrics`, computed for each scrape.

The one module that imports prometheus_client, which is optional (`podwire[metrics]`). Names follow
https://prometheus.io/docs/practices/naming/: a unit, and `_total` for what only grows.
docs/monitoring.md lists them.
"""

from __future__ import annotations

import platform
import threading
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from cni_plugin import __version__
from cni_plugin.agent import metrics
from cni_plugin.agent.pools import Pools
from cni_plugin.config.state_file import read_services_state, read_state, services_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from cni_plugin.agent.metrics import Histogram, Numbers
    from cni_plugin.config.state_file import ClusterState, ServicesState


class Exposition(Collector):
    """The registry of one agent."""

    def __init__(self, conf_dir: str, state_file: str) -> None:
        """Read nothing yet; pools are those of `conf_dir`, the cluster is what `state_file` says."""
        self._pools = Pools(conf_dir)
        self._state_file = state_file
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._turn = threading.Lock()
        ProcessCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the text in the format that the client accepts, and its content type."""
        encode, content_type = choose_encoder(accept)
        with self._turn:  # the pools are read by one scrape at a time
            return encode(self._registry), content_type

    def describe(self) -> list[Metric]:
        """Return nothing, so that registering does not read everything once."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield everything that there is to say now."""
        yield _gauge("podwire_build_info", "1, with the versions as labels", _build())
        numbers = metrics.snapshot()
        yield from _operations(numbers)
        yield from _counters(numbers)
        yield from self._read_pools()
        state = read_state(self._state_file)
        yield _repairs(numbers, state)
        if state is not None:
            yield from _cluster(state)
        served = read_services_state(services_file(self._state_file))
        if served is not None:
            yield from _services(served)

    def _read_pools(self) -> Iterator[Metric]:
        pools = self._pools.read()
        for name, help_text in (
            ("size", "Addresses that a network has for pods"),
            ("used", "Addresses that pods hold"),
            ("free", "Addresses that the next pods can get"),
        ):
            infix = "" if name == "size" else f"_{name}"
            rows = [((p.network, f"ipv{p.family}"), float(getattr(p, name))) for p in pools]
            yield _gauge(f"podwire_ipam_pool{infix}_addresses", help_text, rows, ("network", "family"))


Rows = Sequence[tuple[tuple[str, ...], float]]


def _gauge(name: str, help_text: str, rows: Rows, labels: tuple[str, ...] = ("version", "python")) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _counter(name: str, help_text: str, rows: Rows, labels: tuple[str, ...] = ()) -> Metric:
    family = CounterMetricFamily(name, help_text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _build() -> Rows:
    return [((__version__, platform.python_version()), 1.0)]


def _operations(numbers: Numbers) -> Iterator[Metric]:
    yield _counter(
        "podwire_cni_operations",
        "CNI calls that came to an end, by verb, plugin type, result and error code",
        sorted(numbers.operations.items()),
        ("verb", "type", "result", "code"),
    )
    durations = HistogramMetricFamily(
        "podwire_cni_operation_duration_seconds",
        "From a call's arrival to its answer, time in line included",
        labels=("verb", "result"),
    )
    for key, histogram in sorted(numbers.durations.items()):
        durations.add_metric(key, _cumulative(histogram), histogram.total)
    yield durations
    yield _gauge("podwire_cni_operations_in_progress", "Calls here now", [((), numbers.running)], ())
    yield _counter(
        "podwire_agent_clients_refused",
        "Clients that found all places taken, or were not root",
        [((), numbers.clients_refused)],
    )


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    ends = [*map(str, metrics.BUCKETS), "+Inf"]
    return list(zip(ends, map(float, accumulate(histogram.counts)), strict=True))


def _counters(numbers: Numbers) -> Iterator[Metric]:
    yield _counter(
        "podwire_kernel_errors",
        "Calls that failed because the kernel refused something, by what was spoken to and errno",
        sorted(numbers.refusals.items()),
        ("subsystem", "errno"),
    )
    yield _counter("podwire_gc_leaked", "Attachments found left over by a collection", [((), numbers.leaked)])
    yield _counter("podwire_gc_reclaimed", "Attachments that a collection removed", [((), numbers.reclaimed)])


def _repairs(numbers: Numbers, state: ClusterState | None) -> Metric:
    """Return what was mended by the agent, or on a node of a cluster by its child process."""
    kinds = numbers.repairs + Counter(state.repairs_by_kind if state else {})
    help_text = "Things of networks and running pods that were gone or changed and are mended, by kind"
    return _counter(
        "podwire_repairs", help_text, [((k,), float(n)) for k, n in sorted(kinds.items())], ("kind",)
    )


def _cluster(state: ClusterState) -> Iterator[Metric]:
    """Yield what the state file says; it is written by another process, whose counters may begin anew."""
    network = ("network",)
    for name, help_text, value in (
        ("ready", "1 when this node's network is ready, else 0", state.ready),
        ("peers_wanted", "Other nodes that the cluster has", state.peers_wanted),
        ("peers_programmed", "Other nodes that the kernel knows the way to", state.peers_programmed),
        ("last_sync_duration_seconds", "How long the last sync took", state.last_sync_seconds),
        ("last_sync_timestamp_seconds", "When the last sync ended", state.last_sync),
        ("state_timestamp_seconds", "When the state file was written", state.updated),
    ):
        yield _gauge(f"podwire_cluster_{name}", help_text, [((state.network,), float(value))], network)
    for name, help_text, value in (
        ("syncs", "Comparisons of the kernel with the cluster's nodes", state.syncs),
        ("repairs", "Objects of peers that syncs changed", state.repairs),
        ("sync_errors", "Syncs that failed", state.errors),
    ):
        yield _counter(f"podwire_cluster_{name}", help_text, [((state.network,), float(value))], network)


def _services(state: ServicesState) -> Iterator[Metric]:
    """Yield what the state of Services says, where podwire serves them."""
    for name, help_text, value in (
        ("ready", "1 when this node's Services are in force, else 0", state.ready),
        ("known", "Services that the cluster has", state.services),
        ("frontends", "Addresses and ports that lead to endpoints, or are refused", state.frontends),
        ("endpoints", "Endpoints of all frontends", state.endpoints),
        ("refused", "Frontends that the kernel refused", state.refused),
        ("rivals", "Others on this node that translate packets to Services", len(state.rivals)),
        ("last_sync_duration_seconds", "How long the last change of the table took", state.last_sync_seconds),
        (
            "last_change_delay_seconds",
            "From the API's word of the last change until the kernel had it",
            state.last_change_seconds,
        ),
        ("last_sync_timestamp_seconds", "When the table was last in line", state.last_sync),
        ("state_timestamp_seconds", "When the state file was written", state.updated),
    ):
        yield _gauge(f"podwire_services_{name}", help_text, [((), float(value))], ())
    for name, help_text, value in (
        ("syncs", "Comparisons of the table with the cluster's Services", state.syncs),
        ("changes", "Elements of the table that syncs have changed", state.elements),
        ("sync_errors", "Syncs that failed", state.errors),
    ):
        yield _counter(f"podwire_services_{name}", help_text, [((), float(value))])
