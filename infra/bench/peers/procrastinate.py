"""Procrastinate: a chain of jobs, each of which defers the next one.

Settings: one worker with as many jobs at once as are in flight, woken by LISTEN/NOTIFY and, as a wake-up that
comes while it fetches is lost, by polling every 20 ms. A run has ended when the end of its last job is committed.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import asyncpg
from procrastinate import App, PsycopgConnector
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager

from infra.bench.peers.process import Workload

POOL = 16
CONCURRENCY = 100
POLL_SECONDS = 0.02

Ended = dict[str, asyncio.Future[None]]


class Telling(JobManager):
    """A job manager that says when the last job of a chain has ended."""

    def __init__(self, connector: Any, ended: Ended, last: int) -> None:
        super().__init__(connector)
        self._ended = ended
        self._last = last

    async def finish_job(self, job: Job, status: Status, delete_job: bool) -> None:
        await super().finish_job(job, status, delete_job)
        if job.task_kwargs["number"] == self._last:
            self._ended.pop(job.task_kwargs["key"]).set_result(None)


async def run(workload: Workload) -> None:
    app = App(connector=PsycopgConnector(conninfo=workload.database_url, min_size=POOL, max_size=POOL))
    ended: Ended = {}
    app.job_manager = Telling(app.connector, ended, workload.nodes - 1)

    @app.task(name="step")
    async def step(key: str, number: int) -> dict[str, bool]:
        if number + 1 < workload.nodes:
            await step.defer_async(key=key, number=number + 1)
        return {"ok": True}

    async def one() -> None:
        key = str(uuid.uuid4())
        done = ended[key] = asyncio.get_running_loop().create_future()
        await step.defer_async(key=key, number=0)
        await done

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        worker = asyncio.create_task(
            app.run_worker_async(
                concurrency=CONCURRENCY,
                fetch_job_polling_interval=POLL_SECONDS,
                install_signal_handlers=False,
            )
        )
        await workload.drive(one)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
    await _check(workload)


async def _check(workload: Workload) -> None:
    """Every job of every chain has succeeded."""
    connection = await asyncpg.connect(workload.database_url)
    try:
        jobs = "FROM procrastinate_jobs WHERE status = 'succeeded'"
        chains = await connection.fetchval(f"SELECT count(DISTINCT args->>'key') {jobs}")
        steps = await connection.fetchval(f"SELECT count(*) {jobs}")
    finally:
        await connection.close()
    workload.check(chains, steps)
