"""Traces for OpenTelemetry: spans of requests, of handled commands and of executed steps, all of one trace.

Parents travel as W3C `traceparent`, in records and in the rows of runs: whoever takes work over continues the trace.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags

from bus.telemetry import BatchReport, Span, Step
from gateway.http.call import Call
from schemas.envelope import Envelope
from schemas.topics import COMMANDS

EXPORT_SECONDS_MAX = 5.0
"""For one export, and for the last one before the process ends."""
QUEUE_SPANS_MAX = 16_384
BATCH_SPANS_MAX = 1_024

_TRACEPARENT = re.compile(r"^00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})\Z")

Attributes = Mapping[str, str | int]


class Tracer:
    """Makes spans and exports them from a thread of its own; what it cannot export in time it drops.

    A trace that has begun elsewhere is sampled as its `traceparent` says; of the others `ratio`, chosen by trace
    id, so that all processes choose alike.
    """

    def __init__(self, role: str, name: str, exporter: SpanExporter, ratio: float = 1.0) -> None:
        ours = TraceIdRatioBased(ratio)
        self._bound = TraceIdRatioBased.get_bound_for_rate(ratio)
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win, as everywhere else.
        named = Resource({SERVICE_NAME: f"agent-platform-{role}", SERVICE_INSTANCE_ID: name})
        detected = Resource.create()
        service = str(detected.attributes.get(SERVICE_NAME, ""))
        resource = named.merge(detected) if not service.startswith("unknown_service") else detected.merge(named)
        self._provider = TracerProvider(resource=resource, sampler=ParentBased(ours), shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=QUEUE_SPANS_MAX,
                max_export_batch_size=BATCH_SPANS_MAX,
                schedule_delay_millis=1_000,
                export_timeout_millis=EXPORT_SECONDS_MAX * 1_000,
            )
        )
        self._tracer = self._provider.get_tracer("agent-platform")

    def begin(
        self, name: str, kind: SpanKind, attributes: Attributes, parent: SpanContext | None, at: float | None = None
    ) -> trace.Span:
        """`at`: seconds since 1970, now if none is given."""
        context = None if parent is None else trace.set_span_in_context(NonRecordingSpan(parent))
        return self._tracer.start_span(
            name, context, kind, dict(attributes), start_time=None if at is None else nanoseconds(at)
        )

    def parent(self, traceparent: str, tenant_id: str, correlation_id: str) -> SpanContext | None:
        """What a `traceparent` names. Without one, all that has one correlation id is one trace all the same."""
        given = context_of(traceparent)
        if given is not None or not correlation_id:
            return given
        digest = hashlib.sha256(f"{tenant_id}\x1f{correlation_id}".encode()).digest()
        trace_id, span_id = int.from_bytes(digest[:16]), int.from_bytes(digest[16:24])
        sampled = trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < self._bound
        return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(1 if sampled else 0))

    def stop(self) -> None:
        """Export what waits, within EXPORT_SECONDS_MAX; blocks."""
        self._provider.force_flush(int(EXPORT_SECONDS_MAX * 1_000))
        self._provider.shutdown()


def otlp_exporter(endpoint: str) -> SpanExporter:
    """To an OTLP/HTTP collector; `endpoint` is its base address, as in OTEL_EXPORTER_OTLP_ENDPOINT."""
    path = "/v1/traces"
    address = endpoint.rstrip("/")
    return OTLPSpanExporter(endpoint=address if address.endswith(path) else address + path, timeout=EXPORT_SECONDS_MAX)


def context_of(traceparent: str) -> SpanContext | None:
    """The span that a W3C `traceparent` names; None for one that is malformed."""
    found = _TRACEPARENT.match(traceparent)
    if found is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags & 1))


def traceparent_of(span: trace.Span) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"


def nanoseconds(seconds: float) -> int:
    return int(seconds * 1_000_000) * 1_000


class BusTraces:
    """`Telemetry` as spans: of handled commands, made after their commit, and of steps while they last."""

    traces = True

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def handled(self, commands: Sequence[Envelope], began: float, ended: float) -> None:
        for command in commands:
            attributes = {
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.destination.name": COMMANDS,
                "messaging.message.id": command.id,
                "agent_platform.command": command.type,
                "agent_platform.aggregate_id": command.subject,
                "agent_platform.tenant_id": command.tenant_id,
            }
            parent = self._tracer.parent(command.traceparent, command.tenant_id, command.correlation_id)
            span = self._tracer.begin(f"process {command.type}", SpanKind.CONSUMER, attributes, parent, began)
            span.end(nanoseconds(ended))

    def step(self, step: Step) -> Span:
        attributes: Attributes = {
            "agent_platform.tenant_id": step.tenant_id,
            "agent_platform.run_id": step.run_id,
            "agent_platform.node_run_id": step.node_run_id,
            "agent_platform.node_id": step.node_id,
            "agent_platform.attempt": step.attempt,
            "agent_platform.lease_token": step.lease_token,
        }
        parent = self._tracer.parent(step.traceparent, step.tenant_id, step.correlation_id)
        return _StepSpan(self._tracer.begin(f"step {step.kind}", SpanKind.INTERNAL, attributes, parent))

    def batch(self, done: BatchReport) -> None:
        return None

    def claimed(self, lanes: int, seconds: float) -> None:
        return None

    def fenced(self, lanes: int) -> None:
        return None


class _StepSpan:
    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self.traceparent = traceparent_of(span)

    def end(self, error: str = "") -> None:
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class RequestTraces:
    """Requests as spans: each continues its client's trace, or begins one."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, method: str, traceparent: str) -> _Request:
        return _Request(self._tracer.begin(method, SpanKind.SERVER, {}, context_of(traceparent)), method)


class _Request:
    def __init__(self, span: trace.Span, method: str) -> None:
        self._span = span
        self._method = method
        self.traceparent = traceparent_of(span)

    def end(self, call: Call | None) -> None:
        span = self._span
        span.set_attribute("http.request.method", self._method)
        if call is not None:
            if call.route:
                span.update_name(f"{self._method} {call.route}")
                span.set_attribute("http.route", call.route)
            if call.tenant_id:
                span.set_attribute("agent_platform.tenant_id", call.tenant_id)
            span.set_attribute("agent_platform.request_id", call.request_id)
            span.set_attribute("http.response.status_code", call.status)
            if call.status >= 500:
                span.set_status(StatusCode.ERROR)
        span.end()
