"""Settings that nothing else tries: each is changed, and what it is for changes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest
import pytest_asyncio

from bus.postgres import session
from handlers.steps.port import StepCall, StepFailed
from infra.local.embedded import EmbeddedStack
from infra.local.supervisor import Supervisor
from infra.roles.extras import Extras
from infra.roles.steps import step_parts
from infra.roles.worker import worker
from infra.settings import Settings
from infra.telemetry.role import telemetry
from infra.topics import _new
from schemas.topics import TOPICS
from schemas.workflow.node_types import Code
from tests.live import prepared, until

LIMITS = {
    "transaction_timeout_seconds": 1.5,
    "idle_in_transaction_timeout_seconds": 1.0,
    "lock_timeout_seconds": 0.125,
}


@pytest_asyncio.fixture
async def settings(services: EmbeddedStack) -> AsyncIterator[Settings]:
    async with prepared(services, f"settings_{uuid.uuid4().hex[:8]}") as settings:
        yield settings


@pytest.mark.services
async def test_the_time_outs_of_sessions_reach_postgres(settings: Settings) -> None:
    changed = settings.model_copy(update=LIMITS)
    for given, shown in ((settings, ["10s", "3s", "5s"]), (changed, ["1500ms", "1s", "125ms"])):
        async with step_parts(given, Extras(), "executor") as parts:
            names = ("transaction_timeout", "idle_in_transaction_session_timeout", "lock_timeout")
            assert [await parts.database.fetchval(f"SHOW {name}") for name in names] == shown


@pytest.mark.services
async def test_each_time_out_ends_what_takes_longer(settings: Settings) -> None:
    sessions = session(settings.model_copy(update=LIMITS), "test")
    holding, waiting, third = [
        await asyncpg.connect(settings.required_database_url, server_settings=sessions) for _ in range(3)
    ]
    try:
        await holding.execute("BEGIN")
        await holding.execute("SELECT * FROM lane FOR UPDATE")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await waiting.execute("UPDATE lane SET owner = owner")
        await until(lambda: asyncio.sleep(0, holding.is_closed()))
        with pytest.raises(asyncpg.PostgresError, match="transaction timeout"):
            await third.execute("SELECT pg_sleep(60)")
    finally:
        for connection in (holding, waiting, third):
            connection.terminate()


CALL = StepCall("n", "r", "t", "a", 1, Code(code="result = 6 * 7"), {})


@pytest.mark.services
async def test_steps_are_bounded_and_the_sandbox_is_chosen(settings: Settings) -> None:
    changed = settings.model_copy(update={"step_concurrency": 3, "code_sandbox": "bubblewrap"})
    async with step_parts(changed, Extras(), "executor") as parts:
        assert parts.pool.room("code") == 3
        with pytest.raises(StepFailed, match="sandbox_unavailable"):
            await parts.pool.performers["code"](CALL)
    async with step_parts(settings, Extras(), "executor") as parts:
        assert parts.pool.room("code") > 3
        assert (await parts.pool.performers["code"](CALL)).output == {"result_json": 42}


@pytest.mark.services
async def test_a_worker_takes_its_bounds_from_the_settings(settings: Settings) -> None:
    given = {
        "session_timeout_seconds": 9.0, "heartbeat_seconds": 0.75, "batch_records_max": 17, "batch_rows_max": 91,
        "step_poll_seconds": 0.3, "lease_renew_seconds": 1.0, "lease_seconds": 5.0,
    }  # fmt: skip
    async with worker(settings.model_copy(update=given), Extras()) as running:
        group = running.worker._consumer._coordinator
        assert (group._session_timeout_ms, group._heartbeat_interval_ms) == (9_000, 750)
        assert running.worker._records_max == 17
        assert running.worker.kernel.limits.rows_max == 91
        assert running.parts.pool.lease_seconds == 5.0


def test_kafka_gets_the_heap_and_the_jars_from_where_the_settings_say(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", embedded_kafka_heap_megabytes=300, cache_dir=tmp_path / "jars")
    stack = Supervisor(settings, workers=0, executors=0, say=lambda text: None)._stack
    assert (stack.kafka._heap_megabytes, stack._cache) == (300, tmp_path / "jars")


async def test_metrics_are_served_where_the_settings_say() -> None:
    settings = Settings(metrics_host="127.0.0.2", metrics_port=0)
    async with telemetry(settings, "worker", "worker-1") as told, httpx.AsyncClient() as client:
        assert (await client.get(f"http://127.0.0.2:{told.port}/metrics")).status_code == 200
        with pytest.raises(httpx.ConnectError):
            await client.get(f"http://127.0.0.1:{told.port}/metrics")
    async with telemetry(Settings(), "worker", "worker-1") as told:
        assert told.metrics is None


def test_topics_are_made_as_the_settings_say() -> None:
    settings = Settings(topic_replication_factor=3, topic_min_insync_replicas=2, live_partitions=7, topic_prefix="x.")
    for topic in TOPICS:
        made = _new(topic, settings)
        assert (made.replication_factor, made.topic_configs["min.insync.replicas"]) == (3, "2")
        assert made.name.startswith("x.")
    live = next(topic for topic in TOPICS if topic.name == "live")
    assert _new(live, settings).num_partitions == 7
