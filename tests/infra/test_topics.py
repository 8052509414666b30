"""Topics grow: everything of a key moves to its new lane, in order, nothing lost; or nothing moves."""

from __future__ import annotations

import asyncio
import itertools
import os
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest

from bus.replay import TopicReader
from bus.store import Log, Out
from handlers.steps.port import StepCall, StepResult
from infra import topics
from infra.history.verify import verify
from infra.local.embedded import EmbeddedStack
from infra.operate.publish import Publication, publish
from infra.operate.topic_growth import Grown, GrowthRefused, grow, listed
from infra.roles.extras import Extras
from infra.roles.prepare import create_topics, migrate
from infra.settings import Settings
from infra.topics import TopicMismatch
from schemas.catalog import ChangeDefinition, CreateDefinition, definition_id
from schemas.envelope import Envelope
from schemas.messages import JsonObject
from schemas.runtime import CreateRun
from schemas.topics import COMMANDS, INGRESS, partition_of
from tests.live import TENANT, Live, prepared, running, until

APPS = [f"app-{number}" for number in range(12)]
RUNS = 16
FLOW: JsonObject = {
    "nodes": [
        {"id": "start", "type": "start"},
        {"id": "one", "type": "tool", "config": {"tool_binding_id": "x"}},
        {"id": "wait", "type": "template-transform", "config": {"template": "waited", "delay_seconds": 3}},
        {"id": "two", "type": "tool", "config": {"tool_binding_id": "x"}},
    ],
    "edges": [
        {"source": "start", "target": "one"},
        {"source": "one", "target": "wait"},
        {"source": "wait", "target": "two"},
    ],
}


@dataclass
class Lossy:
    """A log that swallows what is sent while `dumb`: committed, and not on Kafka."""

    log: Log
    dumb: bool = False
    swallowed: list[asyncio.Future[None]] = field(default_factory=list)

    def enqueue(self, records: Sequence[Out], *, patience: float = 0.0) -> asyncio.Future[None]:
        if not self.dumb:
            return self.log.enqueue(records, patience=patience)
        self.swallowed.append(asyncio.get_running_loop().create_future())
        return self.swallowed[-1]

    def encoded(self, records: Sequence[Out]) -> Sequence[Out]:
        return self.log.encoded(records)

    async def publish(self, records: Sequence[Out]) -> None:
        await self.log.publish(records)


@dataclass
class World:
    settings: Settings
    effects: Counter[str] = field(default_factory=Counter)
    logs: list[Lossy] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    names: Counter[str] = field(default_factory=Counter)

    @property
    def extras(self) -> Extras:
        def lossy(log: Log) -> Log:
            self.logs.append(Lossy(log))
            return self.logs[-1]

        return Extras(performers={"tool": self._perform}, log=lossy)

    async def _perform(self, call: StepCall) -> StepResult:
        self.effects[call.node_run_id] += 1
        await asyncio.sleep(0.05)
        return StepResult({})

    async def rename(self, live: Live, app: str) -> None:
        """The next name of an app: 1, 2, 3, ..."""
        self.names[app] += 1
        id = definition_id(TENANT, "app", app)
        await live.send(ChangeDefinition(definition_id=id, kind="app", name=str(self.names[app])))

    async def work_and_die(self) -> None:
        """Leave behind every kind of what moves: unhandled commands, unsent records, timers, leased steps."""
        async with running(self.settings, self.extras) as live:
            for app in APPS:
                await live.do(CreateDefinition(kind="app", code=app, name="0"))
            flow = await live.publish_workflow("flow", FLOW)
            for _ in range(RUNS // 2):
                self.runs.append((await live.do(CreateRun(workflow_id=flow)))["id"])
            for app in APPS:
                await self.rename(live, app)

            async def some_wait() -> bool:
                return bool(await live.database.fetchval("SELECT count(*) FROM timer"))

            await until(some_wait)
            self.logs[-1].dumb = True
            for app in APPS:
                await self.rename(live, app)

            async def some_unsent() -> bool:
                return bool(self.logs[-1].swallowed)

            await until(some_unsent)
            for task in live.tasks:
                task.cancel()
            await asyncio.gather(*live.tasks, return_exceptions=True)
            for future in self.logs[-1].swallowed:
                future.cancel()  # Else the worker, which stops in order after all, would wait for them.
            for _ in range(3):
                for app in APPS:
                    await self.rename(live, app)
            for _ in range(RUNS // 2):
                id = str(uuid.uuid4())
                await live.send(CreateRun(run_id=id, workflow_id=flow), tenant=TENANT)
                self.runs.append(id)

    async def work_off(self, partitions: int) -> None:
        """All comes to its end on so many partitions, in order, and nothing twice."""
        settings = self.settings.model_copy(update={"commands_partitions": partitions})
        async with running(settings, self.extras) as live:
            for run in self.runs:
                assert await live.run_ended(run) == "completed"
            for app, last in self.names.items():
                id = definition_id(TENANT, "app", app)

                async def named(id: str = id, last: int = last) -> bool:
                    return await live.database.fetchval("SELECT name FROM definition WHERE id = $1", id) == str(last)  # type: ignore[no-any-return]

                await until(named)
                made = await live.database.fetch("SELECT type, data, seq, lane FROM event WHERE aggregate_id = $1"
                                                 " ORDER BY seq", id)  # fmt: skip
                assert len(made) == last + 1, "each name once"
                assert all(f'"name":"{n}"'.encode() in row["data"] for n, row in enumerate(made)), "in order"
                assert {row["lane"] for row in made} == {partition_of(id, partitions)}
            assert await live.database.fetchval("SELECT count(*) FROM dead_letter") == 0
            repeated = await live.database.fetchval("SELECT coalesce(sum(requeues), 0) FROM node_run")
            assert len(self.effects) == 2 * len(self.runs)
            assert sum(self.effects.values()) <= 2 * len(self.runs) + repeated
        report = await verify(
            settings.required_database_url, settings.required_kafka_bootstrap, settings.topic_prefix, lease_seconds=1.0
        )
        assert report.violations == {name: [] for name in report.violations}


@pytest.fixture
async def world(services: EmbeddedStack) -> AsyncIterator[World]:
    name = f"grow_{os.getpid()}_{uuid.uuid4().hex[:8]}"
    async with prepared(services, name, lease_seconds=1.0, lease_renew_seconds=0.3) as settings:
        yield World(settings)


async def test_what_was_under_way_goes_on_in_order_on_more_lanes(world: World) -> None:
    await world.work_and_die()
    done = await grow(world.settings, COMMANDS, 7)
    assert (done.before, done.after) == (4, 7)
    assert done.moved >= 3 * len(APPS) + RUNS // 2
    assert done.sent > 0
    assert done.timers > 0
    assert done.aggregates > 0
    await world.work_off(7)


@pytest.mark.parametrize("phase", ["claimed", "altered", "moved", "sent", "switching"])
async def test_a_growth_that_dies_anywhere_is_run_again(world: World, phase: str) -> None:
    class Died(Exception):
        pass

    def dies(reached: str) -> None:
        if reached == phase:
            raise Died

    await world.work_and_die()
    with pytest.raises(Died):
        await grow(world.settings, COMMANDS, 6, dies)
    if phase != "claimed":
        with pytest.raises(TopicMismatch, match="grow"):
            await topics.check(world.settings)
        with pytest.raises(GrowthRefused, match="`ap topics grow commands 6` finishes it"):
            await grow(world.settings, COMMANDS, 8)
    await grow(world.settings, COMMANDS, 6)
    await world.work_off(6)


async def test_nothing_grows_while_somebody_runs(world: World) -> None:
    async with running(world.settings) as live:
        with pytest.raises(GrowthRefused, match=f"these still run: .*{live.worker.kernel.owner}"):
            await grow(world.settings, COMMANDS, 8)
        await live.do(CreateDefinition(kind="app", code="a", name="A"))
    assert {each.topic: each.partitions for each in await listed(world.settings)}[COMMANDS] == 4


async def test_refusals_say_why(world: World) -> None:
    settings = world.settings
    for topic, partitions, reason in (
        (COMMANDS, 4, "has 4 partitions: it can have more, not 4"),
        (COMMANDS, 2, "it can have more, not 2"),
        (COMMANDS, 10_001, "1 to 10000 partitions"),
        ("events", 9, "subscribers read the events of a key in order"),
        ("replies", 9, "would help nobody"),
        ("comands", 9, "is no topic"),
    ):
        with pytest.raises(GrowthRefused, match=reason):
            await grow(settings, topic, partitions)


async def test_roles_take_the_recorded_number_and_refuse_another_that_was_set(world: World) -> None:
    await grow(world.settings, COMMANDS, 5)
    with pytest.raises(TopicMismatch, match="AGENT_PLATFORM_COMMANDS_PARTITIONS is 4, and Postgres has recorded 5"):
        await topics.check(world.settings)
    unset = world.settings.model_copy()
    unset.model_fields_set.discard("commands_partitions")
    assert (await topics.check(unset)).commands_partitions == 5
    await migrate(unset)
    await create_topics(unset)
    assert {each.topic: each.recorded for each in await listed(unset)}[COMMANDS] == 5, "and no start adds lanes"


async def test_ingress_grows_while_everything_runs(world: World) -> None:
    async with running(world.settings, world.extras) as live:
        assert await grow(world.settings, INGRESS, 5) == Grown(INGRESS, 2, 5)

        async def known() -> bool:
            return await live.producer.partitions(INGRESS) == 5

        await until(known)
        for number in range(10):
            body = CreateDefinition(kind="app", code=f"late-{number}", name="L").encode()
            headers = Envelope(f"id-{number}", "catalog.create_definition", TENANT).headers()
            await live.producer.send(INGRESS, number % 5, None, headers, body)
    key = next(key for key in map(str, itertools.count()) if partition_of(key, 5) == 4)
    body = CreateDefinition(kind="app", code="keyed", name="K").encode()
    record = Publication("catalog.create_definition", body, "id-keyed", TENANT, key)
    await publish(world.settings, [record])  # As whoever still has the old number in the settings.
    more = world.settings.model_copy(update={"ingress_partitions": 5})
    async with running(more, world.extras) as live:

        async def all_there() -> bool:
            return await live.database.fetchval("SELECT count(*) FROM definition") == 11  # type: ignore[no-any-return]

        await until(all_there)
    async with TopicReader(more.required_kafka_bootstrap, more.topic_prefix) as reader:
        extents = await reader.extents(INGRESS)
        keys = [record.key async for found in reader.read(INGRESS, 4, extents[4]) for record in found]
        assert (len(extents), keys.count(key.encode())) == (5, 1)
