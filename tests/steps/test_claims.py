"""Claims by hand on the real platform: found when they expire, kept by a rebuild, named by `ap verify`."""

from __future__ import annotations

import os

import asyncpg
import pytest

from handlers.steps.port import StepCall, StepFailed, StepResult
from infra.history.rebuild import rebuild
from infra.local.embedded import EmbeddedStack
from infra.roles.extras import Extras
from schemas.runtime import CreateRun, SetNodeStatus, node_run_id
from tests.live import Live, prepared, running, until
from tests.schemas.workflows import node
from tests.test_verify import chain, examine

pytestmark = pytest.mark.services

RETRIED = node("code", "code", code="result = 1", retry_policy={"max_attempts": 2, "retry_delay_seconds": 2})


async def fails_once(call: StepCall) -> StepResult:
    if call.attempt == 1:
        raise StepFailed("broken", "the first attempt fails")
    return StepResult({"attempt": call.attempt})


async def pending(live: Live) -> tuple[str, str]:
    """A run that waits for its node's second attempt, and that node run."""
    id = await live.publish_workflow("w", chain(node("start", "start"), RETRIED))
    run = await live.send(CreateRun(workflow_id=id))
    step = node_run_id(run, "code", "1")

    async def waits() -> bool:
        return bool(await live.database.fetchval("SELECT status = 'pending' FROM node_run WHERE id = $1", step))

    await until(waits)
    return run, step


async def test_a_claim_that_nobody_follows_up_expires_and_the_run_goes_on(services: EmbeddedStack) -> None:
    async with (
        prepared(services, f"claimed_{os.getpid()}") as settings,
        running(settings, Extras(performers={"code": fails_once})) as live,
    ):
        run, step = await pending(live)
        claim = SetNodeStatus(run_id=run, node_run_id=step, status="running", worker_key="w1", lease_seconds=3)
        shown = await live.do(claim)
        assert (shown["status"], shown["worker_key"]) == ("running", "w1")
        assert await live.run_ended(run) == "completed"
        attempt = await live.database.fetchval("SELECT attempt FROM node_run WHERE id = $1", step)
        assert attempt == 2
        await live.rest()
        verdict = await examine(settings, patience_seconds=10.0)
        assert verdict.clean, verdict.document()


async def test_a_rebuild_keeps_a_claim_and_its_end(services: EmbeddedStack) -> None:
    """Whether the row is mended or made anew."""
    async with (
        prepared(services, f"kept_{os.getpid()}") as settings,
        running(settings, Extras(performers={"code": fails_once})) as live,
    ):
        run, step = await pending(live)
        claim = SetNodeStatus(run_id=run, node_run_id=step, status="running", worker_key="w1", lease_seconds=600)
        await live.do(claim)
        held = await _lease(live.database, step)
        for damage in (
            "UPDATE node_run SET status = 'pending', leased_by = 'x', listed = 0",
            "UPDATE node_run SET status = 'pending', leased_by = NULL, listed = 0",
            "DELETE FROM node_run",
        ):
            await live.database.execute(f"{damage} WHERE id = $1", step)
            await rebuild(settings.required_database_url, lease_seconds=settings.lease_seconds)
            assert await _lease(live.database, step) == held
        await live.do(claim)
        await live.do(SetNodeStatus(run_id=run, node_run_id=step, status="completed", worker_key="w1"))
        assert await live.run_ended(run) == "completed"


async def _lease(database: asyncpg.Connection, step: str) -> tuple[object, ...]:
    (row,) = await database.fetch(
        "SELECT status, leased_by, lease_until, lease_token, listed FROM node_run WHERE id = $1", step
    )
    return tuple(row)
