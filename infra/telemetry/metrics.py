"""Metrics for Prometheus: counters and histograms of what a role does, gauges of the lanes it owns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from bus.lanes import INGRESS_BASE
from bus.telemetry import BatchReport, Span, Step
from outbox.retention import Round
from schemas.envelope import Envelope
from schemas.topics import COMMANDS, INGRESS

PREFIX = "agent_platform"
SHORT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Buckets of what should take milliseconds."""
LONG_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Buckets of steps: a no-op, a model call, a long tool."""
BATCH_RECORDS = (1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 1_000)


class OwnedLane(Protocol):
    """A lane as its owner has it in memory."""

    @property
    def id(self) -> int: ...
    @property
    def dealt(self) -> int: ...
    @property
    def position(self) -> int: ...
    @property
    def sent(self) -> int: ...
    @property
    def stopped(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Owned:
    """A lane, and where reading its topic's partition ends as far as the consumer has heard of it.

    `held_back`: how many offsets behind that wait for the end of an open transaction.
    """

    lane: OwnedLane
    end_offset: int
    held_back: int = 0


class Metrics:
    """One registry of a process. Everything but lanes and work waiting is counted as it happens."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # A second series for each, which the start of the process says as well.
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)

    def text(self) -> bytes:
        """All of them in Prometheus's text format 0.0.4."""
        return generate_latest(self.registry)

    def watch(self, collector: Collector) -> None:
        """Ask this collector too whenever the metrics are read."""
        self.registry.register(collector)

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"{PREFIX}_{name}", help, labels, registry=self.registry)

    def histogram(self, name: str, help: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", help, labels, buckets=buckets, registry=self.registry)

    def gauge(self, name: str, help: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", help, labels, registry=self.registry)


class BusMetrics:
    """`Telemetry` as metrics: of the lanes' batches, and of the steps executed in this process."""

    traces = False

    def __init__(self, metrics: Metrics) -> None:
        self._batches = metrics.counter("batches", "Transactions of records", ["way"])
        self._at_once = self._batches.labels("at_once")
        self._step_by_step = self._batches.labels("step_by_step")
        self._records = metrics.counter("records", "Records handled, by type of command", ["type"])
        self._of_type: dict[str, Counter] = {}
        self._rows = metrics.counter("rows", "Rows of projections inserted or changed")
        self._events = metrics.counter("events", "Events recorded")
        self._outs = metrics.counter("outs", "Records sent beside events: follow-ups, outcomes, dead letters")
        self._ended = metrics.counter("aggregates_ended", "Aggregates that came to their end: runs")
        self._letters = metrics.counter("dead_letters", "Records refused for good")
        self._batch_records = metrics.histogram("batch_records", "Records of a transaction", BATCH_RECORDS)
        self._decide = metrics.histogram("decide_seconds", "Time to decide one batch", SHORT_SECONDS)
        self._commit = metrics.histogram("commit_seconds", "Time until one batch is committed", SHORT_SECONDS)
        self._claims = metrics.histogram("claim_seconds", "Time to claim and drain lanes", SHORT_SECONDS)
        self._claimed = metrics.counter("lanes_claimed", "Lanes claimed")
        self._fenced = metrics.counter("lanes_fenced", "Lanes that turned out to be another worker's")
        self._leased = metrics.counter("steps_leased", "Steps leased by the batch that made them")
        self._steps = metrics.histogram(
            "step_seconds", "Time to execute one step, by kind and outcome", LONG_SECONDS, ["kind", "outcome"]
        )
        self._executing = metrics.gauge("steps_executing", "Steps under way", ["kind"])

    def batch(self, done: BatchReport) -> None:
        (self._at_once if done.at_once else self._step_by_step).inc()
        records = 0
        for type, count in done.records.items():
            self._type(type).inc(count)
            records += count
        self._batch_records.observe(records)
        self._rows.inc(done.rows)
        self._events.inc(done.events)
        self._outs.inc(done.outs)
        self._leased.inc(done.steps)
        self._ended.inc(done.ended)
        self._letters.inc(done.dead_letters)
        self._decide.observe(done.deciding_seconds)
        self._commit.observe(done.committing_seconds)

    def _type(self, type: str) -> Counter:
        known = self._of_type.get(type)
        if known is None:
            known = self._of_type[type] = self._records.labels(type)
        return known

    def handled(self, commands: Sequence[Envelope], began: float, ended: float) -> None:
        return None

    def claimed(self, lanes: int, seconds: float) -> None:
        self._claimed.inc(lanes)
        self._claims.observe(seconds)

    def fenced(self, lanes: int) -> None:
        self._fenced.inc(lanes)

    def step(self, step: Step) -> Span:
        return _Timed(self._steps, self._executing.labels(step.kind), step)


class _Timed:
    """A step being timed."""

    __slots__ = ("_began", "_executing", "_kind", "_seconds", "traceparent")

    def __init__(self, seconds: Histogram, executing: Gauge, step: Step) -> None:
        self._seconds, self._executing, self._kind = seconds, executing, step.kind
        self.traceparent = step.traceparent
        self._began = perf_counter()
        executing.inc()

    def end(self, error: str = "") -> None:
        self._executing.dec()
        outcome = "failed" if error else "completed"  # A step's own error codes are its author's choice.
        self._seconds.labels(self._kind, outcome).observe(perf_counter() - self._began)


class LaneMetrics(Collector):
    """The lanes that this process owns, as they stand whenever they are asked for."""

    def __init__(self, owned: Callable[[], Iterable[Owned]]) -> None:
        self._owned = owned

    def collect(self) -> Iterator[Metric]:
        labels = ("topic", "partition")
        lag = GaugeMetricFamily(f"{PREFIX}_lane_lag", "Records of a partition not handled yet", labels=labels)
        unsent = GaugeMetricFamily(
            f"{PREFIX}_outbox_unsent", "Records made and not known to be on Kafka", labels=labels
        )
        held_back = GaugeMetricFamily(
            f"{PREFIX}_lane_held_back", "Offsets behind a publisher's open transaction", labels=labels
        )
        offset = GaugeMetricFamily(f"{PREFIX}_lane_next_offset", "The next offset to be handled", labels=labels)
        stopped = GaugeMetricFamily(f"{PREFIX}_lane_stopped", "1 if the lane waits for a person", labels=labels)
        count = 0
        for each in self._owned():
            lane, place = each.lane, _place(each.lane.id)
            count += 1
            lag.add_metric(place, max(0, each.end_offset - lane.dealt))
            held_back.add_metric(place, each.held_back)
            unsent.add_metric(place, lane.position - lane.sent)
            offset.add_metric(place, lane.dealt)
            stopped.add_metric(place, 1 if lane.stopped else 0)
        yield GaugeMetricFamily(f"{PREFIX}_lanes_owned", "Lanes that this process owns", value=count)
        yield from (lag, held_back, unsent, offset, stopped)

    def describe(self) -> Iterable[Metric]:
        return ()


class WaitingMetrics:
    """What waits in Postgres, over all processes: told by `seen` shortly before the metrics are read."""

    def __init__(self, metrics: Metrics) -> None:
        self._waiting = metrics.gauge("waiting", "Units that wait, by what they are", ["what"])
        self._oldest = metrics.gauge("oldest_seconds", "Age of the unit that waits longest", ["what"])

    def seen(self, waiting: Mapping[str, int], oldest_seconds: Mapping[str, float]) -> None:
        for what, count in waiting.items():
            self._waiting.labels(what).set(count)
        for what, seconds in oldest_seconds.items():
            self._oldest.labels(what).set(seconds)


class RetentionMetrics:
    """What retention forgets, told after each of its rounds."""

    def __init__(self, metrics: Metrics) -> None:
        self._rows = metrics.counter("retention_rows", "Rows forgotten or removed by retention", ["what"])
        self._aggregates = metrics.counter("retention_aggregates", "Ended aggregates removed whole", ["kind"])
        self._oldest = metrics.gauge(
            "retention_oldest_ended_seconds", "How long ago the aggregate ended that ended first and is kept", ["kind"]
        )

    def seen(self, done: Round, now: float) -> None:
        for what, count in done.rows.items():
            self._rows.labels(what).inc(count)
        for kind, count in done.aggregates.items():
            self._aggregates.labels(kind).inc(count)
            self._oldest.labels(kind).set(max(0.0, now - done.oldest.get(kind, now)))


def _place(lane: int) -> list[str]:
    ingress = lane >= INGRESS_BASE
    return [INGRESS if ingress else COMMANDS, str(lane - INGRESS_BASE if ingress else lane)]
