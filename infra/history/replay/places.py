"""Where a replay begins and ends: words, times or offsets, and what they are on each partition."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from aiokafka import TopicPartition

from bus.replay import Extent

_OFFSETS = re.compile(r"\d{1,5}:\d{1,18}(,\d{1,5}:\d{1,18})*\Z")


class ReplayRefused(Exception):
    """What was asked for cannot be done, and why; nothing was read."""


@dataclass(frozen=True, slots=True)
class From:
    """`offsets`: by partition; partitions that are not named are left out. `at`: seconds since 1970."""

    word: Literal["earliest", "latest", ""] = "earliest"
    at: float = 0.0
    offsets: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> From:
        """`earliest`, `latest`, an RFC 3339 time, or `PARTITION:OFFSET,...`. Raises ReplayRefused."""
        if text in ("earliest", "latest"):
            return cls("earliest" if text == "earliest" else "latest")
        if _OFFSETS.match(text):
            return cls("", offsets=_pairs(text))
        return cls("", at=instant_of("--from", text))


@dataclass(frozen=True, slots=True)
class Until:
    """The first offset, or the first time, that is not read any more; nothing given: the end as it is now."""

    at: float = 0.0
    offsets: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Until:
        """An RFC 3339 time, or `PARTITION:OFFSET,...`. Raises ReplayRefused."""
        if not text:
            return cls()
        return cls(offsets=_pairs(text)) if _OFFSETS.match(text) else cls(at=instant_of("--until", text))


def instant_of(option: str, text: str) -> float:
    """Seconds since 1970 of an RFC 3339 time. Raises ReplayRefused."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ReplayRefused(f"{option} {text!r} is no time such as 2026-01-31T12:00:00Z") from None
    if found.tzinfo is None:
        raise ReplayRefused(f"{option} {text!r} needs its time zone, such as 2026-01-31T12:00:00Z")
    return found.astimezone(UTC).timestamp()


def _pairs(text: str) -> tuple[tuple[int, int], ...]:
    pairs = [
        (int(partition), int(offset)) for partition, _, offset in (each.partition(":") for each in text.split(","))
    ]
    if len(dict(pairs)) < len(pairs):
        raise ReplayRefused(f"{text!r} names a partition twice")
    return tuple(pairs)


async def extents(
    consumer: Any, topic: str, there: dict[int, Extent], since: From, until: Until
) -> dict[TopicPartition, Extent]:
    """What is to be read of each partition. `there`: what the topic holds. Raises ReplayRefused."""
    unknown = sorted({partition for partition, _ in (*since.offsets, *until.offsets)} - set(there))
    if unknown:
        raise ReplayRefused(f"topic {topic} has partitions 0 to {max(there)}, not {unknown[0]}")
    places = {partition: TopicPartition(topic, partition) for partition in there}
    begins = {partition: extent.end if since.word == "latest" else extent.begin for partition, extent in there.items()}
    ends = {partition: extent.end for partition, extent in there.items()}
    if since.at:
        begins |= await _first_since(consumer, places, since.at, ends)
    if since.offsets:
        begins = dict(since.offsets)
    if until.at:
        ends |= await _first_since(consumer, places, until.at, ends)
    ends |= dict(until.offsets)
    for partition, offset in begins.items():
        if not there[partition].holds(offset):
            held = f"{there[partition].begin} to {there[partition].end}"
            raise ReplayRefused(f"{topic}/{partition} holds offsets {held}, not {offset}")
    return {
        places[partition]: Extent(begin, max(begin, min(ends[partition], there[partition].end)))
        for partition, begin in begins.items()
    }


async def _first_since(
    consumer: Any, places: dict[int, TopicPartition], at: float, ends: dict[int, int]
) -> dict[int, int]:
    """The first offset of each partition at or behind a time; its end if there is none."""
    found = await consumer.offsets_for_times({place: int(at * 1_000) for place in places.values()})
    return {
        partition: found[place].offset if found.get(place) is not None else ends[partition]
        for partition, place in places.items()
    }
