"""I11: nothing in flight older than two leases that does not wait for a person or a timer."""

from __future__ import annotations

import asyncio

from bus.statements import load_headers
from infra.history.verify.system import System, known
from projections.runtime import BY_HAND, LEASED, READY, UNLISTED
from schemas import registry
from schemas.envelope import Malformed, decode_headers
from schemas.human import ExpireTask
from schemas.messages import derive
from schemas.runtime import RUN_ENDED, ResumeNode

_ENDED = ", ".join(f"'{status}'" for status in sorted(RUN_ENDED))
_STEPS = """SELECT n.id, n.run_id, n.leased_by, n.lease_until, e.at FROM node_run n
LEFT JOIN event e ON e.aggregate_id = n.run_id AND e.seq = n.seq
WHERE (n.ready AND n.status = 'queued' OR n.status = 'running' AND n.leased_by IS NOT NULL)
  AND coalesce(CASE WHEN n.leased_by IS NOT NULL THEN n.lease_until ELSE e.at END, 0) < $1"""
_UNFOUND = f"""SELECT n.id, n.run_id, n.leased_by FROM node_run n JOIN lane l ON l.id = n.lane
LEFT JOIN event e ON e.aggregate_id = n.run_id AND e.seq = n.seq
WHERE n.ready AND n.status = 'queued' AND CASE
  WHEN n.leased_by IS NULL THEN n.listed <> {READY} AND (n.listed <> {LEASED} OR n.lease_until IS NULL)  -- Given back.
  ELSE n.listed <> {LEASED} AND coalesce(e.position, 0) <= l.floor END"""
_UNTIMED = f"""SELECT id, run_id, worker FROM node_run
WHERE status = 'running' AND (leased_by IS NULL OR lease_until IS NULL OR listed <> {LEASED})"""
_LISTED = f"""SELECT id, run_id, status FROM node_run
WHERE listed NOT IN ({UNLISTED}, {BY_HAND}) AND NOT (ready AND status = 'queued')
  AND NOT (status = 'running' AND listed = {LEASED})"""
_BY_HAND = f"""SELECT n.id, n.run_id, n.listed FROM node_run n JOIN run r ON r.id = n.run_id
WHERE (n.listed = {BY_HAND}) <> (n.status = 'queued' AND NOT n.ready AND n.leased_by IS NULL AND r.mode = 'manual')"""
_LEFT_BEHIND = f"""SELECT n.id, n.run_id, r.status FROM node_run n JOIN run r ON r.id = n.run_id
WHERE n.status IN ('queued', 'running', 'pending') AND r.status IN ({_ENDED})"""
_RUNS = f"""SELECT r.id, r.status, r.mode, e.at,
  exists (SELECT FROM node_run n WHERE n.run_id = r.id AND n.status IN ('queued', 'running', 'pending')) AS live,
  exists (SELECT FROM node_run n WHERE n.run_id = r.id AND (n.status IN ('running', 'pending')
          OR n.status = 'queued' AND n.ready)) AS waits
FROM run r LEFT JOIN event e ON e.aggregate_id = r.id AND e.seq = r.seq
WHERE r.status NOT IN ({_ENDED}) AND coalesce(e.at, 0) < $1"""
_PENDING = "SELECT id, run_id, due_at, wait_id FROM node_run WHERE status = 'pending' AND due_at IS NOT NULL"
_WAITS_FOR_RUNS = f"""SELECT n.id, n.run_id, n.wait_on, n.wait_id, c.status FROM node_run n
JOIN event e ON e.aggregate_id = n.run_id AND e.seq = n.seq LEFT JOIN run c ON c.id = n.wait_id
WHERE n.status = 'pending' AND n.wait_on = 'run' AND e.at < $1
  AND (c.id IS NULL OR c.status IN ({_ENDED}) AND c.ended_at < $1)"""
_WAITS_FOR_TASKS = """SELECT n.id, n.run_id, n.wait_on, n.wait_id, t.status FROM node_run n
JOIN event e ON e.aggregate_id = n.run_id AND e.seq = n.seq LEFT JOIN human_task t ON t.id = n.wait_id
WHERE n.status = 'pending' AND n.wait_on = 'task' AND e.at < $1
  AND (t.id IS NULL OR t.ended_at < $1)"""
_TASKS = "SELECT id, due_at FROM human_task WHERE ended_at IS NULL AND due_at IS NOT NULL"
_DEFERRED = "SELECT command_id FROM command_outcome WHERE status = 'pending' AND deferred"
_TIMER_IDS = "SELECT id FROM timer WHERE id = ANY($1::uuid[])"
EXPIRING_SECONDS = 2.0
"""A deferred outcome whose timer has fired is ended within such a time."""
_TIMERS = "SELECT id, key, headers, body, due_at < to_timestamp($1) AS late FROM timer"


async def check_stuck(system: System) -> None:
    add = system.report.add
    before = system.now - system.stale_seconds
    for lane in system.lanes.values():
        if lane.stopped:
            add("I11", [f"lane {lane.id} is stopped at offset {lane.next_offset}: {lane.stopped}"])
    async for row in system.stream(_STEPS, before):
        what = f"leased by {row['leased_by']}, run out" if row["leased_by"] else "ready, nobody takes it"
        add("I11", [f"node_run {row['id']} of run {row['run_id']}: {what}"])
    async for row in system.stream(_UNFOUND):
        finder = "the sweepers of leases" if row["leased_by"] else "executors"
        add("I11", [f"node_run {row['id']} of run {row['run_id']} is not listed for {finder}"])
    async for row in system.stream(_UNTIMED):
        by = row["worker"] or "somebody"
        add("I11", [f"node_run {row['id']} of run {row['run_id']}: claimed by {by}, and no sweep finds when that ends"])
    async for row in system.stream(_LISTED):
        add("I11", [f"node_run {row['id']} of run {row['run_id']} is listed, and nobody is to execute it"])
    async for row in system.stream(_BY_HAND):
        wrong = "is listed for callers, but none may take it"
        what = wrong if row["listed"] == BY_HAND else "is not listed for callers"
        add("I11", [f"node_run {row['id']} of run {row['run_id']} {what}"])
    async for row in system.stream(_LEFT_BEHIND):
        add("I11", [f"node_run {row['id']} is not ended, its run {row['run_id']} is {row['status']}"])
    async for row in system.stream(_RUNS, before):
        system.report.checked["runs in flight"] += 1
        if not row["live"]:
            add("I11", [f"run {row['id']} is {row['status']} with nothing in flight"])
        elif not row["waits"] and row["mode"] == "auto":
            add("I11", [f"run {row['id']} is {row['status']}, its queued nodes wait for nothing"])
    await _timers(system, before)
    await _answers(system, before)
    await _deferred(system)


async def _deferred(system: System) -> None:
    """An outcome that comes later has a timer that ends the wait, or its end is on its way."""
    suspects = await _without_timer(system)
    if suspects:
        await asyncio.sleep(EXPIRING_SECONDS)
        suspects &= await _without_timer(system)
    for id in sorted(suspects):
        system.report.add("I11", [f"the deferred outcome of command {id} has no timer that ends it"])


async def _without_timer(system: System) -> set[str]:
    ids = [str(row[0]) for row in await system.database.fetch(_DEFERRED)]
    timers = await known(system.database, _TIMER_IDS, [derive(id, "expire") for id in ids])
    return {id for id in ids if derive(id, "expire") not in timers}


async def _timers(system: System, before: float) -> None:
    """What waits for a timer (a pending node run, a task with a due time) must have one, and it must fire."""
    awaited: set[tuple[str, str]] = set()
    tasks: set[str] = set()
    async for row in system.stream(_TIMERS, before):
        system.report.checked["timers"] += 1
        command = _command(row["headers"], row["body"])
        if row["late"]:
            system.report.add("I11", [f"timer {row['id']} for {row['key']} is overdue"])
        if isinstance(command, ResumeNode):
            awaited.add((command.node_run_id, command.wait_id))
        elif isinstance(command, ExpireTask):
            tasks.add(command.task_id)
    async for row in system.stream(_TASKS):
        if str(row["id"]) not in tasks:
            _untimed(system, f"human_task {row['id']}", row["due_at"], before)
    async for row in system.stream(_PENDING):
        if (str(row["id"]), str(row["wait_id"])) not in awaited:
            _untimed(system, f"node_run {row['id']} of run {row['run_id']}", row["due_at"], before)


def _untimed(system: System, what: str, due_at: float, before: float) -> None:
    """There is no timer for this. One that has just fired is a record on its way."""
    if due_at < before:
        system.report.add("I11", [f"{what} is due and has no timer"])
    elif due_at > system.now + 1:
        system.report.add("I11", [f"{what} waits for a timer that is gone"])


async def _answers(system: System, before: float) -> None:
    """What a node run waits for is there, and it is told of the end: else an answer has got lost."""
    for waits in (_WAITS_FOR_RUNS, _WAITS_FOR_TASKS):
        async for row in system.stream(waits, before):
            what = f"is {row['status']}" if row["status"] else "is not there"
            waiting = f"node_run {row['id']} of run {row['run_id']}"
            system.report.add("I11", [f"{waiting} waits for {row['wait_on']} {row['wait_id']}, which {what}"])


def _command(headers: bytes, body: bytes) -> object:
    try:
        return registry.decode_command(decode_headers(load_headers(headers)).type, body, trusted=True)
    except Malformed:
        return None
