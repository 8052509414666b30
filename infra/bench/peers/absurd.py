"""Absurd: tasks claimed from Postgres, each step a checkpoint written by a stored function.

Settings: asynchronous workers in one process, each with a connection of its own and claiming its share of the
runs in flight at once, polling every few milliseconds; as many as the load has use for.
Its client polls for a result every 50 ms and more; here it is told by the worker in the same process, once the
completion has been committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from itertools import cycle
from typing import Any

import absurdctl
import psycopg
from absurd_sdk import AsyncAbsurd, AsyncTaskContext, ClaimedTask

from infra.bench.peers.process import Workload

QUEUE = "bench"
WORKERS_MAX = 8
CLIENTS = 4
POLL_SECONDS = 0.002

Ended = dict[str, asyncio.Future[None]]


class Worker(AsyncAbsurd):
    """A worker that says when it has completed a task."""

    def __init__(self, url: str, ended: Ended) -> None:
        super().__init__(url, queue_name=QUEUE)
        self._ended = ended

    async def _execute_task(self, task: ClaimedTask, claim_timeout: int) -> None:
        await super()._execute_task(task, claim_timeout)
        self._ended.pop(task["params"]["key"]).set_result(None)


async def run(workload: Workload) -> None:
    async with await psycopg.AsyncConnection.connect(workload.database_url, autocommit=True) as connection:
        await connection.execute(absurdctl.BUNDLED_SCHEMA_SQL.encode())
        ended: Ended = {}
        async with _clients(workload, ended) as clients:
            await clients[0].create_queue()
            turn = cycle(clients)

            async def one() -> None:
                key = str(uuid.uuid4())
                done = ended[key] = asyncio.get_running_loop().create_future()
                await next(turn).spawn("chain", {"key": key, "x": 1})
                await done

            async for load in workload.loads():
                count = min(WORKERS_MAX, load.in_flight)
                async with _workers(workload, ended, count, batch=-(-load.in_flight // count)):
                    await workload.put(load, one)
        await _check(connection, workload)


@contextlib.asynccontextmanager
async def _clients(workload: Workload, ended: Ended) -> AsyncIterator[list[AsyncAbsurd]]:
    clients = [_registered(Worker(workload.database_url, ended), workload.nodes) for _ in range(CLIENTS)]
    try:
        yield clients
    finally:
        for client in clients:
            await client.close()


@contextlib.asynccontextmanager
async def _workers(workload: Workload, ended: Ended, count: int, batch: int) -> AsyncIterator[None]:
    workers = [_registered(Worker(workload.database_url, ended), workload.nodes) for _ in range(count)]
    running = [
        asyncio.create_task(worker.start_worker(f"w{number}", concurrency=batch, poll_interval=POLL_SECONDS))
        for number, worker in enumerate(workers)
    ]
    try:
        yield
    finally:
        for worker in workers:
            worker.stop_worker()
        await asyncio.gather(*running)
        for worker in workers:
            await worker.close()


def _registered(app: AsyncAbsurd, nodes: int) -> AsyncAbsurd:
    async def step() -> dict[str, bool]:
        return {"ok": True}

    async def chain(params: Any, context: AsyncTaskContext) -> dict[str, bool]:
        result = {"ok": False}
        for number in range(nodes):
            result = await context.step(f"n{number}", step)
        return result

    app.register_task("chain")(chain)
    return app


async def _check(connection: psycopg.AsyncConnection[Any], workload: Workload) -> None:
    """Every task is completed and every step has its checkpoint."""
    counts = []
    for query in ("t_bench WHERE state = 'completed'", "c_bench"):
        row = await (await connection.execute(f"SELECT count(*) FROM absurd.{query}".encode())).fetchone()
        counts.append(row[0] if row else 0)
    workload.check(*counts)
