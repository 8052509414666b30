"""Definitions: create and change one, add versions, publish them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from projections import catalog as known
from projections.catalog import Definition, Version, shown_definition, shown_version
from schemas.catalog import (
    EVENTS,
    ChangeDefinition,
    CreateDefinition,
    CreateVersion,
    DefinitionChanged,
    DefinitionCreated,
    PublishVersion,
    VersionCreated,
    VersionPublished,
)
from schemas.decider import Domain, Meta, Rows
from schemas.messages import Command, JsonObject, Rejected, derive
from schemas.problems import summary
from schemas.workflow import dsl


def version_id(message_id: str) -> str:
    """The id of the version that this message makes."""
    return derive(message_id, "version")


def create(command: CreateDefinition, rows: Rows, meta: Meta) -> Iterator[DefinitionCreated]:
    head = rows.get(Definition, meta.aggregate_id)
    if head is not None:
        raise Rejected(
            "definition_exists",
            f"the {command.kind} {command.code!r} exists already",
            existing_id=head.id,
        )
    yield DefinitionCreated(
        kind=command.kind,
        code=command.code,
        name=command.name,
        description=command.description,
        app_id=command.app_id,
    )


def change(command: ChangeDefinition, rows: Rows, meta: Meta) -> Iterator[DefinitionChanged]:
    head = _definition(rows, meta)
    if head is None or head.kind != command.kind:
        raise Rejected("not_found", f"no such {command.kind}", status=404)
    changed = DefinitionChanged(
        name=None if command.name == head.name else command.name,
        description=None if command.description == head.description else command.description,
        status=None if command.status == head.status else command.status,
    )
    if changed != DefinitionChanged():
        yield changed


@dataclass(frozen=True, slots=True)
class Versions:
    """The deciders of versions. `check_code` says what the sandbox would refuse of a code node, None if nothing."""

    check_code: Callable[[str], str | None] | None = None

    def create_version(
        self, command: CreateVersion, rows: Rows, meta: Meta
    ) -> Iterator[VersionCreated | VersionPublished]:
        if command.kind != "workflow":
            raise Rejected("no_versions", f"an {command.kind} has no versions", status=422)
        head = _definition(rows, meta)
        if head is None or head.kind != command.kind:
            pointer = f"/{command.kind}_id"
            detail = f"no such {command.kind}"
            error = {"pointer": pointer, "code": "unknown_reference", "detail": detail}
            raise Rejected("unknown_reference", f"{pointer}: {detail}", status=422, errors=(error,))
        _refuse_archived(head)
        problems = self._problems(command.spec)
        if command.status == "published":
            _refuse_errors(problems)
        made = version_id(meta.message_id)
        yield VersionCreated(
            version_id=made,
            number=head.versions + 1,
            kind=command.kind,
            spec=command.spec,
            problems=problems,
            description=command.description,
        )
        if command.status == "published":
            yield VersionPublished(version_id=made)

    def publish(self, command: PublishVersion, rows: Rows, meta: Meta) -> Iterator[VersionPublished]:
        rows.want(Version, [command.version_id])
        head = _definition(rows, meta)
        version = rows.get(Version, command.version_id)
        if head is None or version is None or version.definition_id != head.id:
            raise Rejected("not_found", "no such version", status=404)
        if version.status == "published":
            return
        _refuse_archived(head)
        # Checked anew: what the draft was told may be older than the rules that hold now.
        _refuse_errors(self._problems(version.spec))
        yield VersionPublished(version_id=version.id)

    def _problems(self, spec: JsonObject) -> list[JsonObject]:
        """What is wrong with a workflow's definition; pointers are those of the API."""
        return [
            {
                "pointer": "/dsl_json" + problem.pointer,
                "code": problem.code,
                "detail": problem.detail,
                "severity": problem.severity,
            }
            for problem in dsl.parse(spec, check_code=self.check_code)[1]
        ]


def _definition(rows: Rows, meta: Meta) -> Definition | None:
    """The definition, unless it is another tenant's."""
    head = rows.get(Definition, meta.aggregate_id)
    return head if head is not None and head.tenant_id == meta.tenant_id else None


def _refuse_archived(head: Definition) -> None:
    if head.status == "archived":
        raise Rejected("definition_archived", f"the {head.kind} is archived")


def _refuse_errors(problems: list[JsonObject]) -> None:
    errors = tuple(
        {key: problem[key] for key in ("pointer", "code", "detail")}
        for problem in problems
        if problem["severity"] == "error"
    )
    if errors:
        raise Rejected("invalid_definition", summary(errors), status=422, errors=errors)


def answer(command: Command, rows: Rows, meta: Meta) -> JsonObject:
    """What the sender is shown: the definition, or the version its command made or published."""
    match command:
        case CreateDefinition() | ChangeDefinition():
            head = rows.get(Definition, meta.aggregate_id)
            if head is not None:
                return shown_definition(head)
        case CreateVersion() | PublishVersion():
            made = command.version_id if isinstance(command, PublishVersion) else version_id(meta.message_id)
            version = rows.get(Version, made)
            if version is not None:
                return shown_version(version)
    raise LookupError(f"{command.type} left nothing to show")


def domain(check_code: Callable[[str], str | None] | None = None) -> Domain:
    versions = Versions(check_code)
    return Domain(
        name="catalog",
        head=Definition,
        decide={
            CreateDefinition: create,
            ChangeDefinition: change,
            CreateVersion: versions.create_version,
            PublishVersion: versions.publish,
        },
        evolve=known.evolve,
        events=EVENTS,
        tables=known.TABLES,
        answer=answer,
    )
