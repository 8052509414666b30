"""DBOS Transact: a workflow function whose steps are checkpointed in Postgres.

Settings: asynchronous workflows started directly, so that no queue is polled; no LISTEN/NOTIFY; its own pool
size (20: fewer and more were slower); no console log.
"""

from __future__ import annotations

import asyncpg
from dbos import DBOS, DBOSConfig

from infra.bench.peers.process import Workload


async def run(workload: Workload) -> None:
    DBOS(config=_config(workload.database_url))

    @DBOS.step()
    async def step(number: int) -> dict[str, bool]:
        return {"ok": True}

    @DBOS.workflow()
    async def chain(inputs: dict[str, int]) -> dict[str, bool]:
        result = {"ok": False}
        for number in range(workload.nodes):
            result = await step(number)
        return result

    async def one() -> None:
        handle = await DBOS.start_workflow_async(chain, {"x": 1})
        if await handle.get_result() != {"ok": True}:
            raise RuntimeError("the workflow gave something else than its last step")

    DBOS.launch()
    try:
        await workload.drive(one)
    finally:
        DBOS.destroy()
    await _check(workload)


def _config(url: str) -> DBOSConfig:
    return {
        "name": "bench",
        "system_database_url": url,
        "use_listen_notify": False,
        "enable_otlp": False,
        "log_level": "ERROR",
        "executor_id": "bench",
        "application_version": "1",
    }


async def _check(workload: Workload) -> None:
    """Every workflow succeeded and every step has its row."""
    connection = await asyncpg.connect(workload.database_url)
    try:
        workflows = await connection.fetchval("SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'")
        steps = await connection.fetchval("SELECT count(*) FROM dbos.operation_outputs")
    finally:
        await connection.close()
    workload.check(workflows, steps)
