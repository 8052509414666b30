"""The judge: waits until the stack has healed, then compares every run with the end it had to come to."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from handlers.runtime import REQUEUES_MAX
from infra.chaos import book, tenants
from infra.chaos.book import Effect, Lease
from infra.chaos.poison import Poison
from infra.chaos.workload import Job, owner_mark
from schemas.runtime import RUN_ENDED

HEAL_SECONDS_MAX = 180.0
RUN_ENDS = frozenset(f"runtime.run_{status}" for status in RUN_ENDED)
NODE_ENDS = frozenset(f"runtime.node_{status}" for status in ("completed", "failed", "skipped", "cancelled"))
DATABASE_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
EXAMPLES_MAX = 20


@dataclass(slots=True)
class Verdict:
    """`violations`: what must never be, by kind, with examples; `figures`: what was looked at."""

    violations: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        return not self.counts

    def add(self, kind: str, what: str) -> None:
        self.counts[kind] += 1
        examples = self.violations.setdefault(kind, [])
        if len(examples) < EXAMPLES_MAX:
            examples.append(what)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the load asked for and was promised. `hit`: the processes that died or stood still.

    A run may have given up a step that so many of them held.
    """

    jobs: Mapping[str, Job]
    poisoned: Mapping[str, Poison] = field(default_factory=dict)
    hit: Set[int] = frozenset()
    lease_seconds: float = 8.0


async def unfinished(database: asyncpg.Connection, bootstrap: str, prefix: str = "") -> dict[str, Any]:
    """What keeps the stack from being at rest: runs, timers, lag, records not known to be on Kafka."""
    rows = await database.fetch("SELECT status, count(*) AS n FROM run WHERE kind = 'graph' GROUP BY status")
    found: dict[str, Any] = {f"runs {r['status']}": r["n"] for r in rows if r["status"] not in RUN_ENDED}
    found["timers"] = await database.fetchval("SELECT count(*) FROM timer")
    found["unsent"] = await database.fetchval("SELECT coalesce(sum(position - sent), 0)::int8 FROM lane")
    found["outbox"] = await database.fetchval("SELECT count(*) FROM outbox")
    found["stopped lanes"] = await database.fetchval("SELECT count(*) FROM lane WHERE stopped <> ''")
    lanes = await database.fetch("SELECT topic, partition, next_offset FROM lane")
    ends = await _ends(bootstrap, [TopicPartition(prefix + row["topic"], row["partition"]) for row in lanes])
    found["lag"] = sum(
        ends[TopicPartition(prefix + row["topic"], row["partition"])] - row["next_offset"] for row in lanes
    )
    return {what: count for what, count in found.items() if count}


async def heal(
    database_url: str, bootstrap: str, prefix: str = "", seconds: float = HEAL_SECONDS_MAX
) -> dict[str, Any]:
    """Wait until the stack is at rest twice in a row; says what is left when patience ends (nothing if it healed)."""
    until = time.monotonic() + seconds
    left: dict[str, Any] = {"not looked at": 1}
    at_rest = 0
    while at_rest < 2 and time.monotonic() < until:
        await asyncio.sleep(0.5)
        try:
            database = await asyncpg.connect(database_url)
            try:
                left = await unfinished(database, bootstrap, prefix)
            finally:
                await database.close()
        except (*DATABASE_ERRORS, KafkaError) as error:
            left = {f"{type(error).__name__}: {error}": 1}
        at_rest = 0 if left else at_rest + 1
    return left


async def judge(database_url: str, folder: Path, asked: Asked) -> Verdict:
    """Compare what is stored and what happened outside with what each accepted run had to become."""
    verdict = Verdict()
    happened = book.effects(folder)
    database = await asyncpg.connect(database_url)
    try:
        async with database.transaction(isolation="repeatable_read", readonly=True):
            given_up = await _given_up(database, book.by_key(happened), asked.hit)
            verdict.figures["runs given up after lost leases"] = len(given_up)
            jobs = {id: it for id, it in asked.jobs.items() if id not in given_up}
            runs = await _runs(database, verdict, jobs, given_up)
            events = await _events(database, verdict, runs)
            nodes = await _node_runs(database, verdict, jobs)
            _effects(verdict, jobs, nodes, events, happened)
            for kind, what in book.problems(happened, events.leases, asked.lease_seconds):
                verdict.add(kind, what)
            await _outcomes(database, verdict, jobs)
            await _letters(database, verdict, asked.poisoned)
            verdict.figures["rows that bear their tenant's mark"] = await tenants.check_rows(database, verdict.add)
            for lane in await database.fetch("SELECT id, stopped FROM lane WHERE stopped <> ''"):
                verdict.add("stopped lane", f"{lane['id']}: {lane['stopped']}")
            verdict.figures["lanes claimed"] = await database.fetchval("SELECT sum(epoch)::int8 FROM lane")
    finally:
        await database.close()
    return verdict


async def _ends(bootstrap: str, places: list[TopicPartition]) -> dict[TopicPartition, int]:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=None, request_timeout_ms=5_000)
    try:
        await asyncio.wait_for(consumer.start(), 10)
        found: dict[TopicPartition, int] = await asyncio.wait_for(consumer.end_offsets(places), 10)
        return found
    finally:
        await consumer.stop()


async def _given_up(database: Any, happened: Mapping[str, Sequence[Effect]], hit: Set[int]) -> set[str]:
    """Runs that failed with `lease_lost` for the one good reason: each process that held the step was hit."""
    rows = await database.fetch("SELECT id, run_id, requeues, error FROM node_run WHERE status = 'failed'")
    found = set()
    for row in rows:
        lost = orjson.loads(row["error"])["code"] == "lease_lost"
        pids = {effect.pid for effect in happened.get(str(row["id"]), ())}
        if lost and row["requeues"] == REQUEUES_MAX - 1 and hit >= pids:
            found.add(str(row["run_id"]))
    return found


async def _runs(database: Any, verdict: Verdict, jobs: Mapping[str, Job], given_up: Set[str]) -> dict[str, int]:
    """seq by run. Every job must be there once, in its end, and nothing else."""
    rows = await database.fetch("SELECT id, tenant_id, seq, status, output_text FROM run WHERE kind = 'graph'")
    found = {str(row["id"]): row for row in rows}
    for id, it in jobs.items():
        row = found.get(id)
        if row is None:
            verdict.add("lost run", f"{id} {it.key} by {it.via}")
        elif (row["status"], row["output_text"] or None) != (it.expected.status, it.expected.text):
            verdict.add("wrong end", f"{id} {it.workflow}: {row['status']} {row['output_text']!r}")
        elif row["tenant_id"] != it.tenant_id:
            verdict.add("run of another tenant", f"{id} of {it.tenant_id} is {row['tenant_id']}'s")
    for id in found.keys() - jobs.keys() - given_up:
        verdict.add("run that nobody started", id)
    verdict.figures["runs"] = len(found)
    verdict.figures["by status"] = dict(Counter(row["status"] for row in rows))
    return {id: row["seq"] for id, row in found.items()}


@dataclass(slots=True)
class _OfNode:
    ends: int = 0
    requeues: int = 0


@dataclass(slots=True)
class _Events:
    nodes: dict[str, _OfNode] = field(default_factory=lambda: defaultdict(_OfNode))
    leases: dict[tuple[str, int], Lease] = field(default_factory=dict)


async def _events(database: Any, verdict: Verdict, runs: Mapping[str, int]) -> _Events:
    """What each node run's events say. Each run's must be 1..n with one terminal event, its last."""
    seqs: dict[str, list[tuple[int, str]]] = defaultdict(list)
    found = _Events()
    rows = await database.fetch("SELECT aggregate_id, seq, type, at, data FROM event WHERE type LIKE 'runtime.%'")
    for row in rows:
        seqs[str(row["aggregate_id"])].append((row["seq"], row["type"]))
        _of_node(found, row["type"], row["at"], row["data"])
    for id, seq in runs.items():
        events = sorted(seqs.get(id, []))
        if [number for number, _ in events] != list(range(1, seq + 1)):
            verdict.add("gap in events", f"{id}: {[number for number, _ in events]}, the run is at {seq}")
        ends = [kind for _, kind in events if kind in RUN_ENDS]
        if len(ends) != 1:
            verdict.add("terminal events", f"{id}: {ends}")
    own = {str(row[0]) for row in await database.fetch("SELECT id FROM run WHERE kind <> 'graph'")}
    for id in seqs.keys() - runs.keys() - own:
        verdict.add("events without a run", id)
    verdict.figures["events"] = len(rows)
    verdict.figures["steps repeated"] = sum(node.requeues for node in found.nodes.values())
    return found


def _of_node(found: _Events, type: str, at: float, data: bytes) -> None:
    if type in NODE_ENDS:
        found.nodes[orjson.loads(data)["node_run_id"]].ends += 1
    elif type == "runtime.step_requeued":
        event = orjson.loads(data)
        found.nodes[event["node_run_id"]].requeues += 1
        found.leases[event["node_run_id"], event["lease_token"]] = Lease(at, requeued=True)
    elif type in ("runtime.node_scheduled", "runtime.node_dispatched"):
        event = orjson.loads(data)
        if type == "runtime.node_dispatched" or event.get("ready"):
            found.leases[event["node_run_id"], event.get("lease_token", 1)] = Lease(at, requeued=False)


async def _node_runs(database: Any, verdict: Verdict, jobs: Mapping[str, Job]) -> dict[str, Any]:
    rows = await database.fetch("SELECT id, run_id, path, iteration, status, attempt FROM node_run")
    of_run: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in rows:
        of_run[str(row["run_id"])].append((row["path"], row["status"]))
    for id, it in jobs.items():
        if sorted(of_run[id]) != sorted(it.expected.nodes.items()):
            verdict.add("wrong node runs", f"{id} {it.workflow}: {sorted(of_run[id])}")
    verdict.figures["node runs"] = len(rows)
    return {str(row["id"]): row for row in rows}


def _effects(
    verdict: Verdict, jobs: Mapping[str, Job], nodes: Mapping[str, Any], events: _Events, happened: Sequence[Effect]
) -> None:
    """Each effect happened, and again only under a new attempt or after its lease had run out."""
    times = Counter(effect.key for effect in happened)
    for effect in happened:
        node = nodes.get(effect.key)
        if node is None:
            verdict.add("effect of nothing", f"{effect.key}: {times[effect.key]} times")
        elif (str(node["run_id"]), owner_mark(effect.tenant_id)) != (effect.run_id, effect.owner):
            verdict.add("effect for another", f"{effect.key} of {effect.tenant_id} was told it {effect.owner}")
    for id, row in nodes.items():
        it = jobs.get(str(row["run_id"]))
        if it is None:
            continue
        of_node = events.nodes.get(id, _OfNode())
        if of_node.ends != 1:
            verdict.add("terminal events of a node run", f"{id} {row['path']}: {of_node.ends}")
        allowed = row["attempt"] + of_node.requeues if row["path"] in it.expected.effects else 0
        if times[id] > allowed:
            verdict.add("doubled effect", f"{id} {row['path']}: {times[id]} times, {allowed} allowed")
        elif allowed and not times[id]:
            verdict.add("lost effect", f"{id} {row['path']}")
    verdict.figures["effects"] = len(happened)
    verdict.figures["effects repeated"] = len(happened) - len(times)


async def _outcomes(database: Any, verdict: Verdict, jobs: Mapping[str, Job]) -> None:
    """Each accepted run has one outcome, and it succeeded."""
    rows = await database.fetch("SELECT command_id, status FROM command_outcome WHERE type = 'runtime.create_run'")
    found = {str(row["command_id"]): row["status"] for row in rows}
    for id, it in jobs.items():
        if found.get(id) != "succeeded":
            verdict.add("wrong outcome", f"{id} {it.key}: {found.get(id)}")
    verdict.figures["outcomes"] = len(found)


async def _letters(database: Any, verdict: Verdict, poisoned: Mapping[str, Poison]) -> None:
    """Whatever was poison is a dead letter with its reason, and nothing else is."""
    found: dict[str, set[str]] = defaultdict(set)
    for letter in await database.fetch("SELECT key, type, code, detail FROM dead_letter"):
        found[letter["key"]].add(letter["code"])
        if letter["key"] not in poisoned:
            verdict.add("dead letter", f"{letter['type']} {letter['code']}: {letter['detail'][:200]}")
    for key, it in poisoned.items():
        if found[key] != {it.code}:
            verdict.add("poison not contained", f"{key} on {it.topic}: {sorted(found[key])}, not {it.code}")
    verdict.figures["poison"] = len(poisoned)
