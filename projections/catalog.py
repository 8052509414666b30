"""What is known about definitions and their versions, folded from their events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import assert_never, cast

from infra.db import Moment, Once, TableSpec, Uuid, index, table
from schemas import catalog as wire
from schemas.decider import Recorded, Rows
from schemas.messages import JsonObject
from schemas.problems import SpecProblem


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
    problems: list[SpecProblem]
    checks: JsonObject
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
    live=lambda version: False,
    live_sql="false",
)
TABLES: tuple[TableSpec, ...] = (DEFINITIONS, VERSIONS)


def evolve(rows: Rows, recorded: Recorded[wire.CatalogEvent]) -> Iterable[Definition | Version]:
    """Fold one event of a definition: the rows it changes, the header always among them."""
    event = recorded.event
    match event:
        case wire.DefinitionCreated():
            return [_created(event, recorded)]
        case wire.DefinitionChanged():
            return [_changed(_head(rows, recorded), event)]
        case wire.VersionCreated():
            head = replace(_head(rows, recorded), versions=event.number)
            return [head, _version(head, event, recorded.at)]
        case wire.CheckStarted():
            version = _known(rows, event.version_id)
            check = {"command_id": event.command_id, "publish": event.publish, "expires_at": event.expires_at}
            return [_head(rows, recorded), replace(version, checks={**version.checks, event.check_id: check})]
        case wire.VersionChecked():
            version = _known(rows, event.version_id)
            checks = _without(version, event.check_id)
            return [_head(rows, recorded), replace(version, problems=event.problems, checks=checks)]
        case wire.CheckFailed():
            version = _known(rows, event.version_id)
            return [_head(rows, recorded), replace(version, checks=_without(version, event.check_id))]
        case wire.VersionPublished():
            version = _known(rows, event.version_id)
            return [
                replace(_head(rows, recorded), latest_published=version.id),
                replace(version, status="published", published_at=recorded.at),
            ]
        case _:
            assert_never(event)


def _head(rows: Rows, recorded: Recorded[wire.CatalogEvent]) -> Definition:
    """The definition as this event finds it, already at its seq."""
    head = cast(Definition, rows.get(Definition, recorded.aggregate_id))
    return replace(head, seq=recorded.seq, updated_at=recorded.at)


def _changed(head: Definition, event: wire.DefinitionChanged) -> Definition:
    return replace(
        head,
        name=head.name if event.name is None else event.name,
        description=head.description if event.description is None else event.description,
        status=head.status if event.status is None else event.status,
    )


def _version(head: Definition, event: wire.VersionCreated, at: float) -> Version:
    return Version(
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
        created_at=at,
        published_at=0.0,
    )


def _known(rows: Rows, version_id: str) -> Version:
    return cast(Version, rows.get(Version, version_id))


def _without(version: Version, check_id: str) -> JsonObject:
    return {id: check for id, check in version.checks.items() if id != check_id}


def _created(event: wire.DefinitionCreated, recorded: Recorded[wire.CatalogEvent]) -> Definition:
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
