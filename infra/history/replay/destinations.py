"""Where replayed records go: a file of JSON lines, another topic, a function of the user's, a terminal."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from bus.replay import TopicMissing
from infra.escaping import escaped_json
from infra.history.replay.cloud_events import cloud_event, line
from infra.history.replay.places import ReplayRefused
from schemas.messages import JsonObject
from schemas.topics import BROKER_MESSAGE_BYTES_MAX, TOPICS


class HandlerFailed(Exception):
    """The function raised for a record; what came before it is done and, with a group, remembered."""

    def __init__(self, place: str, error: BaseException) -> None:
        super().__init__(f"{place}: {type(error).__name__}: {error}")


class Destination(Protocol):
    """Life: `start`, any number of `take`, `stop`. `take` returns once the records are safe."""

    async def start(self, *, resumed: bool) -> None:
        """`resumed`: a group goes on behind records that were taken before. Raises ReplayRefused, TopicMissing."""

    async def take(self, records: Sequence[Any]) -> int:
        """Take one partition's records in order. How many: all of them, or fewer if the next one `failed`."""

    async def stop(self) -> None: ...

    @property
    def failed(self) -> Exception | None:
        """Why the record behind the last one taken was not taken."""


def event_of(record: Any) -> JsonObject:
    """A record as a CloudEvent, with its place on Kafka as extension attributes."""
    event = cloud_event(record.headers, record.value, place_of(record))
    data = {name: event.pop(name) for name in ("data", "data_base64") if name in event}
    return event | {"kafkapartition": record.partition, "kafkaoffset": record.offset} | data


def place_of(record: Any) -> str:
    return f"{record.topic}/{record.partition}@{record.offset}"


def open_file(path: Path, *, resumed: bool = False) -> BinaryIO:
    """To be written to. Raises ReplayRefused for one that holds something already, unless it is resumed."""
    file = path.open("ab")
    if not resumed and os.fstat(file.fileno()).st_size:
        file.close()
        raise ReplayRefused(f"{path} is there and not empty: name another file, or remove it")
    return file


class FileDestination:
    """JSON lines of CloudEvents; `-` is standard output. A resumed group appends; else a file that holds something is
    refused.
    """

    failed = None

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    async def start(self, *, resumed: bool) -> None:
        if self._path == "-":
            self._file = sys.stdout.buffer
        else:
            self._file = await asyncio.to_thread(open_file, Path(self._path), resumed=resumed)

    async def take(self, records: Sequence[Any]) -> int:
        assert self._file is not None, "started"
        self._file.writelines(line(event_of(record)) for record in records)
        self._file.flush()
        if self._path != "-":
            await asyncio.to_thread(os.fsync, self._file.fileno())
        return len(records)

    async def stop(self) -> None:
        if self._file is not None and self._path != "-":
            self._file.close()


class TopicDestination:
    """Another topic: same key, value, headers and time. Topics of the platform are refused: nothing may act twice."""

    failed = None

    def __init__(self, bootstrap: str, prefix: str, topic: str, source: str) -> None:
        ours = {name for each in TOPICS for name in (each.name, prefix + each.name)}
        if topic in ours:
            raise ReplayRefused(f"{topic} is a topic of the platform: replaying into it would act again")
        if topic == source:
            raise ReplayRefused(f"{topic} is the topic that is read")
        self._bootstrap = bootstrap
        self._topic = topic
        self._producer: AIOKafkaProducer | None = None

    async def start(self, *, resumed: bool) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        await admin.start()
        try:
            if self._topic not in await admin.list_topics():  # Asking for its partitions might make it.
                raise TopicMissing(f"there is no topic {self._topic}")
        finally:
            await admin.close()
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap, enable_idempotence=True, acks="all", linger_ms=2,
            max_request_size=BROKER_MESSAGE_BYTES_MAX,
        )  # fmt: skip
        await self._producer.start()

    async def take(self, records: Sequence[Any]) -> int:
        assert self._producer is not None
        sent = [
            await self._producer.send(
                self._topic, record.value, key=record.key, headers=list(record.headers), timestamp_ms=record.timestamp
            )
            for record in records
        ]
        await asyncio.gather(*sent)
        return len(records)

    async def stop(self) -> None:
        if self._producer is not None:
            await self._producer.stop()


class HandlerDestination:
    """A function `handle(event)`, async or not, that gets one CloudEvent as a dict; what it returns is dropped."""

    def __init__(self, handle: Callable[[JsonObject], Any]) -> None:
        self._handle = handle
        self._failed: Exception | None = None

    @classmethod
    def named(cls, name: str) -> HandlerDestination:
        """`package.module:function`, looked for in the working folder too. Raises ReplayRefused."""
        module_name, _, function_name = name.partition(":")
        if not module_name or not function_name:
            raise ReplayRefused(f"{name!r} is no handler; write package.module:function")
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            handle = getattr(importlib.import_module(module_name), function_name)
        except (ImportError, AttributeError) as error:
            raise ReplayRefused(f"handler {name} cannot be loaded: {error}") from None
        if not callable(handle):
            raise ReplayRefused(f"handler {name} is no function")
        return cls(handle)

    @property
    def failed(self) -> Exception | None:
        return self._failed

    async def start(self, *, resumed: bool) -> None:
        self._failed = None

    async def take(self, records: Sequence[Any]) -> int:
        for count, record in enumerate(records):
            try:
                result = self._handle(event_of(record))
                if inspect.isawaitable(result):
                    await result
            except Exception as error:
                self._failed = HandlerFailed(place_of(record), error)
                self._failed.__cause__ = error
                return count
        return len(records)

    async def stop(self) -> None:
        """Nothing is held."""


class Printed:
    """One line for each event: time, tenant, type, aggregate and seq, then what it says in short."""

    failed = None

    def __init__(self, write: Callable[[str], None], *, as_json: bool = False) -> None:
        self._write = write
        self._as_json = as_json

    async def start(self, *, resumed: bool) -> None:
        """Nothing to open."""

    async def take(self, records: Sequence[Any]) -> int:
        for record in records:
            event = event_of(record)
            self._write(escaped_json(event) if self._as_json else readable(event))
        return len(records)

    async def stop(self) -> None:
        """Nothing to close."""


_SHORT_CHARACTERS_MAX = 100


def readable(event: JsonObject) -> str:
    data = event.get("data")
    shown = orjson.dumps(data).decode() if data else event.get("data_base64", "")
    if len(shown) > _SHORT_CHARACTERS_MAX:
        shown = shown[: _SHORT_CHARACTERS_MAX - 1] + "…"
    time = event.get("time", "")[:23].rstrip("Z")
    subject = f"{event.get('subject', event['id'])} #{event.get('sequence', '?')}"
    return f"{time:<23}  {event.get('tenantid', '-')}  {event['type']:<28}  {subject:<42} {shown}".rstrip()
