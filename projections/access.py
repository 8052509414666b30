"""What is known about API keys, folded from their events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import sqlalchemy as sa

from infra.db import Instant, Json, TableSpec, metadata, table_spec, uuid_column
from schemas import access as wire


@dataclass(frozen=True)
class ApiKey:
    """`secret_sha256` is the hash of the whole key. A deleted key keeps its row with status `deleted`."""

    id: str
    tenant_id: str
    seq: int
    name: str
    scopes: list[str]
    secret_sha256: str
    user_id: str | None
    status: str
    created_at: float
    updated_at: float


API_KEY_TABLE = sa.Table(
    "api_key",
    metadata,
    uuid_column("id", primary_key=True),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("scopes", Json),
    sa.Column("secret_sha256", sa.Text, nullable=False),
    sa.Column("user_id", sa.Text),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("created_at", Instant),
    sa.Column("updated_at", Instant),
)
API_KEYS = table_spec(API_KEY_TABLE, ApiKey, mutable=("seq", "status", "updated_at"))
TABLES: tuple[TableSpec, ...] = (API_KEYS,)


def evolve(rows: Any, recorded: Any) -> Iterable[Any]:
    """Fold one event of an API key."""
    event = recorded.event
    if isinstance(event, wire.ApiKeyCreated):
        return [
            ApiKey(
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
        ]
    key = cast(ApiKey, rows.get(ApiKey, recorded.aggregate_id))
    key = replace(key, seq=recorded.seq, updated_at=recorded.at)
    match event:
        case wire.ApiKeyStatusChanged():
            return [replace(key, status=event.status)]
        case wire.ApiKeyDeleted():
            return [replace(key, status="deleted")]
        case _:
            raise TypeError(f"{event.type} is not an event of an API key")
