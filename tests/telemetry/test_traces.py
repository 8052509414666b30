"""Spans of requests, commands and steps, as an exporter gets them."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from bus.telemetry import Step
from gateway.http.call import Call
from infra.telemetry.traces import BusTraces, RequestTraces, Tracer, context_of
from schemas.envelope import Envelope

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT = f"00-{TRACE}-00f067aa0ba902b7-01"
UNSAMPLED = f"00-{TRACE}-00f067aa0ba902b7-00"
CREATE = Envelope("c1", "runtime.create_run", "t1", subject="r1", correlation_id="request-1", traceparent=CLIENT)


class Traced:
    def __init__(self, ratio: float = 1.0) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracer = Tracer("worker", "worker-1", self._exporter, ratio)
        self.bus = BusTraces(self.tracer)
        self.requests = RequestTraces(self.tracer)

    def spans(self) -> list[ReadableSpan]:
        self.tracer.stop()
        return list(self._exporter.get_finished_spans())


@pytest.fixture
def traced() -> Traced:
    return Traced()


def step(traceparent: str, correlation_id: str = "request-1", tenant_id: str = "t1") -> Step:
    return Step("code", tenant_id, "r1", "n1", "compute", 2, 3, traceparent, correlation_id)


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def test_a_request_goes_on_with_its_clients_trace_and_hands_on_its_own_span(traced: Traced) -> None:
    request = traced.requests.begin("POST", CLIENT)
    call = Call("request-1", request.traceparent, "POST", "/gateway/runtime/runs", 0.0, "/gateway/runtime/runs", "t1")
    call.status = 201
    request.end(call)
    (span,) = traced.spans()
    assert span.name == "POST /gateway/runtime/runs"
    assert span.kind is SpanKind.SERVER
    assert trace_of(span) == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == "00f067aa0ba902b7"
    handed_on = context_of(request.traceparent)
    assert handed_on is not None
    assert span.context is not None
    assert handed_on.span_id == span.context.span_id
    assert dict(span.attributes or {})["agent_platform.tenant_id"] == "t1"


@pytest.mark.parametrize("sent", ["", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "01-ab", CLIENT.upper(), CLIENT + " "])
def test_what_is_no_traceparent_begins_a_trace(traced: Traced, sent: str) -> None:
    traced.requests.begin("GET", sent).end(None)
    (span,) = traced.spans()
    assert span.parent is None
    assert trace_of(span) != TRACE


def test_handled_commands_are_children_of_their_senders_and_bear_their_own_tenant(traced: Traced) -> None:
    other = Envelope("c2", "runtime.create_run", "t2", subject="r2", correlation_id="x", traceparent="")
    traced.bus.handled([CREATE, other], 1_700_000_000.25, 1_700_000_000.75)
    first, second = traced.spans()
    assert first.name == "process runtime.create_run"
    assert trace_of(first) == TRACE
    assert trace_of(second) != TRACE
    assert [dict(span.attributes or {})["agent_platform.tenant_id"] for span in (first, second)] == ["t1", "t2"]
    assert (first.start_time, first.end_time) == (1_700_000_000_250_000_000, 1_700_000_000_750_000_000)
    assert "t1" not in str(second.attributes)


def test_a_steps_calls_and_its_answer_go_on_from_its_span(traced: Traced) -> None:
    begun = traced.bus.step(step(CLIENT))
    result = Envelope("c3", "runtime.complete_node", "t1", traceparent=begun.traceparent)
    begun.end("tool_http_error")
    traced.bus.handled([result], 1.0, 2.0)
    executed, handled = traced.spans()
    assert trace_of(executed) == trace_of(handled) == TRACE
    assert executed.status.status_code is StatusCode.ERROR
    assert dict(executed.attributes or {})["agent_platform.attempt"] == 2
    assert executed.context is not None
    assert handled.parent is not None
    assert handled.parent.span_id == executed.context.span_id


def test_without_a_traceparent_one_correlation_is_one_trace_in_every_process() -> None:
    here, there = Traced(), Traced()
    here.bus.handled([Envelope("c1", "runtime.create_run", "t1", correlation_id="shop-1")], 1.0, 2.0)
    there.bus.step(step("", "shop-1")).end()
    there.bus.step(step("", "shop-1", tenant_id="t2")).end()
    (handled,) = here.spans()
    executed, foreign = there.spans()
    assert trace_of(handled) == trace_of(executed)
    assert trace_of(foreign) != trace_of(handled), "another tenant's correlation is another one"


def test_a_trace_that_its_client_does_not_sample_is_not_exported(traced: Traced) -> None:
    request = traced.requests.begin("POST", UNSAMPLED)
    assert request.traceparent.endswith("-00")
    assert request.traceparent[3:35] == TRACE, "it goes on all the same: others may look at the flag"
    request.end(None)
    traced.bus.step(step(request.traceparent)).end()
    assert traced.spans() == []


def test_the_ratio_holds_for_traces_that_begin_here() -> None:
    none = Traced(ratio=0.0)
    none.requests.begin("GET", "").end(None)
    none.bus.step(step("", "shop-1")).end()
    none.requests.begin("GET", CLIENT).end(None)
    assert [trace_of(span) for span in none.spans()] == [TRACE], "the client's own wish counts more"
    some = Traced(ratio=0.25)
    for number in range(400):
        some.bus.step(step("", f"shop-{number}")).end()
    assert 50 < len(some.spans()) < 150
