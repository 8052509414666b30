"""Damage done by hand: the judge of chaos runs must see each kind, else its silence means nothing."""

from __future__ import annotations

from pathlib import Path

import asyncpg

from infra.chaos.judge import judge
from infra.chaos.roles import EFFECTS
from infra.chaos.scene import Scene

DAMAGE = {
    "lost run": "DELETE FROM run WHERE id = $1",
    "wrong end": "UPDATE run SET status = 'failed' WHERE id = $1",
    "wrong node runs": "DELETE FROM node_run WHERE run_id = $1 AND path = 'start'",
    "gap in events": "DELETE FROM event WHERE aggregate_id = $1 AND seq = 2",
    "terminal events": "DELETE FROM event WHERE aggregate_id = $1 AND type LIKE 'runtime.run_completed'",
    "events without a run": "DELETE FROM run WHERE id = $1",
    "wrong outcome": "DELETE FROM command_outcome WHERE command_id = $1",
    "lost effect": "UPDATE node_run SET id = gen_random_uuid() WHERE run_id = $1 AND path = 'one'",
    "effect of nothing": "DELETE FROM node_run WHERE run_id = $1 AND path = 'one'",
    "terminal events of a node run": "DELETE FROM event WHERE aggregate_id = $1 AND seq > 1",
    "stopped lane": "UPDATE lane SET stopped = $1 WHERE id = 0",
}


async def undetected(stage: Scene) -> set[str]:
    """Kinds of damage that the judge does not see on a stack at rest. What is stored is as before afterwards."""
    found = {kind: await _found(stage, sql) for kind, sql in DAMAGE.items()}
    found["doubled effect"] = await _found_after_a_second_effect(stage)
    found["run that nobody started"] = await _found_without_the_last_job(stage)
    return {kind for kind, kinds in found.items() if kind not in kinds}


async def _found(stage: Scene, damage: str) -> set[str]:
    """What the judge says of one damage, which is undone after."""
    victim = next(id for id, it in stage.load.taken.items() if it.workflow == "quick")
    tables = ("run", "node_run", "event", "command_outcome", "lane")
    database = await asyncpg.connect(stage.settings.required_database_url)
    try:
        for table in tables:
            await database.execute(f"CREATE TABLE kept_{table} AS TABLE {table}")
        await database.execute(damage, victim)
        verdict = await judge(stage.settings.required_database_url, stage.settings.data_dir, stage.load.taken)
        for table in tables:
            await database.execute(f"TRUNCATE {table}")
            await database.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")
            await database.execute(f"DROP TABLE kept_{table}")
    finally:
        await database.close()
    return set(verdict.counts)


async def _found_after_a_second_effect(stage: Scene) -> set[str]:
    log = Path(stage.settings.data_dir, EFFECTS)
    written = log.read_text()  # noqa: ASYNC240  # Nothing else runs.
    log.write_text(written + written.splitlines()[0] + "\n")  # noqa: ASYNC240
    verdict = await judge(stage.settings.required_database_url, stage.settings.data_dir, stage.load.taken)
    log.write_text(written)  # noqa: ASYNC240
    return set(verdict.counts)


async def _found_without_the_last_job(stage: Scene) -> set[str]:
    known = dict(list(stage.load.taken.items())[:-1])
    verdict = await judge(stage.settings.required_database_url, stage.settings.data_dir, known)
    return set(verdict.counts)
