"""Waiting for Postgres and Kafka at the start of a role: dying of their absence only means being started again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

import asyncpg
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from infra.settings import Settings

log = logging.getLogger("agent_platform")

PAUSE_SECONDS_MIN = 0.1
PAUSE_SECONDS_MAX = 2.0
SAY_SECONDS = 10.0
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
    """True once both servers answer, false if `stop` is set before. Raises what does not pass by itself.

    It may take any time; what is waited for is logged when it changes, and every SAY_SECONDS, with how long it has.
    """
    url, bootstrap = settings.required_database_url, settings.required_kafka_bootstrap
    asked: list[tuple[str, Callable[[], Awaitable[None]]]] = [
        ("Postgres", lambda: _ask_postgres(url)),
        (f"Kafka at {bootstrap}", lambda: _ask_kafka(bootstrap)),
    ]
    waiting = _Waiting()
    pause = PAUSE_SECONDS_MIN
    while asked and not stop.is_set():
        name, ask = asked[0]
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await ask()
        except MAY_PASS as error:
            waiting.say(name, str(error) or type(error).__name__)
        else:
            del asked[0]
            continue
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause)
        pause = min(pause * 2, PAUSE_SECONDS_MAX)
    return not asked


class _Waiting:
    """Says what is waited for, and since when."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._name = ""
        self._said_at = 0.0

    def say(self, name: str, why: str) -> None:
        now = time.monotonic()
        if name == self._name and now - self._said_at < SAY_SECONDS:
            return
        self._name, self._said_at = name, now
        log.warning("waiting for %s, for %.0f s now: %s", name, now - self._began, why)


async def _ask_postgres(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.close()


async def _ask_kafka(bootstrap: str) -> None:
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    try:
        await client.bootstrap()
    finally:
        await client.close()
