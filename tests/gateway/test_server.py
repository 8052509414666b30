"""One gateway and one worker on real Kafka and Postgres: started, used, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
import pytest

from bus.producer import Producer
from gateway.http.server import listen, serve
from infra.local.embedded import EmbeddedStack
from infra.roles import worker as worker_role
from infra.roles.extras import Extras
from infra.roles.prepare import create_topics, migrate
from infra.settings import Settings
from tests.gateway.test_workflows import GREET
from tests.patience import patient


def test_what_the_gateway_accepts_is_not_delayed() -> None:
    """asyncio switches Nagle's algorithm off only where the listening socket says that it is TCP."""
    listening = listen("127.0.0.1", 0)
    with contextlib.closing(listening):
        assert listening.proto == socket.IPPROTO_TCP
        with pytest.raises(OSError, match="in use"):
            listen("127.0.0.1", listening.getsockname()[1])


@dataclass
class Running:
    """A gateway that serves; `stop` ends it in order, `task` is done then."""

    http: httpx.AsyncClient
    stop: asyncio.Event
    task: asyncio.Task[None]
    settings: Settings


@contextlib.asynccontextmanager
async def gateway(settings: Settings) -> AsyncIterator[Running]:
    producer = Producer(settings.required_kafka_bootstrap, prefix=settings.topic_prefix, timeout_seconds=5.0)
    stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve(
            settings,
            producer,
            database_url=settings.required_database_url,
            kafka_bootstrap=settings.required_kafka_bootstrap,
            stop=stop,
            started=port.set_result,
        )
    )
    try:
        await asyncio.wait({task, port}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{await port}", timeout=patient(40)) as http:
            yield Running(http, stop, task, settings)
    finally:
        stop.set()
        await task
        await producer.stop()


@contextlib.asynccontextmanager
async def worker(settings: Settings) -> AsyncIterator[None]:
    async with worker_role.worker(settings, Extras()) as running:
        tasks = [asyncio.create_task(running.worker.run())]
        tasks.extend(asyncio.create_task(duty.run()) for duty in running.duties)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def settings(services: EmbeddedStack) -> AsyncIterator[Settings]:
    """A database and topics of this test's own."""
    name = f"server_{uuid.uuid4().hex[:12]}"
    first = await asyncpg.connect(services.database_url)
    await first.execute(f"create database {name}")
    settings = Settings(
        database_url=services.postgres.url_of(name),
        kafka_bootstrap=services.kafka_bootstrap,
        topic_prefix=f"{name}.",
        gateway_port=0,
        commands_partitions=2,
        ingress_partitions=1,
        events_partitions=2,
        steps_partitions=1,
        replies_partitions=2,
        live_partitions=1,
        dead_letters_partitions=1,
        gateway_instance=1,
    )
    await migrate(settings)
    await create_topics(settings)
    try:
        yield settings
    finally:
        await first.execute(f"drop database {name} with (force)")
        await first.close()


@pytest.mark.services
async def test_a_write_is_a_command_whose_outcome_comes_back(settings: Settings) -> None:
    async with worker(settings), gateway(settings) as running:
        http = running.http
        assert (await http.get("/ready")).json()["services"] == {"kafka": "up", "postgres": "up"}
        body = {"tenant_id": "t1", "code": "greet", "name": "Greet"}
        headers = {"idempotency-key": "k", "prefer": "wait=30"}
        made = await http.post("/gateway/workflows", json=body, headers=headers)
        assert made.status_code == 201, made.text
        again = await http.post("/gateway/workflows", json=body, headers=headers)
        assert (again.status_code, again.json()) == (201, made.json())
        other = await http.post("/gateway/workflows", json=body | {"name": "x"}, headers=headers)
        assert other.status_code == 422
        refused = await http.post("/gateway/workflows", json=body)
        assert (refused.status_code, refused.json()["existing_id"]) == (409, made.json()["id"])

        version = {"workflow_id": made.json()["id"], "dsl_json": GREET, "status": "published"}
        published = await http.post("/gateway/workflows/versions", json=version, headers={"prefer": "wait=30"})
        assert (published.status_code, published.json()["status"]) == (201, "published"), published.text
        run = await http.post("/gateway/runtime/runs", json={"workflow_id": made.json()["id"]})
        assert (run.status_code, run.json()["status"]) == (201, "completed")
        runs = "/gateway/runtime/runs?tenant_id=t1"
        assert [each["id"] for each in (await http.get(runs)).json()["items"]] == [run.json()["id"]]
        (check,) = (await http.get(f"{runs}&kind=single")).json()["items"]  # What the platform did for itself.
        assert (check["status"], check["output_json"]) == ("completed", {"problems": []})
        path = f"/gateway/runtime/runs/{run.json()['id']}"
        assert (await http.get(path)).json()["output_text"] == "Hello"
        for id in (run.json()["id"], str(uuid.uuid4())):
            foreign = await http.get(f"/gateway/runtime/runs/{id}", headers={"x-tenant-id": "t2"})
            assert (foreign.status_code, foreign.json()["detail"]) == (404, "no such run")
        cancelled = await http.post(f"{path}/cancel", headers={"x-tenant-id": "t2"})
        assert cancelled.status_code == 404


@pytest.mark.services
async def test_of_many_parallel_tries_one_makes_the_first_key(settings: Settings) -> None:
    settings = settings.model_copy(update={"auth_required": True, "bootstrap_open": True})
    async with worker(settings), gateway(settings) as running:
        answers = await asyncio.gather(
            *(
                running.http.post(
                    "/gateway/api-keys",
                    json={"tenant_id": f"t{number}", "name": "first"},
                    headers={"prefer": "wait=30"},
                )
                for number in range(50)
            )
        )
        (won,) = [answer for answer in answers if answer.status_code == 201]
        assert {answer.status_code for answer in answers} <= {201, 401, 409}
        headers = {"x-api-key": won.json()["api_key"]}
        (listed,) = (await running.http.get("/gateway/api-keys", headers=headers)).json()["items"]
        assert listed["id"] == won.json()["id"]


CODE = {
    "nodes": [
        {"id": "start", "type": "start", "config": {}},
        {
            "id": "sum",
            "type": "code",
            "config": {
                "language": "python",
                "input_json": {"numbers": [1, 2, 3]},
                "code": "result = {'total': sum(payload['numbers'])}",
            },
        },
        {"id": "say", "type": "answer", "config": {"template": "{{nodes.sum.output.result_json.total}}"}},
    ],
    "edges": [{"source": "start", "target": "sum"}, {"source": "sum", "target": "say"}],
}


@pytest.mark.services
async def test_a_call_that_executes_answers_when_the_step_is_done(settings: Settings) -> None:
    async with worker(settings), gateway(settings) as running:
        http = running.http

        async def post(path: str, **body: object) -> Any:
            answer = await http.post(f"/gateway/{path}", json=body, headers={"prefer": "wait=30"})
            assert answer.status_code in (200, 201), answer.text
            return answer.json()

        workflow = await post("workflows", code="sum", name="Sum")
        await post("workflows/versions", workflow_id=workflow["id"], dsl_json=CODE, status="published")

        run = await post("runtime/runs", workflow_id=workflow["id"], mode="manual")
        path = f"runtime/runs/{run['id']}"
        assert (await post(f"{path}/execute-next", worker_key="w"))["status"] == "running"
        node = await post("runtime/workers/execute-next", worker_key="w", lease_seconds=300)
        assert (node["node_id"], node["status"]) == ("sum", "completed")
        assert node["output_json"]["result_json"] == {"total": 6}
        done = await post(f"{path}/execute", worker_key="w", max_steps=16)
        assert (done["status"], done["output_text"]) == ("completed", "6")

        auto = await post("runtime/runs", workflow_id=workflow["id"])
        done = await post(f"runtime/runs/{auto['id']}/execute", worker_key="w")
        assert (done["status"], done["output_text"]) == ("completed", "6")


FAILS: dict[str, Any] = {
    "nodes": [
        {"id": "c", "type": "code", "config": {"language": "python", "code": "result = 1 / 0"}},
        {"id": "never", "type": "answer", "config": {"template": "不会"}},
    ],
    "edges": [{"source": "c", "target": "never"}],
}
WAITS: dict[str, Any] = {
    "nodes": [{"id": "later", "type": "answer", "config": {"template": "later", "delay_seconds": 600}}],
    "edges": [],
}


@pytest.mark.services
async def test_a_run_is_started_and_answered_with_its_end(settings: Settings) -> None:
    async with worker(settings), gateway(settings) as running:
        http = running.http

        async def workflow(tenant: str, code: str, dsl: dict[str, Any]) -> str:
            body = {"tenant_id": tenant, "code": code, "name": code}
            made = await http.post("/gateway/workflows", json=body, headers={"prefer": "wait=30"})
            version = {"workflow_id": made.json()["id"], "dsl_json": dsl, "status": "published"}
            published = await http.post("/gateway/workflows/versions", json=version, headers={"prefer": "wait=30"})
            assert published.status_code == 201, published.text
            return str(made.json()["id"])

        async def start(workflow_id: str, seconds: int = 60, key: str | None = None) -> httpx.Response:
            headers = {"prefer": f"wait={seconds}"} | ({"idempotency-key": key} if key else {})
            path = "/gateway/runtime/runs?until=ended"
            return await http.post(path, json={"workflow_id": workflow_id}, headers=headers)

        chains = {tenant: await workflow(tenant, "sum", CODE) for tenant in ("t1", "租户")}
        answers = await asyncio.gather(*(start(chains[tenant]) for tenant in list(chains) * 5))
        assert {answer.status_code for answer in answers} == {201}
        runs = [answer.json() for answer in answers]
        assert [(run["status"], run["output_text"]) for run in runs] == [("completed", "6")] * 10
        assert [run["tenant_id"] for run in runs] == list(chains) * 5
        assert len({run["id"] for run in runs}) == 10

        run = runs[-1]
        events = (await http.get(f"/gateway/runtime/runs/{run['id']}/events")).json()["items"]
        assert [event["seq"] for event in events] == list(range(1, run["seq"] + 1))
        assert (events[-1]["type"], events[-1]["data"]["output_text"]) == ("runtime.run_completed", "6")
        foreign = await http.get(f"/gateway/runtime/runs/{run['id']}/events", headers={"x-tenant-id": "t1"})
        assert foreign.status_code == 404

        failed = await start(await workflow("t1", "fails", FAILS))
        assert (failed.status_code, failed.json()["status"]) == (201, "failed"), failed.text
        assert failed.json()["error"]["node_id"] == "c"

        waits = await workflow("t1", "waits", WAITS)
        late = await start(waits, seconds=1, key="late")
        assert (late.status_code, late.json()["result"]["status"]) == (202, "waiting"), late.text
        run = (await http.get(late.headers["location"])).json()
        assert (run["id"], run["status"]) == (late.json()["id"], "waiting")
        cancelling = asyncio.create_task(start(waits, key="late"))
        cancelled = await http.post(f"{late.headers['location']}/cancel", headers={"prefer": "wait=30"})
        assert cancelled.json()["status"] == "cancelled"
        again = await cancelling
        assert (again.status_code, again.json()["id"], again.json()["status"]) == (201, run["id"], "cancelled")


@pytest.mark.services
async def test_a_gateway_that_stops_answers_those_who_wait_for_an_end(settings: Settings) -> None:
    async with worker(settings), gateway(settings) as running:
        http = running.http
        made = await http.post("/gateway/workflows", json={"code": "w", "name": "W"}, headers={"prefer": "wait=30"})
        version = {"workflow_id": made.json()["id"], "dsl_json": WAITS, "status": "published"}
        await http.post("/gateway/workflows/versions", json=version, headers={"prefer": "wait=30"})
        body = {"workflow_id": made.json()["id"]}
        path = "/gateway/runtime/runs?until=ended"
        waiting = asyncio.create_task(http.post(path, json=body, headers={"prefer": "wait=60"}))
        async with asyncio.timeout(patient(30)):
            while not (await http.get("/gateway/runtime/runs")).json()["items"]:
                await asyncio.sleep(0.05)
        running.stop.set()
        assert (await waiting).status_code == 202


@pytest.mark.services
async def test_without_a_worker_a_write_waits_and_its_outcome_comes_later(settings: Settings) -> None:
    async with gateway(settings) as running:
        answer = await running.http.post(
            "/gateway/workflows/apps", json={"code": "a", "name": "A"}, headers={"prefer": "wait=1"}
        )
        assert answer.status_code == 202
        where = answer.headers["location"]
        assert (await running.http.get(where)).json()["status"] == "pending"
        async with worker(settings), asyncio.timeout(patient(60)):
            while (told := (await running.http.get(where)).json())["status"] == "pending":
                await asyncio.sleep(0.1)
        assert (told["status"], told["result"]["code"]) == ("succeeded", "a")


@pytest.mark.services
async def test_a_clean_stop_finishes_what_is_asked_and_writes_every_audit(settings: Settings) -> None:
    async with gateway(settings) as running:
        slow = asyncio.create_task(
            running.http.post("/gateway/workflows/apps", json={"code": "a", "name": "A"}, headers={"prefer": "wait=2"})
        )
        for _ in range(20):
            assert (await running.http.get("/gateway/runtime/runs")).status_code == 200
        running.stop.set()
        assert (await slow).status_code == 202
        await running.task
    connection = await asyncpg.connect(settings.required_database_url)
    try:
        assert await connection.fetchval("select count(*) from gateway_request_audit") == 21
    finally:
        await connection.close()
