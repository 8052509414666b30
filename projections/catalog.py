"""What is known about definitions and their versions, folded from their events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import sqlalchemy as sa

from infra.db import Instant, Json, TableSpec, metadata, table_spec, uuid_column
from schemas import catalog as wire
from schemas.messages import JsonObject
from schemas.problems import SpecProblem


@dataclass(frozen=True)
class Definition:
    id: str
    tenant_id: str
    seq: int
    kind: str
    code: str
    name: str
    description: str
    app_id: str | None
    status: str
    versions: int
    latest_published: str | None
    created_at: float
    updated_at: float


@dataclass(frozen=True)
class Version:
    """A version of a definition; `spec` never changes. `problems` are what publishing it would run into."""

    id: str
    definition_id: str
    tenant_id: str
    kind: str
    number: int
    status: str
    spec: JsonObject
    problems: list[SpecProblem]
    checks: JsonObject
    description: str
    created_at: float
    published_at: float


DEFINITION_TABLE = sa.Table(
    "definition",
    metadata,
    uuid_column("id", primary_key=True),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("app_id", sa.Text),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("versions", sa.Integer, nullable=False),
    uuid_column("latest_published"),
    sa.Column("created_at", Instant),
    sa.Column("updated_at", Instant),
)
VERSION_TABLE = sa.Table(
    "definition_version",
    metadata,
    uuid_column("id", primary_key=True),
    uuid_column("definition_id", nullable=False),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("spec", Json),
    sa.Column("problems", Json),
    sa.Column("checks", Json),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("created_at", Instant),
    sa.Column("published_at", Instant),
)
DEFINITIONS = table_spec(
    DEFINITION_TABLE,
    Definition,
    mutable=["seq", "name", "description", "status", "versions", "latest_published", "updated_at"],
)
VERSIONS = table_spec(
    VERSION_TABLE,
    Version,
    mutable=("status", "problems", "checks", "published_at"),
    parent="definition_id",
    live=lambda version: False,
    live_sql="false",
)
TABLES: tuple[TableSpec, ...] = (DEFINITIONS, VERSIONS)


def evolve(rows: Any, recorded: Any) -> Iterable[Any]:
    """Fold one event of a definition: the rows it changes, the header always among them."""
    event = recorded.event
    if isinstance(event, wire.DefinitionCreated):
        return [_created(event, recorded)]
    head = replace(
        cast(Definition, rows.get(Definition, recorded.aggregate_id)),
        seq=recorded.seq,
        updated_at=recorded.at,
    )
    match event:
        case wire.DefinitionChanged():
            return [
                replace(
                    head,
                    name=head.name if event.name is None else event.name,
                    description=head.description if event.description is None else event.description,
                    status=head.status if event.status is None else event.status,
                )
            ]
        case wire.VersionCreated():
            version = Version(
                id=event.version_id,
                definition_id=head.id,
                tenant_id=head.tenant_id,
                kind=event.kind,
                number=event.number,
                status="draft",
                spec=event.spec,
                problems=[],
                checks={},
                description=event.description,
                created_at=recorded.at,
                published_at=0.0,
            )
            return [replace(head, versions=event.number), version]
        case wire.CheckStarted():
            version = cast(Version, rows.get(Version, event.version_id))
            check = {"command_id": event.command_id, "publish": event.publish}
            return [head, replace(version, checks={**version.checks, event.check_id: check})]
        case wire.VersionChecked():
            version = cast(Version, rows.get(Version, event.version_id))
            return [head, replace(version, problems=event.problems, checks=_without(version, event.check_id))]
        case wire.CheckFailed():
            version = cast(Version, rows.get(Version, event.version_id))
            return [head, replace(version, checks=_without(version, event.check_id))]
        case wire.VersionPublished():
            version = cast(Version, rows.get(Version, event.version_id))
            return [
                replace(head, latest_published=version.id),
                replace(version, status="published", published_at=recorded.at),
            ]
        case _:
            raise TypeError(f"{event.type} is not an event of a definition")


def _without(version: Version, check_id: str) -> JsonObject:
    return {id: check for id, check in version.checks.items() if id != check_id}


def _created(event: wire.DefinitionCreated, recorded: Any) -> Definition:
    return Definition(
        id=recorded.aggregate_id,
        tenant_id=recorded.tenant_id,
        seq=recorded.seq,
        kind=event.kind,
        code=event.code,
        name=event.name,
        description=event.description,
        app_id=event.app_id,
        status="active",
        versions=0,
        latest_published=None,
        created_at=recorded.at,
        updated_at=recorded.at,
    )
