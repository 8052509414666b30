"""Who works at the moment, as Kafka sees it; a moment's patience for who has just been stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiokafka.admin import AIOKafkaAdminClient

from bus.worker import GROUP

GONE_SECONDS = (0.2, 0.5, 1.0)


async def members(admin: AIOKafkaAdminClient, prefix: str) -> set[str]:
    """The names of the workers in the group; one that was killed stays for its session time-out."""
    answers = await admin.describe_consumer_groups([prefix + GROUP])
    return {m["client_id"] for answer in answers for group in answer.to_object()["groups"] for m in group["members"]}


async def still_there(look: Callable[[], Awaitable[set[str]]]) -> str:
    """The names of who does not go, by commas; "" if nobody is there, at once or soon."""
    found = await look()
    for pause in GONE_SECONDS:
        if not found:
            break
        await asyncio.sleep(pause)
        found = await look()
    return ", ".join(sorted(found))
