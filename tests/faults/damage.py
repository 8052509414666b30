"""Damage done by hand: the judge of chaos runs must see each kind, else its silence means nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncpg

from infra.chaos.book import EFFECTS, Effect, by_key, effects
from infra.chaos.judge import Asked, Verdict, judge
from infra.chaos.scene import Scene
from infra.chaos.workload import TENANTS, Job, owner_mark

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
    "run of another tenant": "UPDATE run SET tenant_id = 'another' WHERE id = $1",
    "dead letter": "INSERT INTO dead_letter SELECT gen_random_uuid(), 't', 'commands', 0, 0, 't', $1, 'm', 'c', 'd',"
    " '', '', 0, '', 'dead', 0, 1",
    "effect without a lease": "DELETE FROM event WHERE aggregate_id = $1 AND type LIKE 'runtime.node_scheduled'",
}


EFFECTS_DAMAGE: dict[str, dict[str, Any]] = {
    "doubled effect": {},
    "two effects under one lease": {},
    "effect under an old lease": {"token": 0},
    "repeat under another key": {"key": "00000000-0000-4000-8000-000000000000"},
}
MIXED_UP = (
    f"UPDATE event SET tenant_id = CASE tenant_id WHEN '{TENANTS[0]}' THEN '{TENANTS[1]}' ELSE '{TENANTS[0]}' END"
    " WHERE aggregate_id = $1"
)


async def undetected(stage: Scene) -> set[str]:
    """Kinds of damage that the judge does not see on a stack at rest. What is stored is as before afterwards."""
    found = {kind: await _found(stage, sql) for kind, sql in DAMAGE.items()}
    happened = by_key(effects(Path(stage.settings.data_dir)))
    # One that was executed by its first holder, once: repeats of others may be within what is allowed.
    first = next(e for e, *more in happened.values() if not more and (e.attempt, e.token) == (1, 1))
    for kind, changes in EFFECTS_DAMAGE.items():
        found[kind] = await _found_with_another_effect(stage, dataclasses.replace(first, **changes))
    foreign = owner_mark(TENANTS[1] if first.tenant_id == TENANTS[0] else TENANTS[0])
    found["effect for another"] = await _found_with_another_effect(stage, dataclasses.replace(first, owner=foreign))
    found["row with another tenant's data"] = await _found(stage, MIXED_UP)
    found["run that nobody started"] = await _found_without_the_last_job(stage)
    return {kind for kind, kinds in found.items() if kind not in kinds}


async def _judged(stage: Scene, jobs: Mapping[str, Job] | None = None) -> Verdict:
    asked = Asked(stage.load.taken if jobs is None else jobs, stage.load.poisoned)
    return await judge(stage.settings.required_database_url, stage.settings.data_dir, asked)


async def _found(stage: Scene, damage: str) -> set[str]:
    """What the judge says of one damage, which is undone after."""
    victim = next(id for id, it in stage.load.taken.items() if it.workflow == "quick")
    tables = ("run", "node_run", "event", "command_outcome", "lane", "dead_letter")
    database = await asyncpg.connect(stage.settings.required_database_url)
    try:
        for table in tables:
            await database.execute(f"CREATE TABLE kept_{table} AS TABLE {table}")
        await database.execute(damage, victim)
        verdict = await _judged(stage)
        for table in tables:
            await database.execute(f"TRUNCATE {table}")
            await database.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")
            await database.execute(f"DROP TABLE kept_{table}")
    finally:
        await database.close()
    return set(verdict.counts)


async def _found_with_another_effect(stage: Scene, effect: Effect) -> set[str]:
    log = Path(stage.settings.data_dir, EFFECTS)
    written = log.read_text()  # noqa: ASYNC240  # Nothing else runs.
    log.write_text(written + " ".join(map(str, dataclasses.astuple(effect))) + "\n")  # noqa: ASYNC240
    verdict = await _judged(stage)
    log.write_text(written)  # noqa: ASYNC240
    return set(verdict.counts)


async def _found_without_the_last_job(stage: Scene) -> set[str]:
    known = dict(list(stage.load.taken.items())[:-1])
    verdict = await _judged(stage, known)
    return set(verdict.counts)
