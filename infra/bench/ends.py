"""How the client of this system learns of the ends of runs: from topic `events`, whose records it does not decode.

Decoding every event took 26 us of CPU a step, a sixth of what the worker spends, on the same cores; a client that waits
for an end needs none but that. Format: Kafka protocol guide, "Record Batch" (magic 2); the headers are those of
`bus.batch.event_record`, in its order.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, LeaderNotAvailableError, for_code
from aiokafka.protocol.fetch import FetchRequest

from bus.record_batches import batches

log = logging.getLogger("agent_platform.bench")

WAIT_MILLISECONDS = 200
PARTITION_BYTES_MAX = 1024 * 1024
RETRY_SECONDS = 0.1
START_SECONDS_MAX = 30.0

_LENGTH = rb"[\x00-\xff]{1,2}"
_END = re.compile(
    rb"ce_id" + _LENGTH + rb"([0-9a-f-]{36})/[0-9]+" + _LENGTH + rb"ce_source" + _LENGTH + rb"agent-platform" + _LENGTH
    + rb"ce_type" + _LENGTH + rb"runtime\.run_(completed|failed|cancelled|compensated)"
)  # fmt: skip
_NODE_COMPLETED = re.compile(rb"ce_type" + _LENGTH + rb"runtime\.node_completed")


class Seen(NamedTuple):
    """What one batch of records told: runs with how they ended, and how many node runs have completed."""

    ends: list[tuple[str, str]]
    node_runs: int


def seen(records: bytes) -> Seen:
    """What the body of a record batch tells; it must not be compressed, and the platform's are not."""
    ends = [(run.decode(), how.decode()) for run, how in _END.findall(records)]
    return Seen(ends, len(_NODE_COMPLETED.findall(records)))


class Ends(AIOKafkaConsumer):  # type: ignore[misc]
    """A reader of all `partitions` of one topic from its begin, without a group."""

    def __init__(self, topic: str, partitions: int, bootstrap: str) -> None:
        super().__init__(bootstrap_servers=bootstrap)
        self._topic = topic
        self._places = [TopicPartition(topic, number) for number in range(partitions)]
        self._offsets: dict[int, int] = {}

    async def start(self) -> None:
        """Raises KafkaError, or TimeoutError if the topic does not appear."""
        await super().start()
        self._client.add_topic(self._topic)
        async with asyncio.timeout(START_SECONDS_MAX):
            # A topic that was just made is not known at once, nor all of it.
            while len(self.partitions_for_topic(self._topic) or ()) < len(self._places):
                await self._client.force_metadata_update()
                await asyncio.sleep(RETRY_SECONDS)
            begins: Mapping[TopicPartition, int] = await self.beginning_offsets(self._places)
        self._offsets = {place.partition: begins[place] for place in self._places}

    async def poll(self) -> Iterator[Seen]:
        """What is new in any partition, after WAIT_MILLISECONDS at most."""
        try:
            return self._passed(await self._fetched())
        except KafkaError as error:
            log.info("topic %s cannot be read yet: %s", self._topic, error)
            await self._client.force_metadata_update()
            await asyncio.sleep(RETRY_SECONDS)
            return iter(())

    async def _fetched(self) -> list[tuple[int, bytes]]:
        leaders = {self._client.cluster.leader_for_partition(place) for place in self._places}
        if len(leaders) != 1 or None in leaders:
            raise LeaderNotAvailableError(f"{self._topic} wants one leader, has {leaders}")
        wanted = [(at, offset, PARTITION_BYTES_MAX) for at, offset in self._offsets.items()]
        request = FetchRequest(WAIT_MILLISECONDS, 1, PARTITION_BYTES_MAX * len(wanted), 0, [(self._topic, wanted)])
        response = await self._client.send(leaders.pop(), request)
        found = []
        for _, parts in response.topics:
            for part in parts:
                if part[1]:
                    raise for_code(part[1])(f"{self._topic}/{part[0]}")
                if part[-1]:
                    found.append((part[0], bytes(part[-1])))
        return found

    def _passed(self, fetched: list[tuple[int, bytes]]) -> Iterator[Seen]:
        for partition, data in fetched:
            for batch in batches(data):
                if batch.next_offset > self._offsets[partition]:
                    self._offsets[partition] = batch.next_offset
                    yield seen(batch.body)
