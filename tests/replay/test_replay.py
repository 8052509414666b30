"""A replay hands on what a topic holds, from where it is told, once more and without any effect."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import NewTopic

from bus.consumer import Consumer
from bus.replay import TopicMissing, TopicReader
from bus.worker import GROUP
from infra import topics
from infra.history.replay import (
    ExportRange,
    FileDestination,
    From,
    HandlerDestination,
    HandlerFailed,
    Printed,
    ReplayRefused,
    ReplayReport,
    Selection,
    TopicDestination,
    Until,
    export,
    replay,
)
from infra.history.replay.run import Pace, resumed
from infra.local.embedded import EmbeddedStack
from infra.settings import Settings
from schemas.catalog import CreateDefinition
from schemas.runtime import CreateRun
from schemas.topics import EVENTS, TOPICS
from tests.command_line import ap
from tests.copies import all_records
from tests.live import Live, lasting, prepared, running, until
from tests.patience import patient
from tests.schemas.workflows import node
from tests.test_verify import chain


@dataclass(frozen=True, slots=True)
class Past:
    settings: Settings
    runs: list[str]
    log: list[dict[str, Any]]
    """Every event of the log as it is exported."""


@pytest.fixture(scope="module")
def past(services: EmbeddedStack) -> Iterator[Past]:
    """A platform that has worked and rests."""

    async def start(settings: Settings) -> Past:
        async with running(settings) as live:
            runs = await work(live)
        return Past(settings, runs, await exported(settings))

    yield from lasting(services, f"replay_{os.getpid()}", start)


async def work(live: Live) -> list[str]:
    nodes = [node(f"n{number}", "template-transform", template="早") for number in range(4)]
    id = await live.publish_workflow("w", chain(*nodes))
    runs = [await live.send(CreateRun(workflow_id=id)) for _ in range(20)]
    assert {await live.run_ended(run) for run in runs} == {"completed"}
    await live.do(CreateDefinition(kind="app", code="other", name="Other"), tenant="t2")

    async with asyncio.timeout(patient(30)):
        await live.worker.stop()  # What it has recorded is on the topics by then.
    return runs


async def exported(settings: Settings, selection: Selection | None = None, **bounds: Any) -> list[dict[str, Any]]:
    found = export(settings.required_database_url, selection or Selection(), ExportRange(**bounds))
    return [event async for event in found]


async def replayed(settings: Settings, destination: Any, topic: str = "events", **options: Any) -> ReplayReport:
    return await replay(settings.required_kafka_bootstrap, settings.topic_prefix, topic, destination, **options)


async def lines(settings: Settings, path: Path, **options: Any) -> list[dict[str, Any]]:
    await replayed(settings, FileDestination(str(path)), **options)
    found = read(path)
    if not options.get("group"):
        os.unlink(path)  # A file that holds something is refused.
    return found


def read(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def without_place(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if not name.startswith("kafka")}


def order(event: dict[str, Any]) -> tuple[str, int]:
    return event["subject"], int(event["sequence"])


def group() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


async def test_the_topic_and_the_log_give_the_same_events(past: Past, tmp_path: Path) -> None:
    found = await lines(past.settings, tmp_path / "out")
    assert sorted((without_place(each) for each in found), key=order) == past.log
    assert len(past.log) > 120
    assert past.log == sorted(past.log, key=order)
    first = next(each for each in past.log if each["type"] == "runtime.run_created")
    assert (first["specversion"], first["sequence"], first["datacontenttype"]) == ("1.0", "1", "application/json")
    assert (first["id"], first["tenantid"], first["actor"]) == (f"{first['subject']}/1", "t1", "tester")
    assert "早" in str([each["data"] for each in past.log if "data" in each])


async def test_a_partitions_events_keep_their_order(past: Past, tmp_path: Path) -> None:
    last: dict[int, int] = {}
    for event in await lines(past.settings, tmp_path / "out"):
        assert event["kafkaoffset"] > last.get(event["kafkapartition"], -1)
        last[event["kafkapartition"]] = event["kafkaoffset"]


@pytest.mark.parametrize("source", ["topic", "log"])
async def test_only_what_is_selected_is_handed_on(past: Past, tmp_path: Path, source: str) -> None:
    run = past.runs[3]
    cases: list[tuple[Selection, Callable[[Any], bool]]] = [
        (Selection(types=("runtime.run_*",)), lambda e: e["type"].startswith("runtime.run_")),
        (
            Selection(types=("*completed", "catalog.*")),
            lambda e: e["type"].endswith("completed") or "cata" in e["type"],
        ),
        (Selection(aggregates=(run,)), lambda e: e["subject"] == run),
        (Selection(tenant="t2"), lambda e: e["tenantid"] == "t2"),
        (Selection(types=("runtime.*",), tenant="t2"), lambda e: False),
    ]
    for selection, belongs in cases:
        if source == "log":
            found = await exported(past.settings, selection)
        else:
            found = [without_place(e) for e in await lines(past.settings, tmp_path / "out", selection=selection)]
        assert sorted(found, key=order) == [each for each in past.log if belongs(each)], selection


async def test_a_replay_begins_and_ends_where_it_is_told(past: Past, tmp_path: Path) -> None:
    path, everything = tmp_path / "out", await lines(past.settings, tmp_path / "all")
    ends = {each["kafkapartition"]: each["kafkaoffset"] + 1 for each in everything}
    partition = max(ends, key=lambda each: ends[each])
    since = From.parse(f"{partition}:{ends[partition] - 3}")
    assert len(await lines(past.settings, path, since=since)) == 3
    until = Until.parse(f"{partition}:{ends[partition] - 1}")
    assert len(await lines(past.settings, path, since=since, until=until)) == 2
    assert await lines(past.settings, path, since=From.parse("latest")) == []
    assert len(await lines(past.settings, path, since=From.parse("2001-01-01T00:00:00Z"))) == len(everything)
    assert await lines(past.settings, path, since=From.parse("2999-01-01T00:00:00+00:00")) == []
    assert await lines(past.settings, path, until=Until.parse("2001-01-01T00:00:00Z")) == []


async def test_a_time_parts_the_topic_in_two(past: Past, tmp_path: Path) -> None:
    records = sorted(r.timestamp for r in await all_records(past.settings) if r.topic == "events")
    middle = datetime.fromtimestamp(records[len(records) // 2] / 1_000, UTC).isoformat()
    before = await lines(past.settings, tmp_path / "a", until=Until.parse(middle))
    after = await lines(past.settings, tmp_path / "b", since=From.parse(middle))
    assert len(before) + len(after) == len(records)
    assert after
    ids = [each["id"] for each in (*before, *after)]
    assert len(set(ids)) == len(past.log)


@pytest.mark.parametrize("text", ["yesterday", "", "0:1,0:2", "1:", "2026-01-01T00:00:00", "-1:0"])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ReplayRefused):
        From.parse(text)


async def test_an_offset_or_partition_that_is_not_there_is_refused(past: Past, tmp_path: Path) -> None:
    for text in ("9:0", "0:999999"):
        with pytest.raises(ReplayRefused):
            await lines(past.settings, tmp_path / "out", since=From.parse(text))
    assert not (tmp_path / "out").exists()


async def new_topic(settings: Settings) -> str:
    name = f"copy-{uuid.uuid4().hex[:12]}"
    async with topics.administration(settings) as admin:
        await admin.create_topics([NewTopic(name, 3, 1)])
    return name


async def test_another_topic_gets_the_same_records(past: Past) -> None:
    name = await new_topic(past.settings)
    bootstrap, prefix = past.settings.required_kafka_bootstrap, past.settings.topic_prefix
    destination = TopicDestination(bootstrap, prefix, name, f"{prefix}events")
    report = await replayed(past.settings, destination)
    expected = [r for r in await all_records(past.settings) if r.topic == "events"]
    assert report.taken == report.read == len(expected)
    copied = []
    async with TopicReader(bootstrap) as reader:
        for partition, extent in (await reader.extents(name)).items():
            async for records in reader.read(name, partition, extent):
                copied += records
    assert sorted((r.key, r.value, tuple(r.headers), r.timestamp) for r in copied) == sorted(
        (r.key, r.value, tuple(r.headers), r.timestamp) for r in expected
    )


async def test_topics_of_the_platform_are_never_written(past: Past) -> None:
    bootstrap, prefix = past.settings.required_kafka_bootstrap, past.settings.topic_prefix
    for topic in TOPICS:
        for name in (topic.name, prefix + topic.name):
            with pytest.raises(ReplayRefused):
                TopicDestination(bootstrap, prefix, name, f"{prefix}events")
    with pytest.raises(ReplayRefused):
        TopicDestination(bootstrap, prefix, "copied", "copied")
    with pytest.raises(TopicMissing):
        await replayed(past.settings, TopicDestination(bootstrap, prefix, "nowhere", f"{prefix}events"))


async def test_a_handler_that_failed_goes_on_at_the_very_event(past: Past) -> None:
    seen: list[str] = []
    broken = True

    async def handle(event: dict[str, Any]) -> None:
        if broken and len(seen) == 70:
            raise ValueError("not now")
        seen.append(event["id"])

    name = group()
    with pytest.raises(HandlerFailed, match="ValueError: not now"):
        await replayed(past.settings, HandlerDestination(handle), group=name)
    assert len(seen) == 70
    broken = False
    report = await replayed(past.settings, HandlerDestination(handle), group=name)
    assert report.resumed
    assert sorted(seen) == sorted(each["id"] for each in past.log)
    report = await replayed(past.settings, HandlerDestination(handle), group=name)
    assert (report.read, report.taken) == (0, 0)


async def test_a_group_remembers_across_what_was_not_selected(past: Past, tmp_path: Path) -> None:
    name, path = group(), tmp_path / "out"
    selection = Selection(types=("runtime.run_completed",))
    ended = len(past.runs) + 1  # And the check of their workflow.
    assert len(await lines(past.settings, path, group=name, selection=selection)) == ended
    report = await replayed(past.settings, FileDestination(str(path)), group=name)
    assert (report.read, report.resumed) == (0, True)
    assert len(read(path)) == ended  # A resumed file is gone on with, not begun anew.


async def test_a_group_is_asked_where_it_stands_before_anything_is_assigned(past: Past) -> None:
    """Else the consumer looks for a place by itself meanwhile, finds none, and the first replay of a group fails."""
    topic = past.settings.topic_prefix + EVENTS
    bootstrap = past.settings.required_kafka_bootstrap
    consumer = Consumer(bootstrap_servers=bootstrap, group_id=group(), auto_offset_reset="none")
    await consumer.start()
    try:
        async with TopicReader(bootstrap, past.settings.topic_prefix) as reader:
            there = await reader.extents(EVENTS)
        wanted = {TopicPartition(topic, partition): extent for partition, extent in there.items()}
        assert await resumed(consumer, there, wanted, ReplayReport()) == wanted
        assert not consumer.assignment()
    finally:
        await consumer.stop()


async def test_without_a_group_nothing_is_remembered(past: Past, tmp_path: Path) -> None:
    for _ in range(2):
        assert len(await lines(past.settings, tmp_path / "out")) == len(past.log)


async def test_the_workers_group_is_refused(past: Past, tmp_path: Path) -> None:
    with pytest.raises(ReplayRefused):
        await lines(past.settings, tmp_path / "out", group=past.settings.topic_prefix + GROUP)


async def test_a_replay_executes_and_sends_nothing(past: Past) -> None:
    async def state() -> Any:
        connection = await asyncpg.connect(past.settings.required_database_url)
        try:
            tables = ("event", "outbox", "inbox", "command_outcome", "node_run", "timer")
            counts = [await connection.fetchval(f"SELECT count(*) FROM {table}") for table in tables]
        finally:
            await connection.close()
        return counts, len(await all_records(past.settings))

    before = await state()
    await replayed(past.settings, HandlerDestination(lambda event: None))
    assert await state() == before


async def test_records_of_any_topic_are_events_whatever_they_hold(past: Past, tmp_path: Path) -> None:
    found = await lines(past.settings, tmp_path / "out", topic="commands")
    assert {"runtime.create_run", "catalog.create_definition"} <= {each["type"] for each in found}
    assert all(each["specversion"] == "1.0" and each["id"] for each in found)


async def test_what_follows_is_seen_as_it_comes(services: EmbeddedStack) -> None:
    printed: list[str] = []
    async with prepared(services, f"tail_{os.getpid()}") as settings, running(settings) as live:
        await live.do(CreateDefinition(kind="app", code="before", name="Before"))
        options: dict[str, Any] = {
            "since": From("latest"),
            "follow": True,
            "selection": Selection(types=("catalog.*",)),
        }
        following = asyncio.create_task(replayed(settings, Printed(printed.append), **options))
        number = 0

        async def seen() -> bool:
            nonlocal number
            if following.done():
                following.result()
            number += 1
            await live.do(CreateDefinition(kind="app", code=f"a{number}", name=f"名{number}"))
            return len(printed) > 3

        await until(seen)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert not any("Before" in text for text in printed)
    assert all("catalog.definition_created" in text and "t1" in text and "#1" in text for text in printed)
    assert "名" in printed[-1]


@pytest.mark.parametrize(("rate", "records"), [(0.0, 500), (1.0, 1), (100.0, 25), (1e9, 500)])
def test_a_rate_keeps_batches_small(rate: float, records: int) -> None:
    """Else a second's share would come at once."""
    assert Pace(rate).records_max == records


async def test_bounds_of_an_export_are_included(past: Past) -> None:
    run = past.runs[0]
    of_run = [each for each in past.log if each["subject"] == run]
    found = await exported(past.settings, Selection(aggregates=(run,)), seq_min=2, seq_max=4)
    assert found == of_run[1:4]
    middle = ExportRange.parse(of_run[0]["time"], "").at_min
    assert middle is not None
    everything = await exported(past.settings, at_min=middle)
    assert run in {each["subject"] for each in everything}
    earlier = await exported(past.settings, at_max=middle - 0.000_001)
    assert sorted((*everything, *earlier), key=order) == past.log
    with pytest.raises(ReplayRefused):
        await exported(past.settings, Selection(types=("runtime.unheard_of",)))
    with pytest.raises(ReplayRefused):
        await exported(past.settings, Selection(aggregates=("run-1",)))


HANDLER = """
import json, pathlib
seen = pathlib.Path(__file__).parent / "seen"
def handle(event):
    with seen.open("a") as file:
        file.write(json.dumps(event) + "\\n")
def fail(event):
    raise LookupError("no such customer")
answer = 42
"""


async def test_ap_replay_and_ap_events_export(past: Past, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = f"handlers_{uuid.uuid4().hex[:8]}"
    (tmp_path / f"{module}.py").write_text(HANDLER)
    run = past.runs[0]
    events = [each for each in past.log if each["subject"] == run]

    async def said(*arguments: str) -> tuple[int, str]:
        return await ap(past.settings, *arguments)

    code, output = await said("replay", "out.jsonl", "--aggregate", run, "--json")
    assert (code, orjson.loads(output)["taken"]) == (0, len(events)), output
    assert [without_place(each) for each in read(tmp_path / "out.jsonl")] == events
    code, output = await said("replay", f"{module}:handle", "--to", "handler", "--aggregate", run.upper())
    assert (code, len(read(tmp_path / "seen"))) == (0, len(events)), output
    code, output = await said("replay", f"{module}:fail", "--to", "handler")
    assert (code, "LookupError: no such customer" in output) == (1, True), output
    for wrong in ("nowhere:handle", f"{module}:none", f"{module}:answer", "handle"):
        code, output = await said("replay", wrong, "--to", "handler")
        assert (code, output.count("\n")) == (2, 1), output
    code, output = await said("replay", past.settings.topic_prefix + "commands", "--to", "topic")
    assert (code, "a topic of the platform" in output) == (2, True), output
    code, output = await said("replay", "out.jsonl", "--topic", "evnets")
    assert (code, "there is no topic 'evnets'" in output) == (2, True), output
    code, output = await said("replay", "out.jsonl", "--from", "now")
    assert (code, "--from 'now' is no time" in output) == (2, True), output
    code, output = await said("replay", "out.jsonl", "--from", "latest", "--until", "0:1")
    assert (code, "there is no --until for it" in output) == (2, True), output

    for again in (("replay", "out.jsonl"), ("events", "export", "--out", "out.jsonl")):
        code, output = await said(*again)
        assert (code, "out.jsonl is there and not empty" in output) == (2, True), output
    assert len(read(tmp_path / "out.jsonl")) == len(events)
    for topic, kind in (("events", "event"), ("commands", "command")):
        code, output = await said("replay", "none.jsonl", "--topic", topic, "--type", "nothing.*")
        assert (code, f"no {kind} is called nothing.*" in output) == (2, True), output
    code, output = await said("events", "export", "--aggregate", run, "--out", "log.jsonl")
    assert (code, read(tmp_path / "log.jsonl")) == (0, events), output
    code, output = await said("events", "export", "--aggregate", run, "--from", "2", "--to", "2")
    assert (code, orjson.loads(output.splitlines()[0])) == (0, events[1])
    code, output = await said("events", "export", "--type", "nothing.*")
    assert (code, "no event is called nothing.*" in output) == (2, True), output
    sys.modules.pop(module, None)
