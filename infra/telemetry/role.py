"""The telemetry of one role, put together from its settings: metrics, traces, both or neither."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import asyncpg

from bus.telemetry import SILENT, BatchReport, Span, Step, Telemetry
from gateway.http.call import Call
from gateway.http.origins import hosts_of
from gateway.http.telemetry import RequestSpan, RequestTelemetry
from infra.settings import Settings
from infra.telemetry.metrics import BusMetrics, Metrics, WaitingMetrics
from infra.telemetry.serving import nothing, serving
from schemas.envelope import Envelope

log = logging.getLogger("agent_platform.telemetry")

LOOK_SECONDS_MIN = 2.0
"""However often metrics are read, Postgres is asked at most this often."""


class Both:
    """`Telemetry` that tells several."""

    def __init__(self, parts: Sequence[Telemetry]) -> None:
        self._parts = parts
        self.traces = any(part.traces for part in parts)

    def batch(self, done: BatchReport) -> None:
        for part in self._parts:
            part.batch(done)

    def handled(self, commands: Sequence[Envelope], began: float, ended: float) -> None:
        for part in self._parts:
            part.handled(commands, began, ended)

    def claimed(self, lanes: int, seconds: float) -> None:
        for part in self._parts:
            part.claimed(lanes, seconds)

    def fenced(self, lanes: int) -> None:
        for part in self._parts:
            part.fenced(lanes)

    def step(self, step: Step) -> Span:
        return _Spans([part.step(step) for part in self._parts], step.traceparent)


class _Spans:
    def __init__(self, spans: Sequence[Span], traceparent: str) -> None:
        self._spans = spans
        self.traceparent = next((span.traceparent for span in spans if span.traceparent != traceparent), traceparent)

    def end(self, error: str = "") -> None:
        for span in self._spans:
            span.end(error)


class BothRequests:
    """`RequestTelemetry` that tells several."""

    def __init__(self, parts: Sequence[RequestTelemetry]) -> None:
        self._parts = parts

    def begin(self, method: str, traceparent: str) -> RequestSpan:
        return _RequestSpans([part.begin(method, traceparent) for part in self._parts])


class _RequestSpans:
    def __init__(self, spans: Sequence[RequestSpan]) -> None:
        self._spans = spans
        self.traceparent = next((span.traceparent for span in spans if span.traceparent), "")

    def end(self, call: Call | None) -> None:
        for span in self._spans:
            span.end(call)


@dataclass(slots=True)
class RoleTelemetry:
    """What a role tells: `bus` of batches and steps, `requests` of HTTP, `metrics` to add collectors to."""

    bus: Telemetry = SILENT
    requests: RequestTelemetry | None = None
    metrics: Metrics | None = None
    port: int = 0
    waiting: Waiting | None = None


class Waiting:
    """Asks Postgres what waits, whenever the metrics are read and the last look is old."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = WaitingMetrics(metrics)
        self._looked = float("-inf")
        self._looking = asyncio.Lock()
        self.pool: asyncpg.Pool | None = None
        """Given by the role once it has one; until then nobody is asked."""

    async def look(self) -> None:
        from infra.database.waiting import waiting

        async with self._looking:
            if self.pool is None or time.monotonic() - self._looked < LOOK_SECONDS_MIN:
                return
            self._looked = time.monotonic()
            found = await waiting(self.pool)
            counts = {what: unit.count for what, unit in found.items()}
            self._metrics.seen(counts, {what: unit.oldest_seconds for what, unit in found.items()})


@contextlib.asynccontextmanager
async def telemetry(settings: Settings, role: str, name: str) -> AsyncIterator[RoleTelemetry]:
    """The telemetry of a role while the block lasts. Raises OSError if the port of its metrics is taken."""
    told = RoleTelemetry()
    buses: list[Telemetry] = []
    requests: list[RequestTelemetry] = []
    async with AsyncExitStack() as stack:
        if settings.otel_endpoint is not None:
            # Half a second of imports, for those only who want traces.
            from infra.telemetry.traces import BusTraces, RequestTraces, Tracer, otlp_exporter

            tracer = Tracer(role, name, otlp_exporter(settings.otel_endpoint), settings.otel_sample_ratio)
            stack.push_async_callback(asyncio.to_thread, tracer.stop)
            buses.append(BusTraces(tracer))
            requests.append(RequestTraces(tracer))
        if settings.metrics_port is not None:
            from infra.telemetry.requests import RequestMetrics

            told.metrics = Metrics()
            if role == "gateway":
                requests.append(RequestMetrics(told.metrics))
            else:
                buses.append(BusMetrics(told.metrics))
                told.waiting = Waiting(told.metrics)
            look = nothing if told.waiting is None else told.waiting.look
            told.port = await stack.enter_async_context(
                serving(
                    told.metrics,
                    settings.metrics_host,
                    settings.metrics_port,
                    look,
                    hosts=hosts_of(settings.metrics_host, settings),
                )
            )
            log.info("metrics are at http://%s:%d/metrics", settings.metrics_host, told.port)
        if buses:
            told.bus = buses[0] if len(buses) == 1 else Both(buses)
        if requests:
            told.requests = requests[0] if len(requests) == 1 else BothRequests(requests)
        yield told
