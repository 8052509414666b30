"""The judge of chaos runs must be able to say no: each kind of damage, done by hand, is found."""

from __future__ import annotations

from pathlib import Path

import asyncpg

from infra.chaos.judge import judge
from infra.chaos.roles import EFFECTS
from infra.chaos.scene import Scene, scene
from infra.chaos.workload import TURNS, job
from infra.settings import Settings
from infra.stack import Say

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


async def test_a_quiet_run_is_clean_and_each_damage_is_found(settings: Settings, say: Say) -> None:
    async with scene(settings, seed=6, say=say, workers=1, executors=0) as stage:
        await stage.load.run(len(TURNS) * 2, 2)
        done = await stage.conclude()
        assert done.problems == []
        found = {kind: await _found(stage, sql) for kind, sql in DAMAGE.items()}
        doubled = await _found_after_a_second_effect(stage)
        stray = await _found_without_the_last_job(stage)
    assert {kind for kind, kinds in found.items() if kind not in kinds} == set()
    assert doubled == {"doubled effect"}
    assert "run that nobody started" in stray


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


def test_a_job_is_the_same_for_the_same_seed() -> None:
    assert [job(number, 3) for number in range(40)] == [job(number, 3) for number in range(40)]
    assert job(0, 3).inputs != job(0, 4).inputs
