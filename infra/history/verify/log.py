"""The event log read once in order of aggregates: I2, I3, I4, I5, I7 and I9 on each whole history."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

import orjson

from infra.history.verify import fold
from infra.history.verify.history import (
    History,
    derived_causes,
    lease_tokens,
    repeated_messages,
    sequence,
    task_ends,
    terminal_transitions,
)
from infra.history.verify.system import KEPT_SECONDS, System, chunks, known, removed
from schemas import registry, runtime
from schemas.decider import Recorded
from schemas.messages import UUID_PATTERN, Event

EVENTS_PER_COMPARISON = 2_000
Causes = dict[str, tuple[int, float]]
"""Ids of messages with the lane and the time of what they caused."""

_LOG = """SELECT aggregate_id, seq, lane, type, tenant_id, at, actor, correlation_id, causation_id, traceparent, data
FROM event ORDER BY aggregate_id, seq"""
_INBOX = "SELECT message_id FROM inbox WHERE message_id = ANY($1::uuid[])"
_OUTCOMES = "SELECT command_id, status, type, deferred FROM command_outcome WHERE command_id = ANY($1::uuid[])"
_SEVERAL = """SELECT causation_id, min(aggregate_id::text), max(aggregate_id::text) FROM event
GROUP BY causation_id HAVING min(aggregate_id::text) <> max(aggregate_id::text)"""
_PENDING = "SELECT command_id FROM command_outcome WHERE status = 'pending' AND NOT deferred"
_MADE = """SELECT command_id, type, body FROM command_outcome
WHERE status = 'succeeded' AND type = ANY($1::text[])"""
_FIRST = """SELECT aggregate_id, causation_id FROM event WHERE seq = 1 AND aggregate_id = ANY($1::uuid[])"""
_BEYOND = """SELECT e.aggregate_id, e.seq FROM event e JOIN lane l ON l.id = e.lane WHERE e.position > l.position"""
_OUTBOX_BEYOND = """SELECT o.lane, o.position FROM outbox o JOIN lane l ON l.id = o.lane
WHERE o.position > l.position"""
_HALF_REMOVED = """SELECT t.id FROM tombstone t WHERE EXISTS (SELECT FROM event e WHERE e.aggregate_id = t.id)"""
_SAME_PLACE = """SELECT e.aggregate_id, e.seq, e.lane, e.position FROM event e JOIN outbox o
ON o.lane = e.lane AND o.position = e.position"""

MAKES_ITS_AGGREGATE = tuple(name for name, command in registry.COMMANDS.items() if command.creates)


async def histories(system: System) -> AsyncIterator[History]:
    """Every aggregate's events, whole; only one history is in memory at a time."""
    history: list[Recorded[Event]] = []
    async for row in system.stream(_LOG):
        aggregate_id = str(row["aggregate_id"])
        if history and history[0].aggregate_id != aggregate_id:
            yield history
            history = []
        system.report.checked["events"] += 1
        try:
            event = registry.decode_event(row["type"], row["data"])
        except (KeyError, ValueError) as error:
            problem = f"{aggregate_id}/{row['seq']} cannot be read: {type(error).__name__} {error}"
            system.report.add("I9", [problem[:300]])
            continue
        history.append(
            Recorded(
                event, aggregate_id, row["seq"], row["at"] or 0.0, row["tenant_id"], row["lane"], row["actor"],
                row["correlation_id"], row["causation_id"], row["traceparent"],
            )
        )  # fmt: skip
    if history:
        yield history


async def check_log(system: System) -> Causes:
    """Check every history. Returns causes that keep no inbox row: they must be on the topic of commands."""
    unresolved: Causes = {}
    batch: list[History] = []
    events = 0
    async for history in histories(system):
        system.report.checked["aggregates"] += 1
        for invariant, problems in _of_one(history):
            system.report.add(invariant, problems)
        batch.append(history)
        events += len(history)
        if events >= EVENTS_PER_COMPARISON:
            unresolved |= await _of_many(system, batch)
            batch, events = [], 0
    if batch:
        unresolved |= await _of_many(system, batch)
    await fold.unfounded(system)
    await _once_over_all(system)
    await outcomes_have_effects(system)
    return unresolved


def _of_one(history: History) -> Iterator[tuple[str, Iterator[str]]]:
    yield "I3", repeated_messages(history)
    yield "I4", sequence(history)
    if history[0].event.type.startswith("runtime."):
        yield "I2", terminal_transitions(history)
        yield "I7", lease_tokens(history)
    if history[0].event.type.startswith("human."):
        yield "I2", task_ends(history)


async def _of_many(system: System, batch: Sequence[History]) -> Causes:
    await fold.compare(system, batch)
    return await causes(system, batch)


async def causes(system: System, batch: Sequence[History]) -> Causes:
    """I5: the cause of every event left its inbox row or its outcome; others are returned."""
    ids = {each.causation_id for history in batch for each in history}
    wanted = sorted(id for id in ids if UUID_PATTERN.match(id))
    inbox = await known(system.database, _INBOX, wanted)
    outcomes = {str(row[0]): row for row in await system.database.fetch(_OUTCOMES, wanted)}
    unresolved: Causes = {}
    for history in batch:
        lacking: Causes = {}
        for each in history:
            outcome = outcomes.get(each.causation_id)
            # What a deferred command began has happened, also if it is refused in the end.
            if outcome is not None and not outcome["deferred"] and outcome["status"] != "succeeded":
                problem = f"{each.aggregate_id}/{each.seq}: its command {each.causation_id} was {outcome['status']}"
                system.report.add("I5", [problem])
            elif outcome is None and each.causation_id not in inbox and each.at > system.now - KEPT_SECONDS:
                lacking[each.causation_id] = (each.lane, each.at)
        if lacking:
            derived = derived_causes(history)
            unresolved |= {id: where for id, where in lacking.items() if id not in derived}
    return unresolved


async def _once_over_all(system: System) -> None:
    add = system.report.add
    async for row in system.stream(_SEVERAL):
        add("I3", [f"message {row[0]} acted on {row[1]} and on {row[2]}"])
    async for row in system.stream(_PENDING):
        add("I5", [f"command {row[0]} has an outcome that says pending"])
    async for row in system.stream(_BEYOND):
        add("I5", [f"event {row[0]}/{row[1]} stands beyond its lane's position"])
    async for row in system.stream(_OUTBOX_BEYOND):
        add("I5", [f"outbox row {row[0]}/{row[1]} stands beyond its lane's position"])
    async for row in system.stream(_HALF_REMOVED):
        add("I5", [f"{row[0]} was removed by retention, and has events"])
    async for row in system.stream(_SAME_PLACE):
        add("I5", [f"event {row[0]}/{row[1]} and an outbox row share position {row[3]} of lane {row[2]}"])


async def outcomes_have_effects(system: System) -> None:
    """I1: a command that was told it made something has made it, and itself."""
    made: list[tuple[str, str, str]] = []
    async for row in system.stream(_MADE, list(MAKES_ITS_AGGREGATE)):
        body = orjson.loads(row["body"])
        made.append((str(row["command_id"]), row["type"], str(body.get("id")) if isinstance(body, dict) else ""))
        system.report.checked["outcomes"] += 1
        if len(made) >= 1_000:
            await _effects(system, made)
            made = []
    for part in chunks(made):
        await _effects(system, part)


async def _effects(system: System, made: Sequence[tuple[str, str, str]]) -> None:
    ids = [id for _, _, id in made if UUID_PATTERN.match(id)]
    first = {str(row[0]): row[1] for row in await system.database.fetch(_FIRST, ids)}
    gone = await removed(system.database, [id for id in ids if id not in first])
    for command_id, name, id in made:
        if id in gone:
            continue
        if id not in first:
            system.report.add("I1", [f"command {command_id} ({name}) succeeded, and {id} has no events"])
        elif name == runtime.CreateRun.model_fields["type"].default and first[id] != command_id:
            system.report.add("I1", [f"command {command_id} ({name}) succeeded, but {first[id]} made run {id}"])
