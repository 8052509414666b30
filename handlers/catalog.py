"""Definitions: create and change one, add versions, publish them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from projections import catalog as known
from projections.catalog import Definition, Version
from projections.catalog_views import OF_KIND, VERSIONS_OF_KIND
from schemas.catalog import (
    EVENTS,
    ChangeDefinition,
    CheckFailed,
    CheckStarted,
    CreateDefinition,
    CreateVersion,
    DefinitionChanged,
    DefinitionCreated,
    PublishVersion,
    TakeCheck,
    VersionChecked,
    VersionCreated,
    VersionPublished,
)
from schemas.decider import Answer, Awaited, Decision, Deferred, Domain, Meta, Rows, Settled
from schemas.envelope import AnswerTo
from schemas.messages import Command, Rejected, derive
from schemas.problems import FieldError, SpecProblem, summary
from schemas.runtime import StartSingle

CHECK_SECONDS = 240.0
"""So long a command waits for the check of a version, with its retries."""
EXPIRY_MARGIN_SECONDS = 2.0
"""By so much the clocks of two workers may differ: nothing follows from a command that has been told it failed."""


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
    head = rows.get(Definition, meta.aggregate_id)
    if head is None or head.kind != command.kind:
        raise Rejected("not_found", f"no such {command.kind}", status=404)
    changed = DefinitionChanged(
        name=None if command.name == head.name else command.name,
        description=None if command.description == head.description else command.description,
        status=None if command.status == head.status else command.status,
    )
    if changed != DefinitionChanged():
        yield changed


def create_version(command: CreateVersion, rows: Rows, meta: Meta) -> Iterator[Decision]:
    if command.kind != "workflow":
        raise Rejected("no_versions", f"an {command.kind} has no versions", status=422)
    head = rows.get(Definition, meta.aggregate_id)
    if head is None or head.kind != command.kind:
        pointer = f"/{command.kind}_id"
        detail = f"no such {command.kind}"
        error: FieldError = {"pointer": pointer, "code": "unknown_reference", "detail": detail}
        raise Rejected("unknown_reference", f"{pointer}: {detail}", status=422, errors=(error,))
    _refuse_archived(head)
    made = version_id(meta.message_id)
    yield VersionCreated(
        version_id=made,
        number=head.versions + 1,
        kind=command.kind,
        spec=command.spec,
        description=command.description,
    )
    yield from _check(made, meta, publish=command.status == "published")


def publish(command: PublishVersion, rows: Rows, meta: Meta) -> Iterator[Decision]:
    rows.want(Version, [command.version_id])
    head = rows.get(Definition, meta.aggregate_id)
    version = rows.get(Version, command.version_id)
    if head is None or version is None or version.definition_id != head.id:
        raise Rejected("not_found", "no such version", status=404)
    if head.latest_published == version.id:
        return
    _refuse_archived(head)
    # Checked anew: what the draft was told may be older than the rules that hold now.
    yield from _check(version.id, meta, publish=True)


def _check(version_id: str, meta: Meta, *, publish: bool) -> Iterator[Decision]:
    """Have a version checked as a step; the outcome of the command that wants it comes with the answer."""
    check_id = derive(meta.message_id, "check")
    yield CheckStarted(
        version_id=version_id,
        check_id=check_id,
        command_id=meta.message_id,
        publish=publish,
        expires_at=meta.at + CHECK_SECONDS,
    )
    step = StartSingle(
        run_id=derive(meta.message_id, "run of the check"), step="check", inputs={"version_id": version_id}
    )
    yield Awaited(step, subject=version_id, wait_id=check_id)
    yield Deferred(CHECK_SECONDS)


def answered(answer_to: AnswerTo, answer: Answer) -> Command:
    """What a check came to: its only awaited commands."""
    problems = [] if answer.failed else answer.result["output"]["problems"]
    return TakeCheck(
        definition_id=answer_to.aggregate_id,
        version_id=answer_to.subject,
        check_id=answer_to.wait_id,
        problems=problems,
        code=answer.code,
        detail=answer.detail,
    )


def take_check(command: TakeCheck, rows: Rows, meta: Meta) -> Iterator[Decision]:
    rows.want(Version, [command.version_id])
    head = rows.get(Definition, meta.aggregate_id)
    version = rows.get(Version, command.version_id)
    check = version.checks.get(command.check_id) if version is not None else None
    if head is None or version is None or check is None:
        return  # Taken before.
    if command.code:
        yield CheckFailed(
            version_id=version.id, check_id=command.check_id, code=command.code, detail=command.detail[:2_000]
        )
        problem = Rejected("check_failed", f"{command.code}: {command.detail}"[:2_000], status=500).problem()
        yield Settled(check["command_id"], "failed", problem | {"version_id": version.id})
        return
    yield VersionChecked(version_id=version.id, check_id=command.check_id, problems=command.problems)
    if meta.at >= check["expires_at"] - EXPIRY_MARGIN_SECONDS:
        return  # Its command is told that it failed: so it must have no effect.
    refusal = _refusal(head, command.problems) if check["publish"] else None
    if refusal is not None:
        yield Settled(check["command_id"], "rejected", refusal.problem() | {"version_id": version.id})
        return
    if check["publish"] and head.latest_published != version.id:
        yield VersionPublished(version_id=version.id)
    shown = cast(Version, rows.get(Version, version.id))
    yield Settled(check["command_id"], "succeeded", VERSIONS_OF_KIND[shown.kind].of(shown))


def _refusal(head: Definition, problems: list[SpecProblem]) -> Rejected | None:
    """Why a version that was checked cannot be published now; None if it can."""
    try:
        _refuse_archived(head)
        _refuse_errors(problems)
    except Rejected as refusal:
        return refusal
    return None


def _refuse_archived(head: Definition) -> None:
    if head.status == "archived":
        raise Rejected("definition_archived", f"the {head.kind} is archived")


def _refuse_errors(problems: list[SpecProblem]) -> None:
    errors: tuple[FieldError, ...] = tuple(
        {"pointer": problem["pointer"], "code": problem["code"], "detail": problem["detail"]}
        for problem in problems
        if problem["severity"] == "error"
    )
    if errors:
        raise Rejected("invalid_definition", summary(errors), status=422, errors=errors)


def answer(command: Command, rows: Rows, meta: Meta) -> Mapping[str, Any]:
    """What the sender is shown at once: the definition, or a version that was published already."""
    match command:
        case CreateDefinition() | ChangeDefinition():
            head = rows.get(Definition, meta.aggregate_id)
            if head is not None:
                return OF_KIND[head.kind].of(head)
        case PublishVersion():
            version = rows.get(Version, command.version_id)
            if version is not None:
                return VERSIONS_OF_KIND[version.kind].of(version)
    raise LookupError(f"{command.type} left nothing to show")


DOMAIN = Domain(
    name="catalog",
    head=Definition,
    decide={
        CreateDefinition: create,
        ChangeDefinition: change,
        CreateVersion: create_version,
        PublishVersion: publish,
        TakeCheck: take_check,
    },
    evolve=known.evolve,
    events=EVENTS,
    tables=known.TABLES,
    answer=answer,
    answered=answered,
)
