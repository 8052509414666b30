"""Where a system stands: lanes, what waits in them, steps, timers, dead letters, and what makes no progress."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import asyncpg
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from bus.consumer import Bounds, Consumer, Held
from bus.worker import GROUP
from infra.database.waiting import Units, waiting
from infra.db import session
from infra.settings import Settings
from projections.runtime import LEASED, READY
from schemas.messages import JsonObject
from schemas.topics import COMMANDS, DEAD_LETTERS, EVENTS, INGRESS, REPLIES

ANSWER_SECONDS_MAX = 10.0
WATCH_SECONDS = 2.0
"""How long what waits is watched before anybody asks whether it moves."""
STILL_SECONDS = 10.0
"""How long it must not have moved to count as standing still: a take-over after a kill takes a session and a lease."""
OVERDUE_SECONDS_MAX = 10.0
"""A timer or an expired lease that nobody has seen to for so long is work that stands still."""
OLDEST_LANES_MAX = 8
"""Of so many lanes, those that lag most, the age of the oldest record is looked up."""

SESSION = {
    "application_name": "ap status",
    # Counting what is new must not read what is old, however the planner guesses.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
LANES = """SELECT id, topic, partition, owner, epoch, next_offset, position, sent, stopped
FROM lane ORDER BY topic, partition"""
STEPS_READY = f"SELECT kind, count(*), min(created_at) FROM node_run WHERE listed = {READY} GROUP BY kind"
STEPS_LEASED = f"SELECT kind, count(*) FROM node_run WHERE listed = {LEASED} GROUP BY kind"
EXPIRED = f"""SELECT count(*) FROM node_run WHERE listed = {LEASED}
  AND lease_until < extract(epoch FROM clock_timestamp()) - $1::float8"""
TIMERS = """SELECT count(*) AS waiting,
  count(*) FILTER (WHERE due_at < clock_timestamp() - make_interval(secs => $1)) AS overdue FROM timer"""
NEW_EVENTS = """SELECT e.type, count(*) FROM unnest($1::int2[], $2::int8[]) AS u(lane, position)
JOIN event e ON e.lane = u.lane AND e.position > u.position GROUP BY e.type"""


READ = (COMMANDS, INGRESS, EVENTS, DEAD_LETTERS, REPLIES)
"""Topics whose readers wait behind an open transaction."""


class NoAnswer(Exception):
    """Postgres or Kafka could not be asked."""


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """One lane. `lag`: offsets of its partition not yet handled, without what an open transaction holds back.

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
    oldest_seconds: float | None = None
    """Age of the record it stands at; None if it has not been looked up."""

    @property
    def lag(self) -> int:
        return max(0, self.end_offset - self.next_offset)

    @property
    def unsent(self) -> int:
        return self.position - self.sent


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """A publisher's transaction that is open. `hidden`: how many offsets it holds back, its own among them."""

    topic: str
    partition: int
    hidden: int
    held: Held

    def document(self) -> JsonObject:
        return {"topic": self.topic, "partition": self.partition, "hidden": self.hidden, **asdict(self.held)}

    def __str__(self) -> str:
        return f"partition {self.topic}/{self.partition} waits for {self.held}: {self.hidden} offsets are held back"


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one moment. `workers`: the members of the consumer group, named as lanes name owners.

    `at`: by our monotonic clock. `steps_oldest`: by kind, since when the oldest ready step waits (database time).
    """

    lanes: tuple[LaneStatus, ...] = ()
    workers: tuple[str, ...] = ()
    open_transactions: tuple[OpenTransaction, ...] = ()
    at: float = 0.0
    waiting: Mapping[str, Units] = field(default_factory=dict)
    steps_ready: dict[str, int] = field(default_factory=dict)
    steps_oldest: dict[str, float] = field(default_factory=dict)
    steps_leased: dict[str, int] = field(default_factory=dict)
    leases_expired: int = 0
    timers_waiting: int = 0
    timers_overdue: int = 0
    new_events: Mapping[str, int] = field(default_factory=dict)
    """Events by type that an earlier sample, if one was given, had not seen."""

    @property
    def outbox(self) -> int:
        return self.waiting["outbox"].count if "outbox" in self.waiting else 0

    @property
    def dead_letters(self) -> int:
        return self.waiting["dead_letters"].count if "dead_letters" in self.waiting else 0

    @property
    def lag(self) -> int:
        return sum(lane.lag for lane in self.lanes)

    @property
    def unsent(self) -> int:
        return sum(lane.unsent for lane in self.lanes)

    @property
    def seems_to_wait(self) -> bool:
        """Whether a second look is needed to tell waiting from standing still."""
        return bool(self.lag or self.unsent or sum(self.steps_ready.values()) or self.open_transactions)


async def look(settings: Settings) -> tuple[Sample, list[str]]:
    """The present state and what stands still in it. Raises NoAnswer.

    Takes two seconds if something waits and moves, up to STILL_SECONDS if it does not move.
    """
    return await judged(lambda: sample(settings), WATCH_SECONDS)


async def judged(take: Callable[[], Awaitable[Sample]], pause_seconds: float) -> tuple[Sample, list[str]]:
    """The last of as many looks as are needed to tell waiting from standing still, and what stands still in it."""
    before = after = await take()
    while after.seems_to_wait and after.at - before.at < STILL_SECONDS:
        await asyncio.sleep(pause_seconds)
        after = await take()
        if not moveless(before, after):
            break
    return after, standing_still(before, after)


def standing_still(before: Sample, after: Sample) -> list[str]:
    """One sentence for each thing that makes no progress, judged by two looks."""
    problems = [f"{_name(lane)} has stopped: {lane.stopped}" for lane in after.lanes if lane.stopped]
    if after.lanes and not after.workers:
        problems.append("no worker runs")
    problems += moveless(before, after)
    if after.leases_expired:
        problems.append(f"{after.leases_expired} steps have lost their lease and nobody takes them back")
    if after.timers_overdue:
        problems.append(f"{after.timers_overdue} timers are due for more than {OVERDUE_SECONDS_MAX:g} s")
    return problems


def moveless(before: Sample, after: Sample) -> list[str]:
    """What waited at both looks and has not moved between them: it may yet, given time."""
    problems = []
    earlier = {lane.id: lane for lane in before.lanes}
    for lane in after.lanes:
        was = earlier.get(lane.id, lane)
        if lane.stopped or not after.workers:
            continue
        if lane.lag > 0 and was.lag > 0 and lane.next_offset == was.next_offset:
            problems.append(f"{_name(lane)} handles none of its {lane.lag} records (owner {lane.owner or 'none'})")
        if lane.unsent and lane.sent == was.sent < was.position:
            problems.append(f"{_name(lane)} sends none of its {lane.unsent} records to Kafka")
    open_then = {(each.topic, each.partition, each.held) for each in before.open_transactions}
    problems += [str(each) for each in after.open_transactions if (each.topic, each.partition, each.held) in open_then]
    for kind, count in after.steps_ready.items():
        # The same step has waited for its turn all the time; others may have come and gone.
        same = kind in before.steps_ready and after.steps_oldest.get(kind) == before.steps_oldest.get(kind)
        if same and count and not after.steps_leased.get(kind):
            problems.append(f"nobody executes the {count} {kind or 'pure'} steps that wait")
    return problems


def _name(lane: LaneStatus) -> str:
    return f"lane {lane.topic}/{lane.partition}"


async def sample(settings: Settings, since: Sample | None = None, *, ages: bool = False) -> Sample:
    """Look once. Raises NoAnswer.

    `since`: count the events that came after that sample. `ages`: look up how old the records are that wait.
    """
    lanes, counts = await _ask("Postgres", _postgres(settings.required_database_url, since))
    at = time.monotonic()
    places = [TopicPartition(settings.topic_prefix + row["topic"], row["partition"]) for row in lanes]
    stand = {place: row["next_offset"] for row, place in zip(lanes, places, strict=True)} if ages else {}
    bounds, oldest, workers, held = await _ask("Kafka", _kafka(settings, places, stand))
    return Sample(
        lanes=tuple(_lane(row, bounds[place].end, oldest.get(place)) for row, place in zip(lanes, places, strict=True)),
        workers=workers,
        open_transactions=held,
        at=at,
        **counts,
    )


def _lane(row: asyncpg.Record, end_offset: int, oldest_seconds: float | None) -> LaneStatus:
    names = ("id", "topic", "partition", "owner", "epoch", "next_offset", "position", "sent", "stopped")
    return LaneStatus(**{name: row[name] for name in names}, end_offset=end_offset, oldest_seconds=oldest_seconds)


async def _ask(whom: str, question: Any) -> Any:
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            return await question
    except asyncpg.UndefinedTableError as error:
        raise NoAnswer(f"the database has no schema yet ({error}): `ap migrate` makes it") from error
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, KafkaError) as error:
        raise NoAnswer(f"{whom} does not answer ({str(error) or type(error).__name__})") from error


async def _postgres(url: str, since: Sample | None) -> tuple[list[asyncpg.Record], dict[str, Any]]:
    connection = await asyncpg.connect(url, server_settings=session(url, settings=SESSION))
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            lanes = await connection.fetch(LANES)
            ready = await connection.fetch(STEPS_READY)
            ((timers, overdue),) = await connection.fetch(TIMERS, OVERDUE_SECONDS_MAX)
            counts = {
                "waiting": await waiting(connection),
                "steps_ready": _by_kind(ready),
                "steps_oldest": {row["kind"]: row["min"] for row in ready},
                "steps_leased": _by_kind(await connection.fetch(STEPS_LEASED)),
                "leases_expired": await connection.fetchval(EXPIRED, OVERDUE_SECONDS_MAX),
                "timers_waiting": timers,
                "timers_overdue": overdue,
            }
            if since is not None:
                seen = [(lane.id, lane.position) for lane in since.lanes]
                rows = await connection.fetch(NEW_EVENTS, [id for id, _ in seen], [at for _, at in seen])
                counts["new_events"] = {row["type"]: row["count"] for row in rows}
        return lanes, counts
    finally:
        await connection.close(timeout=1)


def _by_kind(rows: list[asyncpg.Record]) -> dict[str, int]:
    return {row["kind"]: row["count"] for row in rows}


async def _kafka(
    settings: Settings, places: list[TopicPartition], stand: Mapping[TopicPartition, int]
) -> tuple[dict[TopicPartition, Bounds], dict[TopicPartition, float], tuple[str, ...], tuple[OpenTransaction, ...]]:
    """Bounds of each partition, how old the records are at which these stand, the group's members, who holds what."""
    bootstrap = settings.required_kafka_bootstrap
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        described = await admin.describe_topics([settings.topic_prefix + topic for topic in READ])
        answers = await admin.describe_consumer_groups([settings.topic_prefix + GROUP])
    finally:
        await admin.close()
    every = {TopicPartition(topic["topic"], part["partition"]) for topic in described for part in topic["partitions"]}
    consumer = Consumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        bounds = await consumer.bounds(every.union(places))
        held = await _held(consumer, bounds, settings.topic_prefix)
        lagging = [place for place in stand if stand[place] < bounds[place].end]
        lagging.sort(key=lambda place: stand[place] - bounds[place].end)
        oldest = await _oldest(consumer, {place: stand[place] for place in lagging[:OLDEST_LANES_MAX]})
    finally:
        await consumer.stop()
    members = [m for answer in answers for group in answer.to_object()["groups"] for m in group["members"]]
    return bounds, oldest, tuple(sorted(member["client_id"] for member in members)), held


async def _held(
    consumer: Consumer, bounds: Mapping[TopicPartition, Bounds], prefix: str
) -> tuple[OpenTransaction, ...]:
    """The transactions that are open now."""
    found = []
    for place in sorted(place for place, each in bounds.items() if each.high > each.end):
        held = await consumer.held(place, bounds[place].end)
        if held is not None:
            hidden = bounds[place].high - bounds[place].end
            found.append(OpenTransaction(place.topic.removeprefix(prefix), place.partition, hidden, held))
    return tuple(found)


async def _oldest(consumer: Consumer, stand: Mapping[TopicPartition, int]) -> dict[TopicPartition, float]:
    """The age of the record at each of these offsets, as far as they come at once."""
    found: dict[TopicPartition, float] = {}
    if not stand:
        return found
    consumer.assign(list(stand))
    for place, offset in stand.items():
        consumer.seek(place, offset)
    with contextlib.suppress(TimeoutError, KafkaError, UnicodeDecodeError):
        async with asyncio.timeout(1):
            for place in stand:
                record = await consumer.getone(place)
                found[place] = max(0.0, time.time() - record.timestamp / 1_000)
    return found


def document(seen: Sample, problems: Sequence[str]) -> JsonObject:
    """What `ap status --json` says of lanes and work."""
    return {
        "workers": list(seen.workers),
        "lanes": [asdict(lane) | {"lag": lane.lag, "unsent": lane.unsent} for lane in seen.lanes],
        "open_transactions": [each.document() for each in seen.open_transactions],
        "lag": seen.lag,
        "unsent": seen.unsent,
        "outbox": seen.outbox,
        "steps": {"ready": seen.steps_ready, "leased": seen.steps_leased, "leases_expired": seen.leases_expired},
        "timers": {"waiting": seen.timers_waiting, "overdue": seen.timers_overdue},
        "oldest_seconds": {what: round(units.oldest_seconds, 3) for what, units in seen.waiting.items()},
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
    shown += [f"  {'open':<10} {each}" for each in seen.open_transactions]
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
