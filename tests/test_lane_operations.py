"""A lane that cannot go on stands still and says why, until an operator decides."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator

import orjson
import pytest

from bus.lanes import INGRESS_BASE
from infra.history.verify import Report, verify
from infra.local.embedded import EmbeddedStack
from infra.operate import lanes as lane_operations
from infra.operate.lanes import LaneRefused, Standing, lane_id
from infra.settings import Settings
from schemas.catalog import CreateDefinition, definition_id
from schemas.envelope import Envelope
from schemas.topics import COMMANDS, partition_of
from tests.command_line import ap
from tests.live import TENANT, Live, prepared, recreate, running, until


@pytest.fixture
async def settings(services: EmbeddedStack) -> AsyncIterator[Settings]:
    async with prepared(services, f"lanes_{os.getpid()}_{uuid.uuid4().hex[:8]}") as settings:
        yield settings


def app_called(code: str) -> CreateDefinition:
    return CreateDefinition(kind="app", code=code, name=code)


def lane_of(settings: Settings, code: str) -> int:
    return partition_of(definition_id(TENANT, "app", code), settings.commands_partitions)


async def stopped(live: Live, lane: int) -> Standing:
    """Wait until the lane says that it stands still."""

    async def look() -> Standing | None:
        standing = next(each for each in await lane_operations.standings(live.settings) if each.id == lane)
        return standing if standing.stopped else None

    return await until(look)


async def send_unknown(live: Live, code: str) -> str:
    """A command of a type that only a newer release knows, to the lane of app `code`."""
    id, key = str(uuid.uuid4()), definition_id(TENANT, "app", code)
    headers = Envelope(id, "catalog.reticulate", TENANT, fingerprint="f").headers()
    await live.producer.send(COMMANDS, lane_of(live.settings, code), key, headers, b"{}")
    return id


async def test_an_unknown_command_stops_its_lane_until_it_is_skipped(settings: Settings) -> None:
    async with running(settings) as live:
        id, lane = await send_unknown(live, "a"), lane_of(settings, "a")
        behind = await live.send(app_called("a"))
        standing = await stopped(live, lane)
        assert "catalog.reticulate" in standing.stopped
        assert standing.next_offset == 0
        other = next(code for code in "bcdefgh" if lane_of(settings, code) != lane)
        await live.do(app_called(other))

        report = await examine(settings)
        assert any(f"lane {lane} is stopped" in problem for problem in report.violations["I11"])

        code, text = await ap(settings, "lanes", "skip", f"commands/{lane}", "--json")
        assert code == 0, text
        assert (await live.outcome(behind))[0] == "succeeded", "what waited behind it goes on"
        code, shown = await ap(settings, "dlq", "show", orjson.loads(text)["dead_letter"])
        letter = orjson.loads(shown)
        assert (letter["code"], letter["message_id"], letter["offset"]) == ("skipped", id, 0)
        report = await examine(settings)
        assert report.clean, report.document()


async def test_a_skip_without_a_worker_is_found_by_the_next_one(settings: Settings) -> None:
    lane = lane_of(settings, "a")
    async with running(settings) as live:
        await send_unknown(live, "a")
        await live.send(app_called("a"))
        await stopped(live, lane)
    await lane_operations.skip(settings, lane)
    async with running(settings) as live:
        definition = definition_id(TENANT, "app", "a")
        query = "SELECT code FROM definition WHERE id = $1"
        assert await until(lambda: live.database.fetchval(query, definition)) == "a"
        report = await examine(settings)
        assert report.clean, report.document()


async def test_a_topic_that_was_made_anew_must_be_adopted(settings: Settings) -> None:
    lane = lane_of(settings, "a")
    async with running(settings) as live:
        await live.do(app_called("a"))
    await recreate(settings, COMMANDS)
    async with running(settings) as live:
        standing = await stopped(live, lane)
        assert "beyond the topic's end" in standing.stopped
        assert (standing.next_offset, standing.end) == (1, 0)
        lost = await live.send(app_called("b" if lane_of(settings, "b") == lane else "a"))
        code, text = await ap(settings, "lanes", "skip", f"commands/{lane}")
        assert code == 1, text
        code, text = await ap(settings, "lanes", "adopt", f"commands/{lane}", "--at", "begin")
        assert code == 0, text
        assert (await live.outcome(lost))[0] == "rejected", "it came after the adoption, and was handled"


async def test_a_lane_that_goes_on_is_left_alone_unless_forced(settings: Settings) -> None:
    async with running(settings) as live:
        await live.do(app_called("a"))
        lane = lane_of(settings, "a")
        for operation in ("adopt", "skip"):
            code, text = await ap(settings, "lanes", operation, f"commands/{lane}")
            assert (code, "is not stopped" in text) == (1, True), text
        before = next(each for each in await lane_operations.standings(settings) if each.id == lane)
        after = await lane_operations.adopt(settings, lane, "begin", force=True)
        assert (after.epoch, after.next_offset) == (before.epoch + 1, 0)
        # Its owner notices the new epoch, and what is handled again changes nothing.
        again = await live.send(app_called("a"))
        assert (await live.outcome(again))[0] == "rejected"
        events = "SELECT count(*) FROM event WHERE aggregate_id = $1"
        assert await live.database.fetchval(events, definition_id(TENANT, "app", "a")) == 1


async def test_all_lanes_are_listed(settings: Settings) -> None:
    code, text = await ap(settings, "lanes", "list", "--json")
    assert code == 0, text
    names = [lane["lane"] for lane in orjson.loads(text)]
    assert names == ["commands/0", "commands/1", "commands/2", "commands/3", "ingress/0", "ingress/1"]
    code, text = await ap(settings, "lanes")
    assert (code, text.count("\n")) == (0, 6)


@pytest.mark.parametrize(
    ("name", "id"), [("commands/3", 3), ("ingress/2", INGRESS_BASE + 2), ("7", 7), ("10001", 10_001)]
)
def test_lanes_have_names_and_numbers(name: str, id: int) -> None:
    assert lane_id(name) == id


@pytest.mark.parametrize("name", ["", "events/1", "commands", "commands/-1", "commands/1x", "COMMANDS/1"])
def test_what_is_no_lane_is_refused(name: str) -> None:
    with pytest.raises(LaneRefused, match="is no lane"):
        lane_id(name)


async def examine(settings: Settings) -> Report:
    return await verify(
        settings.required_database_url, settings.required_kafka_bootstrap, settings.topic_prefix, patience_seconds=3
    )


async def test_events_are_not_sent_again_beside_a_worker(settings: Settings) -> None:
    async with running(settings) as live:
        await live.do(app_called("a"))
        code, text = await ap(settings, "lanes", "resend")
        assert (code, live.worker.kernel.owner in text) == (1, True), text
        assert all(lane.sent == lane.position for lane in live.worker.lanes.values())
    code, text = await ap(settings, "lanes", "resend")
    assert (code, text) == (0, "1 events go out again when workers claim their lanes\n")
