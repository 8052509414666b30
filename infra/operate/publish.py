"""Publishing commands to `ingress` as any outside program does, and waiting for what became of them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import orjson

from bus.producer import Producer
from bus.store import Out
from handlers.ingress import IngressRules
from infra.db import session
from infra.settings import Settings
from schemas import registry
from schemas.envelope import Envelope, Malformed, decode_headers
from schemas.messages import derive, natural_id
from schemas.topics import INGRESS, MESSAGE_BYTES_MAX, partition_of

POLL_SECONDS = 0.05
_OUTCOMES = """SELECT command_id::text AS id, status, body FROM command_outcome
WHERE status <> 'pending' AND command_id = ANY($1::uuid[])"""
_LETTERS = """SELECT message_id, code, detail FROM dead_letter
WHERE topic = 'ingress' AND message_id = ANY($1::text[]) AND at >= $2"""


@dataclass(frozen=True, slots=True)
class Publication:
    """One record for `ingress`. `id` is its `ce_id`: sending the same again changes nothing."""

    type: str
    body: bytes
    id: str
    tenant_id: str
    key: str = ""
    actor: str = ""

    @property
    def command_id(self) -> str:
        """The id that the command gets, so that no tenant can name another's."""
        return derive(natural_id(self.tenant_id, "command"), self.id)

    def record(self, partitions: int) -> Out:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        envelope = Envelope(self.id, self.type, self.tenant_id, time=now, actor=self.actor)
        partition = partition_of(self.key or self.id, partitions)
        return Out(-1, 0, INGRESS, partition, self.key, envelope.headers(), self.body, self.tenant_id)


def publications(
    name: str, body: bytes, *, id: str = "", tenant_id: str = "public", key: str = "", actor: str = "", count: int = 1
) -> list[Publication]:
    """`count` records; an id given is numbered if there are several. Raises Malformed for what would be refused."""
    command = registry.COMMANDS.get(name)
    if command is None or not command.public:
        known = ", ".join(sorted(name for name, kind in registry.COMMANDS.items() if kind.public))
        raise Malformed("unknown_type", f"no public command is called {name!r}; there are {known}")
    if len(body) > MESSAGE_BYTES_MAX:
        raise Malformed("message_too_large", f"a message is at most {MESSAGE_BYTES_MAX} bytes")
    ids = [id or str(uuid.uuid4())] if count == 1 else [f"{id or uuid.uuid4()}-{n}" for n in range(1, count + 1)]
    found = [Publication(name, body, each, tenant_id, key, actor) for each in ids]
    may_publish = IngressRules(auth_required=False)  # Whether anybody may is for the platform to say.
    may_publish(decode_headers(found[-1].record(1).headers), body)
    return found


async def publish(settings: Settings, records: Sequence[Publication]) -> None:
    """Returns when Kafka has acknowledged all. Raises SendFailed or BusUnavailable."""
    producer = Producer(settings.required_kafka_bootstrap, prefix=settings.topic_prefix)
    try:
        partitions = await producer.partitions(INGRESS)
        await producer.publish([record.record(partitions) for record in records])
    finally:
        await producer.stop()


async def database_time(settings: Settings) -> float:
    connection = await _connect(settings)
    try:
        return float(await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8"))
    finally:
        await connection.close()


async def outcomes(
    settings: Settings, records: Sequence[Publication], *, since: float, seconds: float
) -> list[dict[str, Any]]:
    """What became of each, in order: its outcome, `refused` with the reason of its dead letter, or `pending`.

    `since`: database time before they were sent, so that a dead letter of an earlier try does not count.
    """
    known: dict[str, dict[str, Any]] = {}
    connection = await _connect(settings)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    try:
        while True:
            known |= await _look(connection, [each for each in records if each.id not in known], since)
            if len(known) == len(records) or loop.time() >= deadline:
                break
            await asyncio.sleep(POLL_SECONDS)
    finally:
        await connection.close()
    unknown: dict[str, Any] = {"status": "pending"}
    return [{"id": each.id, "command_id": each.command_id, **known.get(each.id, unknown)} for each in records]


async def _look(
    connection: asyncpg.Connection, records: Sequence[Publication], since: float
) -> dict[str, dict[str, Any]]:
    ids = {each.command_id: each.id for each in records}
    found = {
        ids[row["id"]]: {"status": row["status"], "body": orjson.loads(row["body"])}
        for row in await connection.fetch(_OUTCOMES, list(ids))
    }
    for row in await connection.fetch(_LETTERS, list(ids.values()), since):
        found[row["message_id"]] = {"status": "refused", "body": {"code": row["code"], "detail": row["detail"]}}
    return found


async def _connect(settings: Settings) -> asyncpg.Connection:
    url = settings.required_database_url
    return await asyncpg.connect(url, server_settings=session(url))
