"""What is known about definitions and their versions, folded from their events; and how they are shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

from infra.db import Moment, Once, TableSpec, Uuid, index, instant, table
from schemas import catalog as wire
from schemas.messages import JsonObject


@dataclass(frozen=True)
class Definition:
    id: Uuid
    tenant_id: str
    seq: int
    kind: Once[str]
    code: Once[str]
    name: str
    description: str
    app_id: Once[str | None]
    status: str
    versions: int
    latest_published: Uuid | None
    created_at: Once[Moment]
    updated_at: Moment


@dataclass(frozen=True)
class Version:
    """A version of a definition; `spec` never changes. `problems` are what publishing it would run into."""

    id: Uuid
    definition_id: Uuid
    tenant_id: str
    kind: Once[str]
    number: Once[int]
    status: str
    spec: Once[JsonObject]
    problems: Once[list[JsonObject]]
    description: Once[str]
    created_at: Once[Moment]
    published_at: Moment


DEFINITIONS = table(Definition, "definition", index("definition_newest", "tenant_id", "kind", "created_at", "id"))
VERSIONS = table(
    Version,
    "definition_version",
    index("definition_version_newest", "tenant_id", "kind", "created_at", "id"),
    index("definition_version_of", "definition_id"),
    parent="definition_id",
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
                problems=event.problems,
                description=event.description,
                created_at=recorded.at,
                published_at=0.0,
            )
            return [replace(head, versions=event.number), version]
        case wire.VersionPublished():
            version = cast(Version, rows.get(Version, event.version_id))
            return [
                replace(head, latest_published=version.id),
                replace(version, status="published", published_at=recorded.at),
            ]
        case _:
            raise TypeError(f"{event.type} is not an event of a definition")


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


def shown_definition(head: Definition) -> JsonObject:
    """An app or workflow as the API shows it."""
    shown: JsonObject = {
        "id": head.id,
        "tenant_id": head.tenant_id,
        "code": head.code,
        "name": head.name,
        "description": head.description,
        "status": head.status,
        "latest_published_version_id": head.latest_published,
        "created_at": instant(head.created_at),
        "updated_at": instant(head.updated_at),
    }
    return shown | {"app_id": head.app_id} if head.kind == "workflow" else shown


def shown_version(version: Version) -> JsonObject:
    """A workflow version as the API shows it."""
    return {
        "id": version.id,
        "tenant_id": version.tenant_id,
        "workflow_id": version.definition_id,
        "version": version.number,
        "status": version.status,
        "dsl_json": version.spec,
        "problems": version.problems,
        "description": version.description,
        "created_at": instant(version.created_at),
        "published_at": instant(version.published_at),
    }
