"""What the service counts and measures of itself, in Prometheus' text format. The only module that knows the library.

Two kinds: what is counted as it happens (requests, rounds, the database's time), and what is looked up when somebody
asks (`Figures`). Labels are sites' slugs, routes, states and names of our own tasks, never a project or a person, so
that the number of series is bounded by the deployment. docs/operating.md lists every metric; a test compares.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from federator.contract import RunStatus
from prometheus_client import CollectorRegistry, Counter, Histogram, Summary, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hub_service.domain.runs import EventKind, Run, RunEvent
from hub_service.run_timings import RunTimings
from hub_service.service_figures import Figures

OTHER_SITE = "other"  # a site that the deployment does not know any more

K = TypeVar("K", bound=tuple[str, ...])

_ROUND_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
_WAIT_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 600)
_SHORT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_FLEET_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 15, 30, 60)  # a waiting node's poll takes 50 s


class Metrics:
    """One service's. Each method returns at once.

    Args:
        sites: slugs of the deployment's sites; every other one is counted as OTHER_SITE.
    """

    def __init__(self, sites: Iterable[str] = ()) -> None:
        self._sites = frozenset(sites)
        self._registry = CollectorRegistry()
        self._timings = RunTimings()
        self._figures = _LookedUp()
        self._registry.register(self._figures)
        self._runs_ended = self._counter("runs_ended", "Runs that have ended, by how", "status")
        self._rounds = self._counter("rounds_finished", "Federated rounds that every asked site has closed")
        self._resumptions = self._counter("run_resumptions", "Times that a run's lost aggregator was begun anew")
        self._lost = self._counter("clients_lost", "Clients that fell silent", "site")
        self._restarts = self._counter("background_restarts", "Background tasks that broke and were restarted", "task")
        self._round_time = self._histogram(
            "round_seconds", "From a round's first message to its last reply", _ROUND_BUCKETS
        )
        self._answer_time = self._histogram(
            "site_answer_seconds", "From sending a site a message to its answer", _ROUND_BUCKETS, "site"
        )
        self._queue_time = self._histogram(
            "run_queue_seconds", "From asking for a run to its first message", _WAIT_BUCKETS
        )
        self._fleet = self._counter("fleet_requests", "Requests of nodes", "operation", "status")
        self._fleet_time = self._histogram(
            "fleet_request_seconds", "Time of nodes' requests; a poll is held", _FLEET_BUCKETS, "operation"
        )
        self._requests = Summary(
            "federation_http_request_seconds",
            "Time of requests of people, notebooks and scripts",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._database_time = self._histogram("database_seconds", "Time of a statement in the database", _SHORT_BUCKETS)
        self._lag = self._histogram("event_loop_lag_seconds", "How late the event loop wakes a sleeper", _SHORT_BUCKETS)
        for site in self._sites:
            self._lost.labels(site)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"federation_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"federation_{name}", text, labels, registry=self._registry, buckets=buckets)

    # --- counted as it happens

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One request for a route of the service's, named by its pattern."""
        self._requests.labels(route, method, status).observe(seconds)

    def fleet_request(self, operation: str, status: int, seconds: float) -> None:
        self._fleet.labels(operation, status).inc()
        self._fleet_time.labels(operation).observe(seconds)

    def statement(self, seconds: float) -> None:
        """One statement in the database."""
        self._database_time.observe(seconds)

    def loop_lag(self, seconds: float) -> None:
        self._lag.observe(seconds)

    def client_lost(self, site: str) -> None:
        self._lost.labels(self._known(site)).inc()

    def task_restarted(self, name: str) -> None:
        self._restarts.labels(name).inc()

    def run_moved(self, run: Run, events: Sequence[RunEvent]) -> None:
        """Events of a run that the store has taken; `run` is the run after them."""
        for event in events:
            if event.kind is EventKind.RESUMED:
                self._resumptions.inc()
            elif event.kind is EventKind.REPLY:
                site = run.nodes.get(str(event.node_id), "").partition("/")[0]
                self._answer_time.labels(self._known(site)).observe(_sane(event.seconds))
        seen = self._timings.after(run, events)
        if seen.queued is not None:
            self._queue_time.observe(_sane(seen.queued))
        for seconds in seen.rounds:
            self._rounds.inc()
            self._round_time.observe(_sane(seconds))

    def run_ended(self, run: Run) -> None:
        self._runs_ended.labels(run.status).inc()
        self._timings.forget(run.id)

    # --- asked for

    def text(self, figures: Figures) -> bytes:
        """Everything, in Prometheus' text format."""
        self._figures.figures = figures
        return generate_latest(self._registry)

    def _known(self, site: str) -> str:
        return site if site in self._sites else OTHER_SITE


def _sane(seconds: float) -> float:
    """Times of events are what the owner's code says: anything."""
    return min(max(seconds, 0.0), 30 * 86400.0) if math.isfinite(seconds) else 0.0


class _LookedUp(Collector):
    """Gives the last figures that were put here."""

    figures = Figures()

    def collect(self) -> Iterator[Metric]:
        figures = self.figures
        yield _gauge("runs", "Runs in flight, by status", ("status",), _by_one(figures.runs, _IN_FLIGHT))
        yield _gauge("clients", "Active participations, by their client's state", ("site", "state"), figures.clients)
        traffic = CounterMetricFamily(
            "federation_bytes", "Bytes to a site (in) and from it (out)", labels=("site", "direction")
        )
        for labels, count in figures.traffic.items():
            traffic.add_metric(labels, count)
        yield traffic
        if figures.aggregators is not None:
            yield _plain("aggregators", "Aggregators that run", figures.aggregators)
            yield _plain("aggregators_orphaned", "Aggregators that run and whose project has no run", figures.orphans)
        yield _plain("notices_waiting", "Notices that wait to be sent", figures.notices)
        yield _plain("notices_undelivered", "Notices that were given up", figures.undelivered)
        yield _plain("disk_free_bytes", "Free on the disk of the service's state", figures.disk.free)
        yield _plain("disk_size_bytes", "Size of the disk of the service's state", figures.disk.size)
        yield _plain("followers", "Pages and notebooks that follow a project", figures.followers)
        tasks = {(name,): int(up) for name, up in figures.tasks.items()}
        yield _gauge("background_up", "Whether a background task runs", ("task",), tasks)


_IN_FLIGHT = tuple(status for status in RunStatus if not status.is_final)


def _by_one(counts: Mapping[RunStatus, int], all_of: Iterable[RunStatus]) -> dict[tuple[str], int]:
    """With a zero for what there is none of, so that a graph does not break off."""
    return {(one,): counts.get(one, 0) for one in all_of}


def _plain(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"federation_{name}", text, value=value)


def _gauge(name: str, text: str, labels: Sequence[str], values: Mapping[K, int]) -> Metric:
    family = GaugeMetricFamily(f"federation_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
