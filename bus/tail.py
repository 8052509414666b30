"""A topic read from its end on, for the records whose keys somebody awaits."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Container
from typing import Any

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from bus.consumer import COMMITTED, fetch_request, fetched, latest, leader_of
from bus.record_batches import Keyed, keyed

WAIT_MS = 500
"""So long the broker holds a fetch that finds nothing."""
CONNECT_SECONDS_MAX = 5.0
METADATA_SECONDS_MAX = 30.0


class TopicTail:
    """All partitions of a topic without a consumer group; while nobody calls `read` nothing is fetched.

    After an error, whoever uses it closes it and begins again with `to_end`: what lies between is not read. One
    task's at a time. Raises KafkaError, OSError and TimeoutError when Kafka does not answer.
    """

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._client: AIOKafkaClient | None = None
        self._next: dict[TopicPartition, int] = {}
        self._fetches: dict[asyncio.Task[Any], int] = {}

    async def to_end(self) -> None:
        """Stand where the partitions end: what is written after this call has begun will be read."""
        await self._cancel_fetches()
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            client = await self._connected()
            self._next = await latest(client, self._places(client), COMMITTED)

    async def read(self, keys: Container[bytes]) -> list[Keyed]:
        """Those of the next records that have one of these keys when they arrive; each key's in order.

        Returns when there are any records, or after a while.
        """
        client = self._client
        if client is None or self._places(client) != set(self._next):
            raise UnknownTopicOrPartitionError(f"{self._topic} is another one now")
        self._fetch(client)
        done, _ = await asyncio.wait(self._fetches, return_when=asyncio.FIRST_COMPLETED)
        found: list[Keyed] = []
        for task in done:
            del self._fetches[task]
            for place, data, aborted in fetched(task.result()):
                records, self._next[place] = keyed(place, data, self._next[place], keys, aborted)
                found += records
        return found

    async def close(self) -> None:
        await self._cancel_fetches()
        if self._client is not None:
            client, self._client = self._client, None
            with contextlib.suppress(KafkaError, OSError):
                await client.close()

    async def _connected(self) -> AIOKafkaClient:
        if self._client is None:
            client = AIOKafkaClient(
                bootstrap_servers=self._bootstrap,
                request_timeout_ms=int(CONNECT_SECONDS_MAX * 1_000),
                metadata_max_age_ms=int(METADATA_SECONDS_MAX * 1_000),
                retry_backoff_ms=100,
            )
            try:
                await client.bootstrap()
                await client.add_topic(self._topic)
            except BaseException:
                await client.close()
                raise
            self._client = client
        return self._client

    def _places(self, client: AIOKafkaClient) -> set[TopicPartition]:
        partitions = client.cluster.partitions_for_topic(self._topic)
        if not partitions:
            raise UnknownTopicOrPartitionError(self._topic)
        return {TopicPartition(self._topic, partition) for partition in partitions}

    def _fetch(self, client: AIOKafkaClient) -> None:
        """One fetch from each leader that is not asked already."""
        starts: dict[int, dict[TopicPartition, int]] = defaultdict(dict)
        for place, offset in self._next.items():
            starts[leader_of(client, place)][place] = offset
        for leader in starts.keys() - self._fetches.values():
            sending = client.send(leader, fetch_request(starts[leader], WAIT_MS))
            self._fetches[asyncio.ensure_future(sending)] = leader

    async def _cancel_fetches(self) -> None:
        fetches, self._fetches = self._fetches, {}
        for task in fetches:
            task.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)
