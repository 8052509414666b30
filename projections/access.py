"""What is known about API keys, folded from their events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import assert_never, cast

from infra.db import Moment, Once, TableSpec, Uuid, index, table
from schemas import access as wire
from schemas.decider import Recorded, Rows


@dataclass(frozen=True)
class ApiKey:
    """`secret_sha256` is the hash of the whole key. A deleted key keeps its row with status `deleted`."""

    id: Uuid
    tenant_id: str
    seq: int
    name: Once[str]
    scopes: Once[list[str]]
    secret_sha256: Once[str]
    user_id: Once[str | None]
    status: str
    created_at: Once[Moment]
    updated_at: Moment


API_KEYS = table(ApiKey, "api_key", index("api_key_newest", "tenant_id", "created_at", "id"))
TABLES: tuple[TableSpec, ...] = (API_KEYS,)


def evolve(rows: Rows, recorded: Recorded[wire.AccessEvent]) -> Iterable[ApiKey]:
    """Fold one event of an API key."""
    event = recorded.event
    match event:
        case wire.ApiKeyCreated():
            return [_created(event, recorded)]
        case wire.ApiKeyStatusChanged():
            return [replace(_key(rows, recorded), status=event.status)]
        case wire.ApiKeyDeleted():
            return [replace(_key(rows, recorded), status="deleted")]
        case _:
            assert_never(event)


def _key(rows: Rows, recorded: Recorded[wire.AccessEvent]) -> ApiKey:
    """The key as this event finds it, already at its seq."""
    key = cast(ApiKey, rows.get(ApiKey, recorded.aggregate_id))
    return replace(key, seq=recorded.seq, updated_at=recorded.at)


def _created(event: wire.ApiKeyCreated, recorded: Recorded[wire.AccessEvent]) -> ApiKey:
    return ApiKey(
        id=recorded.aggregate_id,
        tenant_id=recorded.tenant_id,
        seq=recorded.seq,
        name=event.name,
        scopes=list(event.scopes),
        secret_sha256=event.secret_sha256,
        user_id=event.user_id,
        status="active",
        created_at=recorded.at,
        updated_at=recorded.at,
    )
