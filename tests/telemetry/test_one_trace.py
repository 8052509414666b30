"""One run, one trace: from the POST over retry, timer and take-over to its last step; and the metrics beside it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bus.producer import Producer
from gateway.http.server import serve
from handlers.steps.port import StepCall, StepFailed, StepResult
from infra.local.embedded import EmbeddedStack
from infra.roles.extras import Extras
from infra.roles.worker import worker
from infra.settings import Settings
from infra.telemetry.role import telemetry
from schemas.messages import JsonObject
from tests.live import prepared, until
from tests.patience import patient
from tests.telemetry.collector import Collector, collecting

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT_SPAN = "00f067aa0ba902b7"
TENANT, OTHER = "t1", "t2"
Figures = dict[tuple[str, ...], float]
GREET: JsonObject = {
    "nodes": [
        {"id": "start", "type": "start"},
        {"id": "shaky", "type": "tool",
         "config": {"tool_binding_id": "x", "retry_policy": {"max_attempts": 2, "retry_delay_seconds": 0.1}}},
        {"id": "wait", "type": "template-transform", "config": {"template": "waited", "delay_seconds": 0.1}},
        {"id": "held", "type": "tool", "config": {"tool_binding_id": "x"}},
        {"id": "answer", "type": "answer", "config": {"template": "done"}},
    ],
    "edges": [{"source": a, "target": b} for a, b in
              (("start", "shaky"), ("shaky", "wait"), ("wait", "held"), ("held", "answer"))],
}  # fmt: skip


@dataclass
class Effects:
    """The first attempt of `shaky` fails; the first holder of `held` never answers."""

    taken: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[StepCall] = field(default_factory=list)

    async def perform(self, call: StepCall) -> StepResult:
        before = sum(earlier.node_run_id == call.node_run_id for earlier in self.calls)
        self.calls.append(call)
        if call.node_id == "shaky" and call.attempt == 1:
            raise StepFailed("too_early", "once more")
        if call.node_id == "held" and call.tenant_id == TENANT and not before:
            self.taken.set()
            await asyncio.Event().wait()
        return StepResult({})


@dataclass
class Scene:
    collector: Collector
    effects: Effects
    runs: dict[str, str] = field(default_factory=dict)
    metrics: Figures = field(default_factory=dict)
    gateway: Figures = field(default_factory=dict)

    def of_tenant(self, tenant: str) -> list[Any]:
        return [s for s in self.collector.spans if s.attributes.get("agent_platform.tenant_id") == tenant]


@contextlib.asynccontextmanager
async def _gateway(settings: Settings, metrics: Figures) -> AsyncIterator[httpx.AsyncClient]:
    producer = Producer(settings.required_kafka_bootstrap, prefix=settings.topic_prefix, timeout_seconds=5.0)
    stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
    async with telemetry(settings, "gateway", "gateway-1") as told:
        serving = serve(
            settings,
            producer,
            database_url=settings.required_database_url,
            kafka_bootstrap=settings.required_kafka_bootstrap,
            stop=stop,
            started=port.set_result,
            telemetry=told.requests,
        )
        task = asyncio.create_task(serving)
        try:
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{await port}/gateway", timeout=patient(40)
            ) as http:
                yield http
                http.base_url = httpx.URL(f"http://127.0.0.1:{told.port}")
                _read((await http.get("/metrics")).text, metrics)
        finally:
            stop.set()
            await task
            await producer.stop()


@contextlib.asynccontextmanager
async def _worker(settings: Settings, effects: Effects, metrics: Figures) -> AsyncIterator[None]:
    async with worker(settings, Extras(performers={"tool": effects.perform})) as running:
        tasks = [asyncio.create_task(running.worker.run())]
        tasks.extend(asyncio.create_task(duty.run()) for duty in running.duties)
        try:
            yield

            async def all_handled() -> bool:
                async with httpx.AsyncClient() as http:
                    _read((await http.get(f"http://127.0.0.1:{running.parts.told.port}/metrics")).text, metrics)
                return not any(value for name, value in metrics.items() if name[0] == "agent_platform_lane_lag")

            await until(all_handled)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _read(text: str, into: Figures) -> None:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            into[sample.name, *(value for _, value in sorted(sample.labels.items()))] = sample.value


async def _workflow(http: httpx.AsyncClient, tenant: str) -> str:
    app = await http.post("/workflows/apps", json={"tenant_id": tenant, "code": "a", "name": "A"})
    body = {"tenant_id": tenant, "app_id": app.json()["id"], "code": "greet", "name": "Greet"}
    workflow = (await http.post("/workflows", json=body)).json()["id"]
    body = {"tenant_id": tenant, "workflow_id": workflow, "dsl_json": GREET, "status": "published"}
    made = await http.post("/workflows/versions", json=body)
    assert made.status_code == 201, made.text
    return str(workflow)


async def _ended(database: asyncpg.Connection, run_id: str) -> None:
    async def look() -> bool | None:
        status = await database.fetchval("SELECT status FROM run WHERE id = $1 AND ended_at IS NOT NULL", run_id)
        assert status in (None, "completed")
        return status is not None

    await until(look)


@pytest.fixture(scope="module")
def seen(services: EmbeddedStack) -> Scene:
    """A run that is retried, waits, and loses its worker; another tenant's run beside it."""
    return asyncio.run(_play(services))


async def _play(services: EmbeddedStack) -> Scene:
    effects = Effects()
    with collecting() as collector:
        options = {"otel_endpoint": collector.endpoint, "metrics_port": 0}
        options |= {"lease_seconds": 4.0, "lease_renew_seconds": 0.5, "session_timeout_seconds": 6.0}
        scene = Scene(collector, effects)
        async with prepared(services, "one_trace", **options) as settings:
            database = await asyncpg.connect(settings.database_url)
            try:
                async with _gateway(settings, scene.gateway) as http:
                    async with _worker(settings, effects, {}):
                        workflows = {tenant: await _workflow(http, tenant) for tenant in (TENANT, OTHER)}
                        for tenant, traceparent in ((TENANT, f"00-{TRACE}-{CLIENT_SPAN}-01"), (OTHER, "")):
                            answer = await http.post(
                                "/runtime/runs",
                                json={"tenant_id": tenant, "workflow_id": workflows[tenant]},
                                headers={"traceparent": traceparent} if traceparent else {},
                            )
                            assert answer.status_code == 201, answer.text
                            scene.runs[tenant] = answer.json()["id"]
                        await asyncio.wait_for(effects.taken.wait(), patient(30))
                        await _ended(database, scene.runs[OTHER])
                    async with _worker(settings, effects, scene.metrics):
                        await _ended(database, scene.runs[TENANT])
            finally:
                await database.close()
    return scene


def test_the_post_continues_its_clients_trace(seen: Scene) -> None:
    (post,) = [s for s in seen.collector.named("POST /gateway/runtime/runs") if s.trace_id == TRACE]
    assert post.service == "agent-platform-gateway"
    assert post.parent_id == CLIENT_SPAN
    assert post.attributes["agent_platform.tenant_id"] == TENANT


def test_every_attempt_of_every_step_is_in_that_trace(seen: Scene) -> None:
    run = seen.runs[TENANT]
    steps = [s for s in seen.collector.named("step tool") if s.attributes["agent_platform.run_id"] == run]
    made = [(s.attributes["agent_platform.node_id"], s.attributes["agent_platform.attempt"], s.failed) for s in steps]
    assert sorted(made) == [("held", 1, False), ("held", 1, True), ("shaky", 1, True), ("shaky", 2, False)]
    assert {s.trace_id for s in steps} == {TRACE}
    assert {s.service for s in steps} == {"agent-platform-worker"}
    tokens = sorted(
        s.attributes["agent_platform.lease_token"] for s in steps if s.attributes["agent_platform.node_id"] == "held"
    )
    assert tokens[0] < tokens[1], "who took it over holds a later lease"


def test_what_a_step_calls_goes_on_from_its_own_span(seen: Scene) -> None:
    spans = {s.span_id for s in seen.collector.named("step tool") if s.trace_id == TRACE}
    called = {call.traceparent for call in seen.effects.calls if call.tenant_id == TENANT}
    assert len(called) == 4
    assert called == {f"00-{TRACE}-{span}-01" for span in spans}


def test_every_command_of_the_run_is_in_that_trace_with_timers_and_take_over(seen: Scene) -> None:
    run = seen.runs[TENANT]
    handled = [s for s in seen.collector.spans if s.attributes.get("agent_platform.aggregate_id") == run]
    names = {s.name.removeprefix("process runtime.") for s in handled}
    assert {"create_run", "fail_node", "complete_node", "resume_node", "expire_lease"} <= names
    assert {s.trace_id for s in handled} == {TRACE}


def test_the_tree_hangs_together(seen: Scene) -> None:
    spans = [s for s in seen.collector.spans if s.trace_id == TRACE]
    ids = {s.span_id for s in spans} | {CLIENT_SPAN}
    assert [s for s in spans if s.parent_id not in ids] == []


def test_no_span_bears_two_tenants(seen: Scene) -> None:
    assert {s.trace_id for s in seen.of_tenant(TENANT)} & {s.trace_id for s in seen.of_tenant(OTHER)} == set()
    for tenant, other in ((TENANT, OTHER), (OTHER, TENANT)):
        for span in seen.of_tenant(tenant):
            assert seen.runs[other] not in str(span.attributes)
    tenants = {s.attributes.get("agent_platform.tenant_id") for s in seen.collector.spans}
    assert tenants == {TENANT, OTHER}, "every span says whose it is"


def test_the_worker_that_took_over_counts_what_it_did(seen: Scene) -> None:
    assert seen.metrics["agent_platform_step_seconds_count", "tool", "completed"] == 1
    assert seen.metrics["agent_platform_lanes_owned",] == 6
    assert seen.metrics["agent_platform_waiting", "steps_leased"] == 0
    assert seen.metrics["agent_platform_records_total", "runtime.complete_node"] >= 1
    assert (
        seen.metrics["agent_platform_batches_total", "at_once"]
        + seen.metrics["agent_platform_batches_total", "step_by_step"]
        >= 1
    )
    assert seen.metrics["agent_platform_events_total",] >= 3
    assert seen.metrics["agent_platform_lanes_claimed_total",] >= 6
    assert seen.metrics["agent_platform_lane_lag", "0", "commands"] == 0


def test_the_gateway_counts_by_route_template(seen: Scene) -> None:
    assert seen.gateway["agent_platform_http_requests_total", "POST", "/gateway/runtime/runs", "201"] == 2
    assert seen.runs[TENANT] not in str(seen.gateway)
    assert not any(TENANT in key or OTHER in key for key in seen.gateway)
