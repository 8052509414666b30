"""Crashes by the hundred in one process, on real Postgres and Kafka: the kernel dies at named points by chance."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import asyncpg
import orjson

from bus import postgres
from bus.kernel import Kernel
from bus.limits import Limits
from bus.postgres import PostgresStore
from bus.producer import Producer
from bus.records import Partitions
from bus.store import Out, SendFailed, Unavailable, Unknown, Writes
from bus.worker import DatabaseClock
from handlers.ingress import IngressRules
from handlers.steps.executor import Sweeper
from handlers.steps.leases import Leases
from handlers.steps.port import StepCall
from infra.chaos.book import Book
from infra.chaos.judge import Asked, Verdict, heal, judge
from infra.chaos.lane_reader import LaneReader
from infra.chaos.load import Load
from infra.chaos.places import InterruptedStore
from infra.chaos.workload import TENANTS, WORKFLOWS, Job, job
from infra.domains import PROJECTIONS, Installation, domains
from infra.history.verify import verify
from infra.local.supervisor import Say
from infra.roles.prepare import create_topics, migrate
from infra.settings import Settings
from projections.catalog import Version
from projections.runtime import NodeRun
from schemas import catalog as catalog_wire
from schemas.envelope import Envelope
from schemas.messages import Command, JsonObject, derive, natural_id
from schemas.runtime import CompleteNode, FailNode, Failure
from schemas.topics import COMMANDS, partition_of
from schemas.workflow.node_types import NodeConfig

LEASE_SECONDS = 1.0
CHANCE = 0.06
"""Of a crash, each time a point is passed."""
STEP_CHANCE = 0.02
JOBS_AT_ONCE = 30
STEPS_AT_ONCE = 5
GIVEN_UP_SHARE_MAX = 0.1
"""Of the runs: a step whose lease was lost five times fails by design."""
LEFT_OUT = ("branch",)
"""Workflows with code: no sandbox here."""
POINTS = (
    "after the acknowledgement, before the reply",
    "before the transaction",
    "in mid-transaction",
    "after the commit, before the send",
    "after the send, before the trim",
    "after the batch, before the offset is committed",
    "after the claim, before the drain",
    "after the effect, before its answer",
)


class Crash(BaseException):
    """The process dies here: nothing of it may clean up after itself."""


@dataclass(slots=True)
class Crashes:
    """Draws whether a point is the last one; `counts` tells how often each was."""

    random: Random
    counts: Counter[str] = field(default_factory=Counter)
    on: bool = True

    def are_due(self, wanted: int) -> bool:
        """Whether there were fewer than `wanted`, or up to twice as many and at some point none."""
        total = self.counts.total()
        return total < wanted or (total < 2 * wanted and any(not self.counts[point] for point in POINTS))

    def strikes(self, point: str, chance: float = CHANCE) -> bool:
        struck = self.on and self.random.random() < chance
        self.counts[point] += struck
        return struck

    def at(self, point: str, chance: float = CHANCE) -> None:
        if self.strikes(point, chance):
            raise Crash(point)


@dataclass(slots=True)
class CrashReport:
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "clean": not self.problems,
            "problems": self.problems,
            "crashes": self.counts.total(),
            "crashes by point": {point: self.counts[point] for point in POINTS},
            "figures": self.figures,
        }


async def crash_test(settings: Settings, *, crashes: int, seed: int, say: Say) -> CrashReport:
    """Crash so often on the servers that `settings` name, in a database and topics of its own; then judge."""
    name = f"crashes_{seed}_{os.getpid()}"
    base = settings.required_database_url.rpartition("/")[0]
    folder = settings.data_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    own = settings.model_copy(update={
        "database_url": f"{base}/{name}", "topic_prefix": f"{name}.", "data_dir": folder, "commands_partitions": 4,
        "ingress_partitions": 2, "events_partitions": 3, "steps_partitions": 1, "replies_partitions": 1,
        "live_partitions": 1, "dead_letters_partitions": 1, "lease_seconds": LEASE_SECONDS,
    })  # fmt: skip
    await _execute(settings.required_database_url, f'CREATE DATABASE "{name}"')
    try:
        await migrate(own)
        await create_topics(own)
        return await _crashed(own, crashes, seed, say)
    finally:
        await _execute(settings.required_database_url, f'DROP DATABASE "{name}" WITH (FORCE)')


async def _execute(url: str, statement: str) -> None:
    database = await asyncpg.connect(url)
    try:
        await database.execute(statement)
    finally:
        await database.close()


async def _crashed(settings: Settings, crashes: int, seed: int, say: Say) -> CrashReport:
    report = CrashReport(seed)
    drawn = Crashes(Random(f"crashes {seed}"), report.counts)
    url, bootstrap = settings.required_database_url, settings.required_kafka_bootstrap
    producer = Producer(bootstrap, prefix=settings.topic_prefix)
    await producer.start()
    book = Book(settings.data_dir)
    try:
        async with LaneReader(settings) as reader:
            lives = asyncio.create_task(_lives(settings, drawn, producer, reader, book))
            client = Client(settings, producer, drawn, seed)
            await _unless_ended(lives, client.offer(crashes))
            drawn.on = False
            say(f"{drawn.counts.total()} crashes in process, {len(client.taken)} runs; healing ...")
            left = await _unless_ended(lives, heal(url, bootstrap, settings.topic_prefix, 60))
            lives.cancel()
            await asyncio.gather(lives, return_exceptions=True)
    finally:
        await producer.stop()
        book.close()
    asked = Asked(client.taken, hit=frozenset({os.getpid()}), lease_seconds=LEASE_SECONDS)
    verdict = await judge(url, settings.data_dir, asked)
    found = await verify(url, bootstrap, settings.topic_prefix, lease_seconds=LEASE_SECONDS)
    report.figures = verdict.figures | {"checked": found.document()["checked"]}
    report.problems = [*([f"did not come to rest: {left}"] if left else []), *_told(verdict)]
    report.problems += [
        f"{name}: {count}, the first: {found.violations[name][0]}" for name, count in found.found.items()
    ]
    if verdict.figures["runs given up after lost leases"] > GIVEN_UP_SHARE_MAX * len(client.taken):
        report.problems.append(f"too many runs given up: {verdict.figures}")
    return report


def _told(verdict: Verdict) -> list[str]:
    return [f"{kind}: {count}, the first: {verdict.violations[kind][0]}" for kind, count in verdict.counts.items()]


async def _unless_ended(lives: asyncio.Task[None], work: Any) -> Any:
    """The work's result; whatever ends the lives ends it too."""
    task = asyncio.ensure_future(work)
    await asyncio.wait({lives, task}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
        lives.result()
    return task.result()


async def _lives(settings: Settings, crashes: Crashes, producer: Producer, reader: LaneReader, book: Book) -> None:
    """One process after the other, each until it crashes."""
    number = 0
    while True:
        number += 1
        pool = await postgres.connect(settings, size=3, application=f"crashing {number}")
        try:
            await Life(settings, crashes, producer, reader, book, pool, f"worker-{os.getpid()}-{number}").live()
        except Crash:
            continue
        finally:
            pool.terminate()  # As a dead process leaves its sessions.


class Life:
    """What one process does: it owns all lanes, and executes steps."""

    def __init__(
        self,
        settings: Settings,
        crashes: Crashes,
        producer: Producer,
        reader: LaneReader,
        book: Book,
        pool: asyncpg.Pool,
        owner: str,
    ) -> None:
        self._crashes = crashes
        self._reader = reader
        self._book = book
        self._partitions = settings.commands_partitions
        self._clock = DatabaseClock()
        self._store = PostgresStore(pool, {spec.name: spec for spec in PROJECTIONS})
        self._log = CrashingLog(producer, crashes)
        self._leases = Leases(pool, owner, LEASE_SECONDS)
        self._producer = producer
        self._kernel = Kernel(
            CrashingStore(self._store, crashes),
            self._log,
            domains(Installation(step_kinds=frozenset({"tool", "check"}))),
            PROJECTIONS,
            partitions=Partitions(
                settings.commands_partitions, settings.events_partitions, settings.dead_letters_partitions
            ),
            clock=self._clock,
            owner=owner,
            ingress=IngressRules(auth_required=False),
            limits=Limits(),
            immutable_facts=frozenset({Version}),
        )

    async def live(self) -> None:
        """Raises Crash."""
        await self._clock.measure(self._store.now)
        sweeper = Sweeper(self._leases, self._producer, self._own, self._partitions, seconds=0.3)
        sweeping = asyncio.create_task(sweeper.run())
        try:
            while True:
                await self._turn()
        finally:
            sweeping.cancel()

    def _own(self) -> list[int]:
        return [lane.id for lane in self._kernel.lanes.values() if not lane.ingress]

    async def _turn(self) -> None:
        kernel = self._kernel
        try:
            missing = [id for id in self._reader.lanes if id not in kernel.lanes]
            if missing:
                self._reader.seek(await kernel.claim(missing))
            records = await self._reader.poll()
            if records:
                await kernel.handle(records)
                await self._log.acknowledged()
                self._crashes.at("after the batch, before the offset is committed")
            self._reader.seek_back(kernel.lanes.values())
            await kernel.drain_failed()
            await kernel.fire_timers()
            await kernel.trim()
            await self._execute_steps()
        except (Unavailable, Unknown, SendFailed):
            for id in list(kernel.lanes):
                kernel.release(id)

    async def _execute_steps(self) -> None:
        checks = await self._leases.claim("check", STEPS_AT_ONCE)
        answers = [self._answer(each.row, 0, {"problems": []}) for each in checks]
        for row, _, _ in await self._leases.claim("tool", STEPS_AT_ONCE):
            body = (row.input or {}).get("body") or {}
            call = StepCall(
                row.id, row.run_id, row.tenant_id, row.node_id, row.attempt, NodeConfig(), row.input or {},
                lease_token=row.lease_token,
            )  # fmt: skip
            self._book.note(call, str(body.get("owner") or ""))
            self._crashes.at("after the effect, before its answer", STEP_CHANCE)
            answers.append(self._answer(row, int(body.get("fails") or 0)))
        if answers:
            await self._producer.publish(answers)

    def _answer(self, row: NodeRun, fails: int, output: JsonObject | None = None) -> Out:
        names = {"run_id": row.run_id, "node_run_id": row.id, "lease_token": row.lease_token}
        command: CompleteNode | FailNode
        if fails < 0 or row.attempt <= fails:
            command = FailNode(**names, error=Failure(code="made_to_fail"), retryable=fails >= 0)
        else:
            command = CompleteNode(**names, output=output or {"effect": row.id})
        id = derive(row.id, f"result:{row.lease_token}")
        envelope = Envelope(id, command.type, row.tenant_id, subject=row.run_id, causation_id=row.id)
        return Out(-1, 0, COMMANDS, row.lane, row.run_id, envelope.headers(), command.encode(), row.tenant_id)


class CrashingStore(InterruptedStore):
    """A store whose process may die before, within and after a transaction."""

    def __init__(self, inner: PostgresStore, crashes: Crashes) -> None:
        super().__init__(inner)
        self._crashes = crashes

    def before_commit(self, unit: Any) -> None:
        if self._crashes.strikes("in mid-transaction"):
            unit.connection.terminate()
            raise Crash("in mid-transaction")

    async def write(self, writes: Writes) -> None:
        self._crashes.at("before the transaction")
        async with self.unit() as unit:
            await unit.save(writes)

    async def claim(self, lanes: Sequence[int], owner: str) -> Any:
        claimed = await self._inner.claim(lanes, owner)
        self._crashes.at("after the claim, before the drain")
        return claimed


class CrashingLog:
    """A log whose process may die before it sends, or when all is sent and nobody has noted it."""

    def __init__(self, inner: Producer, crashes: Crashes) -> None:
        self._inner = inner
        self._crashes = crashes
        self._sending: list[asyncio.Future[None]] = []

    def enqueue(self, records: Sequence[Out], *, patience: float = 0.0) -> asyncio.Future[None]:
        self._crashes.at("after the commit, before the send")
        sending = self._inner.enqueue(records, patience=patience)
        self._sending.append(sending)
        return sending

    def encoded(self, records: Sequence[Out]) -> Sequence[Out]:
        return self._inner.encoded(records)

    async def publish(self, records: Sequence[Out]) -> None:
        await self._inner.publish(records)
        self._crashes.at("after the send, before the trim")

    async def acknowledged(self) -> None:
        """Now and then, see what was sent acknowledged, and die of it."""
        sending, self._sending = self._sending, []
        if sending and self._crashes.strikes("after the send, before the trim"):
            await asyncio.wait(sending)
            raise Crash("after the send, before the trim")


class Client:
    """Asks for runs on topic `commands`, and asks again whenever it does not know whether it was heard."""

    def __init__(self, settings: Settings, producer: Producer, crashes: Crashes, seed: int) -> None:
        self._settings = settings
        self._producer = producer
        self._crashes = crashes
        self._load = Load("", producer, seed, settings, (COMMANDS,))
        self._seed = seed
        self.taken: dict[str, Job] = {}

    async def offer(self, crashes: int) -> None:
        """Ask for runs, some at a time, until no more crashes are due and all runs have ended."""
        database = await asyncpg.connect(self._settings.required_database_url)
        try:
            await self._publish_workflows(database)
            number = 0
            while self._crashes.are_due(crashes):
                jobs: list[Job] = []
                while len(jobs) < JOBS_AT_ONCE:
                    it = job(number, self._seed, (COMMANDS,))
                    number += 1
                    if it.workflow not in LEFT_OUT:
                        jobs.append(it)
                for it in jobs:
                    await self._ask(it)
                await _ended(database, list(self.taken))
        finally:
            await database.close()

    async def _ask(self, it: Job) -> None:
        while True:
            run_id = await self._load.by_kafka(it)
            if run_id is not None:
                self.taken[run_id] = it
                if not self._crashes.strikes("after the acknowledgement, before the reply"):
                    return

    async def _publish_workflows(self, database: Any) -> None:
        for tenant in TENANTS:
            for code, dsl in WORKFLOWS.items():
                if code in LEFT_OUT:
                    continue
                definition = catalog_wire.CreateDefinition(kind="workflow", code=code, name=code)
                await self._outcome(database, tenant, f"definition {code}", definition)
                id = catalog_wire.definition_id(tenant, "workflow", code)
                version = catalog_wire.CreateVersion(definition_id=id, kind="workflow", spec=dsl, status="published")
                made = await self._outcome(database, tenant, f"version {code}", version)
                self._load.versions[tenant, code] = made["id"]

    async def _outcome(self, database: Any, tenant: str, name: str, command: Command) -> Any:
        id = natural_id(tenant, "command", name)
        key = command.aggregate_id(tenant, id)
        envelope = Envelope(id, command.type, tenant, subject=key, fingerprint=name)
        place = partition_of(key, self._settings.commands_partitions)
        await self._producer.send(COMMANDS, place, key, envelope.headers(), command.encode())
        while True:
            row = await database.fetchrow("SELECT status, body FROM command_outcome WHERE command_id = $1", id)
            if row is not None and row["status"] != "pending":
                return orjson.loads(row["body"])
            await asyncio.sleep(0.02)


async def _ended(database: Any, ids: Sequence[str]) -> None:
    while True:
        done = await database.fetchval(
            "SELECT count(*) FROM run WHERE id = ANY($1::uuid[]) AND ended_at IS NOT NULL", ids
        )
        if done == len(ids):
            return
        await asyncio.sleep(0.05)
