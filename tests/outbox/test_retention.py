"""Old rows are forgotten; what may still be asked for stays."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra.database.schema import REMOVABLE
from infra.local.embedded import EmbeddedStack
from infra.roles.prepare import migrate
from infra.roles.retention import aged, ended
from infra.settings import Settings, SettingsError, load_settings
from infra.telemetry.metrics import Metrics, RetentionMetrics
from outbox.retention import DAY_SECONDS, INBOX_SECONDS, OUTCOME_SECONDS, Aged, Retention, Round
from tests.live import settings_for

INSERTS = {
    "inbox": "INSERT INTO inbox SELECT $1::uuid, 0, extract(epoch FROM now()) - $2::float8",
    "command_outcome": "INSERT INTO command_outcome SELECT $1::uuid, 't1', 'x', '', 'succeeded', '',"
    " extract(epoch FROM now()) - $2::float8",
    "audit": "INSERT INTO gateway_request_audit SELECT $1::uuid, 't1', NULL, NULL, 'GET', '/', '/', 200, 1.0, 'r',"
    " extract(epoch FROM now()) - $2::float8",
    "dead_letter": "INSERT INTO dead_letter SELECT $1::uuid, 't1', 'commands', 0, 0, 'x', 'k', '', 'c', '', '[]', '',"
    " 0, '', 'dead', 0, extract(epoch FROM now()) - $2::float8",
    "handled_dead_letter": "INSERT INTO dead_letter SELECT $1::uuid, 't1', 'commands', 0, 0, 'x', 'k', '', 'c', '',"
    " '[]', '', 0, '', (ARRAY['retried', 'dropped'])[1 + abs(hashtext($1::text)) % 2], 0,"
    " extract(epoch FROM now()) - $2::float8",
}
KEPT_DAYS = {
    "inbox": INBOX_SECONDS / DAY_SECONDS,
    "command_outcome": OUTCOME_SECONDS / DAY_SECONDS,
    "audit": 90.0,
    "dead_letter": 90.0,
    "handled_dead_letter": 31.0,
}
NONE_ENDED = {"run": 0, "single_run": 0, "human_task": 0}


@pytest.fixture
async def database(services: EmbeddedStack) -> AsyncIterator[tuple[Settings, asyncpg.Pool]]:
    name = f"retention_{uuid.uuid4().hex[:8]}"
    await services.new_database(name)
    settings = settings_for(services, name)
    await migrate(settings)
    async with asyncpg.create_pool(settings.required_database_url, min_size=1, max_size=2) as pool:
        yield settings, pool


async def fill(pool: asyncpg.Pool, days: dict[str, float]) -> None:
    """Of each kind three rows a day older than this, and two a day younger."""
    for what, kept in days.items():
        for age in [kept + 1] * 3 + [kept - 1] * 2:
            await pool.execute(INSERTS[what], str(uuid.uuid4()), age * DAY_SECONDS)


async def test_only_what_is_too_old_is_forgotten(database: tuple[Settings, asyncpg.Pool]) -> None:
    settings, pool = database
    await fill(pool, KEPT_DAYS)
    told: list[Round] = []
    retention = Retention(pool, aged(settings), ended(settings), lambda done, now: told.append(done))
    first = await retention.round()
    assert first.rows == dict.fromkeys(KEPT_DAYS, 3) | NONE_ENDED
    assert (await retention.round()).rows == dict.fromkeys(KEPT_DAYS, 0) | NONE_ENDED
    assert told[0] is first
    assert await pool.fetchval("SELECT count(*) FROM dead_letter") == 4
    assert await pool.fetchval("SELECT count(*) FROM gateway_request_audit") == 2


async def test_more_than_one_statement_forgets_goes_all_the_same(
    database: tuple[Settings, asyncpg.Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, pool = database
    monkeypatch.setattr("outbox.retention.ROWS_PER_STATEMENT", 2)
    await fill(pool, KEPT_DAYS)
    assert (await Retention(pool, aged(settings), []).round()).rows == dict.fromkeys(KEPT_DAYS, 3)


async def test_no_days_mean_for_ever(database: tuple[Settings, asyncpg.Pool]) -> None:
    settings, pool = database
    await fill(pool, KEPT_DAYS)
    for_ever = settings.model_copy(
        update=dict.fromkeys((name for name in Settings.model_fields if name.startswith("retention_")), 0.0)
    )
    done = await Retention(pool, aged(for_ever), ended(for_ever)).round()
    assert done.rows == {"inbox": 3, "command_outcome": 3} | NONE_ENDED


def test_a_letter_stays_as_long_as_its_record() -> None:
    with pytest.raises(SettingsError, match="RETENTION_HANDLED_DEAD_LETTERS_DAYS must be at least 31"):
        load_settings(retention_handled_dead_letters_days=30)


def test_a_round_is_counted() -> None:
    metrics = Metrics()
    seen = RetentionMetrics(metrics)
    seen.seen(Round({"audit": 5, "run": 40}, {"run": 4}, {"run": 100.0}), 160.0)
    seen.seen(Round({"audit": 1, "run": 0}, {"run": 0, "single_run": 0}), 200.0)
    found: dict[tuple[str, ...], Any] = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }
    assert found["agent_platform_retention_rows_total", "audit"] == 6
    assert found["agent_platform_retention_rows_total", "run"] == 40
    assert found["agent_platform_retention_aggregates_total", "run"] == 4
    assert found["agent_platform_retention_oldest_ended_seconds", "run"] == 0
    seen.seen(Round({}, {"run": 0, "single_run": 0}, {"run": 100.0}), 160.0)
    assert 'agent_platform_retention_oldest_ended_seconds{kind="run"} 60.0' in metrics.text().decode()


def test_rules_name_what_they_forget_once() -> None:
    rules: tuple[Aged, ...] = aged(load_settings())
    assert sorted(rule.what for rule in rules) == sorted(KEPT_DAYS)


def test_ids_of_what_is_removed_are_kept_from_being_used_again() -> None:
    assert {rule.kind for rule in ended(load_settings())} == set(REMOVABLE)
