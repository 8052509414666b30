"""Dead letters: how a refused record is kept, listed, sent again, dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import asyncpg
import orjson

from bus.lanes import INGRESS_BASE
from bus.records import rfc3339
from bus.store import DeadLetter, Incoming, Log, Out
from schemas import registry
from schemas.envelope import Envelope, Headers, Malformed, decode_headers, header
from schemas.messages import PLATFORM_NAMESPACE, derive
from schemas.topics import COMMANDS, DEAD_LETTER_BODY_BYTES_MAX, INGRESS, partition_of

HEADERS_MAX = 64
NOT_REPEATED = frozenset({"ce_time", "ce_redrive", "ce_replypartition"})
"""Headers that are not those of the first try: nobody waits for the reply any more."""


class LetterNotFound(Exception):
    """There is no dead letter of this id."""


class NotRetriable(Exception):
    """A dead letter that cannot be sent again, and why."""


# --- keeping -------------------------------------------------------------------------------------------------


def lane_namespace(lane: int) -> str:
    return derive(PLATFORM_NAMESPACE, f"lane:{lane}")


def letter_of(record: Incoming, lane: int, code: str, detail: str, at: float) -> DeadLetter:
    """What is kept of a record that lane `lane` refused at database time `at`: all text storable, body cut."""
    body = record.body or b""
    found = lenient(record)
    ingress = lane >= INGRESS_BASE
    return DeadLetter(
        id=derive(lane_namespace(lane), f"{record.offset}:{found.id}"),
        tenant_id=found.tenant_id,
        topic=INGRESS if ingress else COMMANDS,
        partition=lane - INGRESS_BASE if ingress else lane,
        offset=record.offset,
        type=found.type,
        key=text(record.key)[:256],
        message_id=found.id,
        code=code,
        detail=detail[:1_000].replace("\x00", ""),
        headers=orjson.dumps(
            [(text(name.encode())[:128], text(value)[:1_024]) for name, value in record.headers][:HEADERS_MAX]
        ),
        body=body[:DEAD_LETTER_BODY_BYTES_MAX],
        body_bytes=len(body),
        body_sha256=hashlib.sha256(body).hexdigest(),
        at=at,
    )


def lenient(record: Incoming) -> Envelope:
    """As much of the envelope as can be read."""
    found = {name: text(value)[:128] for name, value in record.headers if name in ("ce_id", "ce_type", "ce_tenantid")}
    return Envelope(found.get("ce_id", ""), found.get("ce_type", ""), found.get("ce_tenantid", ""))


def text(value: bytes | None) -> str:
    """Bytes as text that Postgres can store."""
    return (value or b"").decode("utf-8", "replace").replace("\x00", "\ufffd")


# --- what became of them -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Letter:
    """A row of `dead_letter`. `status`: dead, retried or dropped."""

    id: str
    tenant_id: str
    topic: str
    partition: int
    offset: int
    type: str
    key: str
    message_id: str
    code: str
    detail: str
    headers: Headers
    body: bytes
    body_bytes: int
    body_sha256: str
    status: str
    redrives: int
    at: float

    @property
    def whole(self) -> bool:
        return len(self.body) == self.body_bytes


_COLUMNS = ", ".join(f'"{field.name}"' for field in fields(Letter))
_ONE = f"SELECT {_COLUMNS} FROM dead_letter WHERE id = $1"
_PAGE = f"""SELECT {_COLUMNS} FROM dead_letter
WHERE ($1 = '' OR status = $1) AND ($2 = '' OR code = $2) AND ($3 = '' OR tenant_id = $3)
ORDER BY at DESC, id LIMIT $4"""
_MARK = "UPDATE dead_letter SET status = $2, redrives = redrives + $3 WHERE id = $1"


def _letter(row: Any) -> Letter:
    values = dict(row)
    headers = [(name, value.encode()) for name, value in orjson.loads(row["headers"])]
    return Letter(**values | {"id": str(row["id"]), "headers": headers})


async def page(
    connection: asyncpg.Connection, *, status: str = "dead", code: str = "", tenant_id: str = "", limit: int = 50
) -> list[Letter]:
    """The newest letters first; an empty filter lets all through."""
    return [_letter(row) for row in await connection.fetch(_PAGE, status, code, tenant_id, limit)]


async def find(connection: asyncpg.Connection, id: str) -> Letter:
    """Raises LetterNotFound."""
    row = await connection.fetchrow(_ONE, id)
    if row is None:
        raise LetterNotFound(f"there is no dead letter {id}")
    return _letter(row)


async def retry(connection: asyncpg.Connection, out: Log, id: str, commands_partitions: int) -> Letter:
    """Send a letter's record to its aggregate's lane once more, under the same id and the next re-drive number.

    The letter is `retried` when Kafka has acknowledged. If this ends in between, trying again is safe: the inbox
    knows the number. Raises LetterNotFound, NotRetriable or SendFailed.
    """
    async with connection.transaction():
        letter = await _locked(connection, id)
        at = float(await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8"))
        await out.publish([again(letter, commands_partitions, at)])
        await connection.execute(_MARK, id, "retried", 1)
    return await find(connection, id)


async def drop(connection: asyncpg.Connection, id: str) -> Letter:
    """Decide that a letter is not worth another try. Raises LetterNotFound or NotRetriable."""
    async with connection.transaction():
        await _locked(connection, id)
        await connection.execute(_MARK, id, "dropped", 0)
    return await find(connection, id)


async def _locked(connection: asyncpg.Connection, id: str) -> Letter:
    row = await connection.fetchrow(f"{_ONE} FOR UPDATE", id)
    if row is None:
        raise LetterNotFound(f"there is no dead letter {id}")
    if row["status"] != "dead":
        raise NotRetriable(f"dead letter {id} is {row['status']} already")
    return _letter(row)


def again(letter: Letter, commands_partitions: int, at: float) -> Out:
    """The record that tries a letter again. Raises NotRetriable.

    One of `ingress` goes back there, so that whoever may not publish gains nothing by it; it has never been a
    command, so it needs no re-drive number.
    """
    if not letter.whole:
        raise NotRetriable(f"only {len(letter.body)} of {letter.body_bytes} bytes of its body were kept")
    headers = [(name, value) for name, value in letter.headers if name not in NOT_REPEATED]
    headers.append(("ce_time", rfc3339(at).encode()))
    if header(letter.headers, "ce_answerto"):
        raise NotRetriable("whoever awaited it has been told that it failed")
    if letter.topic == INGRESS:
        return Out(-1, 0, INGRESS, letter.partition, letter.key, headers, letter.body, letter.tenant_id)
    try:
        envelope = decode_headers(letter.headers)
        command = registry.decode_command(envelope.type, letter.body)
    except Malformed as error:
        raise NotRetriable(f"it is no command: {error}") from None
    headers.append(("ce_redrive", b"%d" % (max(envelope.redrive, letter.redrives) + 1)))
    key = command.aggregate_id(envelope.tenant_id, envelope.id)
    partition = partition_of(key, commands_partitions)
    return Out(-1, 0, COMMANDS, partition, key, headers, letter.body, letter.tenant_id)


def shown(letter: Letter, *, with_body: bool = False) -> dict[str, Any]:
    """A letter for people and programs; the body as text where it is text."""
    names: Sequence[str] = [field.name for field in fields(Letter) if field.name not in ("headers", "body", "at")]
    document: dict[str, Any] = {name: getattr(letter, name) for name in names}
    document |= {"at": rfc3339(letter.at), "retriable": letter.status == "dead" and letter.whole}
    if with_body:
        document["headers"] = [(name, text(value)) for name, value in letter.headers]
        document["body"] = text(letter.body)
    return document
