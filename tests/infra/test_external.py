"""Servers that somebody else runs: the database user is no superuser, the topics bear a prefix."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from infra.db import PARTS, role_of
from infra.history.verify import verify
from infra.local.embedded import EmbeddedStack
from infra.operate import status
from infra.roles.prepare import create_topics, migrate
from infra.settings import Settings
from schemas.catalog import CreateDefinition
from tests.live import execute, running, settings_for


@pytest.fixture
async def settings(services: EmbeddedStack) -> AsyncIterator[Settings]:
    """A database that belongs to a user with the rights that README.md names, and no others."""
    name = f"external_{uuid.uuid4().hex[:8]}"
    await execute(services, f"CREATE ROLE {name} LOGIN PASSWORD 'known' NOSUPERUSER CREATEROLE BYPASSRLS")
    await execute(services, f"CREATE DATABASE {name} OWNER {name}")
    base = settings_for(services, name)
    address = base.required_database_url.rpartition("@")[2]
    made = base.model_copy(update={"database_url": f"postgresql://{name}:known@{address}"})
    try:
        await migrate(made)
        await create_topics(made)
        yield made
    finally:
        await execute(services, f"DROP DATABASE {name} WITH (FORCE)")
        await execute(services, f"DROP ROLE {', '.join(role_of(part, name) for part in PARTS)}")
        await execute(services, f"DROP ROLE {name}")


async def test_it_works_and_is_seen_to_work_without_a_superuser(settings: Settings) -> None:
    async with running(settings) as live:
        await live.do(CreateDefinition(kind="app", code="shop", name="商店"))
        seen, problems = await status.look(settings)
        assert problems == []
        assert len(seen.workers) == 1
        assert {lane.owner for lane in seen.lanes} == set(seen.workers)
        assert sum(lane.next_offset for lane in seen.lanes) == 1
    seen, problems = await status.look(settings)
    assert problems == ["no worker runs"]
    report = await verify(settings.required_database_url, settings.required_kafka_bootstrap, settings.topic_prefix)
    assert report.clean, report.violations
    assert report.checked["events"] == 1
