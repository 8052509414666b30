"""Where a system stands: lanes, what waits in them, steps, timers, dead letters, and what makes no progress."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from bus.worker import GROUP
from infra.settings import Settings
from schemas.messages import JsonObject

ANSWER_SECONDS_MAX = 10.0
WATCH_SECONDS = 2.0
"""How long what waits is watched before it counts as standing still."""
OVERDUE_SECONDS_MAX = 10.0
"""A timer or an expired lease that nobody has seen to for so long is work that stands still."""

LANES = """SELECT id, topic, partition, owner, epoch, next_offset, position, sent, stopped
FROM lane ORDER BY topic, partition"""
OUTBOX = "SELECT count(*) FROM outbox"
WAITING = "SELECT kind, count(*) FROM node_run WHERE ready AND leased_by IS NULL GROUP BY kind"
LEASED = "SELECT kind, count(*) FROM node_run WHERE ready AND leased_by IS NOT NULL GROUP BY kind"
EXPIRED = """SELECT count(*) FROM node_run WHERE ready AND leased_by IS NOT NULL
  AND lease_until < extract(epoch FROM clock_timestamp()) - $1::float8"""
TIMERS = """SELECT count(*) AS waiting,
  count(*) FILTER (WHERE due_at < clock_timestamp() - make_interval(secs => $1)) AS overdue FROM timer"""
DEAD_LETTERS = "SELECT count(*) FROM dead_letter WHERE status = 'dead'"


class NoAnswer(Exception):
    """Postgres or Kafka could not be asked."""


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """One lane. `lag`: records of its partition not yet handled.

    `position`: how many records it made; `sent`: how many of them are noted to be on Kafka.
    """

    id: int
    topic: str
    partition: int
    owner: str
    epoch: int
    next_offset: int
    end_offset: int
    position: int
    sent: int
    stopped: str

    @property
    def lag(self) -> int:
        return self.end_offset - self.next_offset

    @property
    def unsent(self) -> int:
        return self.position - self.sent


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one moment. `workers`: the members of the consumer group, named as lanes name owners."""

    lanes: tuple[LaneStatus, ...] = ()
    workers: tuple[str, ...] = ()
    outbox: int = 0
    steps_ready: dict[str, int] = field(default_factory=dict)
    steps_leased: dict[str, int] = field(default_factory=dict)
    leases_expired: int = 0
    timers_waiting: int = 0
    timers_overdue: int = 0
    dead_letters: int = 0

    @property
    def lag(self) -> int:
        return sum(lane.lag for lane in self.lanes)

    @property
    def unsent(self) -> int:
        return sum(lane.unsent for lane in self.lanes)

    @property
    def seems_to_wait(self) -> bool:
        """Whether a second look is needed to tell waiting from standing still."""
        return bool(self.lag or self.unsent or sum(self.steps_ready.values()))


async def look(settings: Settings) -> tuple[Sample, list[str]]:
    """The present state and what stands still in it; takes two seconds if something waits. Raises NoAnswer."""
    before = await sample(settings)
    if not before.seems_to_wait:
        return before, standing_still(before, before)
    await asyncio.sleep(WATCH_SECONDS)
    after = await sample(settings)
    return after, standing_still(before, after)


def standing_still(before: Sample, after: Sample) -> list[str]:
    """One sentence for each thing that makes no progress, judged by two looks."""
    problems = [f"{_name(lane)} has stopped: {lane.stopped}" for lane in after.lanes if lane.stopped]
    if after.lanes and not after.workers:
        problems.append("no worker runs")
    earlier = {lane.id: lane for lane in before.lanes}
    for lane in after.lanes:
        was = earlier.get(lane.id, lane)
        if lane.stopped or not after.workers:
            continue
        if lane.lag > 0 and was.lag > 0 and lane.next_offset == was.next_offset:
            problems.append(f"{_name(lane)} handles none of its {lane.lag} records (owner {lane.owner or 'none'})")
        if lane.unsent and was.unsent and lane.sent == was.sent:
            problems.append(f"{_name(lane)} sends none of its {lane.unsent} records to Kafka")
    for kind, waiting in after.steps_ready.items():
        if before.steps_ready.get(kind) and waiting and not after.steps_leased.get(kind):
            problems.append(f"nobody executes the {waiting} {kind or 'pure'} steps that wait")
    if after.leases_expired:
        problems.append(f"{after.leases_expired} steps have lost their lease and nobody takes them back")
    if after.timers_overdue:
        problems.append(f"{after.timers_overdue} timers are due for more than {OVERDUE_SECONDS_MAX:g} s")
    return problems


def _name(lane: LaneStatus) -> str:
    return f"lane {lane.topic}/{lane.partition}"


async def sample(settings: Settings) -> Sample:
    """Look once. Raises NoAnswer."""
    lanes, counts = await _ask("Postgres", _postgres(settings.required_database_url))
    places = [TopicPartition(settings.topic_prefix + row["topic"], row["partition"]) for row in lanes]
    ends, workers = await _ask("Kafka", _kafka(settings, places))
    return Sample(
        lanes=tuple(_lane(row, ends[place]) for row, place in zip(lanes, places, strict=True)),
        workers=workers,
        **counts,
    )


def _lane(row: asyncpg.Record, end_offset: int) -> LaneStatus:
    names = ("id", "topic", "partition", "owner", "epoch", "next_offset", "position", "sent", "stopped")
    return LaneStatus(**{name: row[name] for name in names}, end_offset=end_offset)


async def _ask(whom: str, question: Any) -> Any:
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            return await question
    except asyncpg.UndefinedTableError as error:
        raise NoAnswer(f"the database has no schema yet ({error}): `ap migrate` makes it") from error
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, KafkaError) as error:
        raise NoAnswer(f"{whom} does not answer ({str(error) or type(error).__name__})") from error


async def _postgres(url: str) -> tuple[list[asyncpg.Record], dict[str, Any]]:
    connection = await asyncpg.connect(url, server_settings={"role": "ap_worker", "application_name": "ap status"})
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            lanes = await connection.fetch(LANES)
            ((waiting, overdue),) = await connection.fetch(TIMERS, OVERDUE_SECONDS_MAX)
            counts = {
                "outbox": await connection.fetchval(OUTBOX),
                "steps_ready": _by_kind(await connection.fetch(WAITING)),
                "steps_leased": _by_kind(await connection.fetch(LEASED)),
                "leases_expired": await connection.fetchval(EXPIRED, OVERDUE_SECONDS_MAX),
                "timers_waiting": waiting,
                "timers_overdue": overdue,
                "dead_letters": await connection.fetchval(DEAD_LETTERS),
            }
        return lanes, counts
    finally:
        await connection.close(timeout=1)


def _by_kind(rows: list[asyncpg.Record]) -> dict[str, int]:
    return {row["kind"]: row["count"] for row in rows}


async def _kafka(settings: Settings, places: list[TopicPartition]) -> tuple[dict[TopicPartition, int], tuple[str, ...]]:
    """Where each partition ends, and who is in the consumer group."""
    bootstrap = settings.required_kafka_bootstrap
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        ends = await consumer.end_offsets(places)
    finally:
        await consumer.stop()
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        answers = await admin.describe_consumer_groups([settings.topic_prefix + GROUP])
    finally:
        await admin.close()
    members = [m for answer in answers for group in answer.to_object()["groups"] for m in group["members"]]
    return ends, tuple(sorted(member["client_id"] for member in members))


def document(seen: Sample, problems: Sequence[str]) -> JsonObject:
    """What `ap status --json` says of lanes and work."""
    return {
        "workers": list(seen.workers),
        "lanes": [asdict(lane) | {"lag": lane.lag, "unsent": lane.unsent} for lane in seen.lanes],
        "lag": seen.lag,
        "unsent": seen.unsent,
        "outbox": seen.outbox,
        "steps": {"ready": seen.steps_ready, "leased": seen.steps_leased, "leases_expired": seen.leases_expired},
        "timers": {"waiting": seen.timers_waiting, "overdue": seen.timers_overdue},
        "dead_letters": seen.dead_letters,
        "standing_still": list(problems),
    }


def lines(seen: Sample, problems: Sequence[str], *, every_lane: bool) -> list[str]:
    """The same for people. Lanes that wait or have stopped are shown one by one, the others together."""
    shown = []
    for topic in dict.fromkeys(lane.topic for lane in seen.lanes):
        lanes = [lane for lane in seen.lanes if lane.topic == topic]
        owners = Counter(lane.owner or "nobody" for lane in lanes)
        held = ", ".join(f"{owner} {count}" for owner, count in sorted(owners.items()))
        shown.append(f"  {topic:<10} {len(lanes)} lanes, lag {sum(lane.lag for lane in lanes)}; owners: {held}")
        shown += [_line(lane) for lane in lanes if every_lane or lane.lag or lane.stopped]
    shown += [
        f"  {'unsent':<10} {seen.unsent} records, of which {seen.outbox} are in the outbox",
        f"  {'steps':<10} {_counts(seen.steps_ready)} ready, {_counts(seen.steps_leased)} leased",
        f"  {'timers':<10} {seen.timers_waiting}",
        f"  {'dead':<10} {seen.dead_letters} letters",
    ]
    return shown + [f"Standing still: {problem}" for problem in problems]


def _line(lane: LaneStatus) -> str:
    stopped = f", STOPPED: {lane.stopped}" if lane.stopped else ""
    return (
        f"    {lane.partition:>3}  offset {lane.next_offset} of {lane.end_offset}, lag {lane.lag},"
        f" unsent {lane.unsent}, epoch {lane.epoch}, {lane.owner or 'nobody'}{stopped}"
    )


def _counts(by_kind: dict[str, int]) -> str:
    inner = ", ".join(f"{kind} {count}" for kind, count in sorted(by_kind.items()))
    return f"{sum(by_kind.values())}{f' ({inner})' if inner else ''}"
