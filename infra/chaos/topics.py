"""Topics and group offsets lost while work waits: what the log and the lanes know brings everything back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition

from bus.worker import GROUP
from infra import topics
from infra.chaos.scene import Conclusion, Scene, scene
from infra.local.supervisor import RoleName, Say
from infra.operate import lanes as lane_operations
from infra.settings import Settings
from schemas.topics import COMMANDS, EVENTS, INGRESS

RUNS, SECONDS = 60, 6.0
PATIENCE_SECONDS = 90.0
ROLES: tuple[RoleName, ...] = ("worker", "worker", "executor")


@dataclass(slots=True)
class TopicsReport:
    seed: int
    conclusions: dict[str, Conclusion] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    """Why the lanes stopped, as an operator reads it."""

    @property
    def problems(self) -> list[str]:
        return [f"{what}: {each}" for what, done in self.conclusions.items() for each in done.problems]

    def document(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "clean": not self.problems,
            "problems": self.problems,
            "lanes said": self.said[:3],
            "lost": {what: done.document() for what, done in self.conclusions.items()},
        }


@dataclass(frozen=True, slots=True)
class Loss:
    """`at_work`: the workers go on meanwhile. `adopt`: an operator has to accept the lanes' new topic."""

    what: str
    lose: Callable[[Scene], Awaitable[None]]
    at_work: bool = False
    adopt: bool = False


async def topics_test(settings: Settings, *, seed: int, say: Say, only: str = "") -> TopicsReport:
    """Lose one thing after the other (or those whose name holds `only`); after each, everything ends well."""
    report = TopicsReport(seed)
    async with scene(settings, seed=seed, say=say) as stage:
        try:
            await _losses(stage, report, only)
        except Exception as error:
            report.conclusions["broken off"] = stage.broken_off(error)
    return report


async def _losses(stage: Scene, report: TopicsReport, only: str) -> None:
    names = ["worker-0", "worker-1", "executor-0"]
    for loss in (loss for loss in LOSSES if only in loss.what):
        await stage.load.run(RUNS, SECONDS)
        await _until(lambda: _all_sent(stage), "everything is sent and handled; steps and timers may wait")
        for name in () if loss.at_work else names:
            await stage.stack.remove(name)
        stage.say(f"lost: {loss.what}")
        await loss.lose(stage)
        names = names if loss.at_work else [await stage.stack.add(role) for role in ROLES]
        if loss.adopt:
            await _adopt(stage, report)
        await stage.load.run(RUNS, SECONDS)
        stage.calm()
        report.conclusions[loss.what] = await stage.conclude()


async def _lose_offsets(stage: Scene) -> None:
    """The group believes to have read nothing yet. Lanes go on from where Postgres says they are."""
    settings = stage.settings
    partitions = {COMMANDS: settings.commands_partitions, INGRESS: settings.ingress_partitions}
    places = [
        TopicPartition(settings.topic_prefix + topic, partition)
        for topic, count in partitions.items()
        for partition in range(count)
    ]
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.required_kafka_bootstrap,
        group_id=settings.topic_prefix + GROUP,
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        consumer.assign(places)
        await consumer.commit(dict.fromkeys(places, 0))
    finally:
        await consumer.stop()


async def _lose_events(stage: Scene) -> None:
    """The topic is gone with all its records; the lanes are told to send their events again."""
    await _made_anew(stage, EVENTS)
    sent = await lane_operations.resend(stage.settings)
    stage.say(f"{sent} events are to be sent again")


async def _lose_commands(stage: Scene) -> None:
    await _made_anew(stage, COMMANDS)


LOSSES = (
    Loss("offsets of the group", _lose_offsets),
    Loss(f"topic {EVENTS}", _lose_events),
    Loss(f"topic {COMMANDS}", _lose_commands, adopt=True),
    Loss(f"topic {COMMANDS} under workers", _lose_commands, at_work=True, adopt=True),
)


async def _adopt(stage: Scene, report: TopicsReport) -> None:
    """Each lane that has met the new topic says so and waits; an operator lets it go on from its begin."""
    stopped = "SELECT id, stopped FROM lane WHERE topic = 'commands' AND stopped <> ''"
    behind = "SELECT count(*) FROM lane WHERE topic = 'commands' AND next_offset > 0 AND stopped = ''"

    async def look() -> bool:
        return not (await _fetch(stage, behind))[0][0]

    await _until(look, "every lane has noticed")
    for row in await _fetch(stage, stopped):
        report.said.append(row["stopped"])
        await lane_operations.adopt(stage.settings, row["id"], "begin")
    stage.say(f"{len(report.said)} lanes adopted, the first said: {report.said[0]}")


async def _made_anew(stage: Scene, topic: str) -> None:
    name = stage.settings.topic_prefix + topic
    async with topics.administration(stage.settings) as admin:
        await admin.delete_topics([name])

        async def gone() -> bool:
            return name not in await admin.list_topics()

        await _until(gone, f"{name} is gone")
    await topics.create(stage.settings)


async def _all_sent(stage: Scene) -> bool:
    rows = await _fetch(stage, "SELECT coalesce(sum(position - sent), 0)::int8 FROM lane")
    lanes = await lane_operations.standings(stage.settings)
    return not rows[0][0] and all(lane.next_offset == lane.end for lane in lanes)


async def _fetch(stage: Scene, sql: str) -> list[Any]:
    database = await asyncpg.connect(stage.settings.required_database_url, timeout=5)
    try:
        return list(await database.fetch(sql))
    finally:
        await database.close()


async def _until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                if await condition():
                    return
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise TimeoutError(f"waited {PATIENCE_SECONDS:g} s for this: {what}") from None
