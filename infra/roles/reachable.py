"""Waiting for Postgres and Kafka at the start of a role: dying of their absence only means being started again."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import asyncpg
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from infra.settings import Settings

log = logging.getLogger("agent_platform")

PAUSE_SECONDS_MIN = 0.1
PAUSE_SECONDS_MAX = 2.0
ANSWER_SECONDS_MAX = 5.0
MAY_PASS = (
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.TooManyConnectionsError,
    KafkaError,
    OSError,
    TimeoutError,
)
"""Whatever else is wrong, a password or a name, waiting does not mend."""


async def until_reachable(settings: Settings, stop: asyncio.Event) -> bool:
    """True once both servers answer, false if `stop` is set before. Raises what does not pass by itself."""
    pause = PAUSE_SECONDS_MIN
    while not stop.is_set():
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await _ask_postgres(settings.required_database_url)
                await _ask_kafka(settings.required_kafka_bootstrap)
        except MAY_PASS as error:
            log.warning("waiting for Postgres and Kafka: %s: %s", type(error).__name__, error)
        else:
            return True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause)
        pause = min(pause * 2, PAUSE_SECONDS_MAX)
    return False


async def _ask_postgres(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.close()


async def _ask_kafka(bootstrap: str) -> None:
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    try:
        await client.bootstrap()
    finally:
        await client.close()
