"""Hints that steps wait: who may execute them looks at once instead of at its next turn."""

from __future__ import annotations

from collections.abc import Collection

from aiokafka import AIOKafkaConsumer

from handlers.steps.executor import Executor
from infra.settings import Settings
from schemas.envelope import header
from schemas.topics import STEP_KIND_HEADER, STEPS


class Hints:
    """Wakes an executor when a hint of one of its kinds arrives. Every executor hears every hint.

    Also one that its publisher aborts: nothing is decided by it, and nobody's transaction may keep an executor asleep.
    """

    def __init__(self, settings: Settings, executor: Executor, kinds: Collection[str]) -> None:
        self._settings = settings
        self._executor = executor
        self._kinds = {kind.encode() for kind in kinds}

    async def run(self) -> None:
        """Until cancelled. Raises KafkaError if Kafka cannot be reached at the start."""
        consumer = AIOKafkaConsumer(
            self._settings.topic_prefix + STEPS,
            bootstrap_servers=self._settings.required_kafka_bootstrap,
            group_id=None,
            auto_offset_reset="latest",
        )
        await consumer.start()
        try:
            while True:
                fetched = await consumer.getmany(timeout_ms=1_000, max_records=500)
                if any(
                    header(each.headers, STEP_KIND_HEADER) in self._kinds for part in fetched.values() for each in part
                ):
                    self._executor.wake()
        finally:
            await consumer.stop()
