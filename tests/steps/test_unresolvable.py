"""On the real platform a step whose version is gone fails alone; the executor, and what waits beside it, go on."""

from __future__ import annotations

import asyncio
import os
import uuid

import orjson
import pytest

from handlers.steps.port import StepCall, StepResult
from infra.local.embedded import EmbeddedStack
from infra.roles.extras import Extras
from schemas.runtime import CreateRun, ExecuteRun, node_run_id
from tests.live import Live, prepared, running, until
from tests.schemas.workflows import node
from tests.test_verify import chain

pytestmark = pytest.mark.services


class Busy:
    """The first step waits until it is let go, so that its worker has no room for others."""

    def __init__(self) -> None:
        self.first = ""
        self.go = asyncio.Event()

    async def __call__(self, call: StepCall) -> StepResult:
        self.first = self.first or call.node_run_id
        if call.node_run_id == self.first:
            await self.go.wait()
        return StepResult({})


async def manual_run(live: Live, workflow_id: str) -> str:
    return await live.send(CreateRun(workflow_id=workflow_id, mode="manual"))


async def test_a_step_whose_version_is_gone_fails_and_its_executor_goes_on(services: EmbeddedStack) -> None:
    busy = Busy()
    async with (
        prepared(services, f"gone_{os.getpid()}", step_concurrency=1) as settings,
        running(settings, Extras(performers={"code": busy})) as live,
    ):
        id = await live.publish_workflow("w", chain(node("code", "code", code="result = 1")))
        first = await live.send(CreateRun(workflow_id=id))

        async def begun() -> bool:
            return bool(busy.first)

        await until(begun)
        runs = [await manual_run(live, id) for _ in range(3)]
        for run in runs:
            await live.outcome(run)
        sql = "UPDATE run SET workflow_version_id = $1 WHERE id = $2"
        await live.database.execute(sql, uuid.uuid4(), runs[1])
        for run in runs:
            await live.do(ExecuteRun(run_id=run))
        assert [await live.run_ended(run) for run in runs] == ["completed", "failed", "completed"]
        step = node_run_id(runs[1], "code", "1")
        error = await live.database.fetchval("SELECT error FROM node_run WHERE id = $1", step)
        assert orjson.loads(error)["code"] == "step_unresolvable"
        assert not any(task.done() for task in live.tasks)
        busy.go.set()
        assert await live.run_ended(first) == "completed"
