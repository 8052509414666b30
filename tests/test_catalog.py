"""Definitions and their versions: what may be made, changed and published."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.catalog import CHECK_SECONDS, DOMAIN, version_id
from schemas.catalog import (
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
from schemas.decider import Answer, Awaited, Decision, Deferred, Settled
from schemas.envelope import AnswerTo
from schemas.messages import Command, JsonObject, derive
from schemas.runtime import StartSingle
from tests.gateway.spec import AGGREGATE, MESSAGE, Spec

catalog = Spec(DOMAIN)
VERSION = version_id(MESSAGE)
CHECK = derive(MESSAGE, "check")
OTHER = "00000000-0000-4000-8000-0000000000aa"
GREET: JsonObject = {
    "nodes": [
        {"id": "start", "type": "start", "config": {}},
        {"id": "greet", "type": "answer", "config": {"template": "Hello"}},
    ],
    "edges": [{"source": "start", "target": "greet"}],
}
EMPTY: JsonObject = {"nodes": [], "edges": []}

CREATED = DefinitionCreated(kind="workflow", code="greet", name="Greet", app_id="app-1")
CREATE = CreateDefinition(kind="workflow", code="greet", name="Greet", app_id="app-1")
ARCHIVED = DefinitionChanged(status="archived")
PUBLISH = PublishVersion(definition_id=AGGREGATE, version_id=VERSION)


def draft(spec: JsonObject, number: int = 1) -> VersionCreated:
    return VersionCreated(version_id=VERSION, number=number, kind="workflow", spec=spec)


def new_version(spec: JsonObject, **fields: Any) -> CreateVersion:
    return CreateVersion(definition_id=AGGREGATE, kind="workflow", spec=spec, **fields)


def change(**fields: Any) -> ChangeDefinition:
    return ChangeDefinition(definition_id=AGGREGATE, kind="workflow", **fields)


def test_a_definition_is_made_and_shown() -> None:
    shown = catalog.given().when(CREATE).then(CREATED)
    assert (shown["id"], shown["code"], shown["app_id"], shown["status"]) == (
        AGGREGATE,
        "greet",
        "app-1",
        "active",
    )


def test_a_second_definition_with_the_same_code_is_told_the_first_ones_id() -> None:
    refusal = catalog.given(CREATED).when(CREATE).rejected("definition_exists")
    assert refusal.problem()["existing_id"] == AGGREGATE


def test_the_same_code_in_another_app_is_another_definition() -> None:
    ids = {
        CreateDefinition(kind="workflow", code="greet", name="x", app_id=app).aggregate_id(tenant, MESSAGE)
        for app in (None, "app-1", "app-2")
        for tenant in ("t1", "t2")
    }
    assert len(ids) == 6


def test_only_what_differs_is_recorded_as_a_change() -> None:
    shown = (
        catalog.given(CREATED)
        .when(change(name="Greet", description="Says hello"))
        .then(DefinitionChanged(description="Says hello"))
    )
    assert shown["description"] == "Says hello"


def test_a_change_that_is_already_true_records_nothing() -> None:
    catalog.given(CREATED).when(change(name="Greet", status="active")).then()


def test_an_unknown_definition_cannot_be_changed() -> None:
    catalog.given().when(change(name="x")).rejected("not_found", 404)


def test_another_tenants_definition_is_as_unknown_as_a_random_one() -> None:
    given = catalog.given(CREATED)
    mine = given.when(change(name="x"), tenant_id="t2").rejected("not_found", 404)
    random = catalog.given().when(change(name="x"), tenant_id="t2").rejected("not_found", 404)
    assert mine.problem() == random.problem()


def test_a_workflow_is_not_changed_as_an_app() -> None:
    command = ChangeDefinition(definition_id=AGGREGATE, kind="app", name="x")
    catalog.given(CREATED).when(command).rejected("not_found", 404)


def started(*, publish: bool = False) -> CheckStarted:
    expires_at = 100.0 + CHECK_SECONDS
    return CheckStarted(version_id=VERSION, check_id=CHECK, command_id=MESSAGE, publish=publish, expires_at=expires_at)


def found(*problems: JsonObject) -> TakeCheck:
    """A check has come to its end."""
    return TakeCheck(definition_id=AGGREGATE, version_id=VERSION, check_id=CHECK, problems=list(problems))


def checked(*problems: JsonObject) -> VersionChecked:
    return VersionChecked(version_id=VERSION, check_id=CHECK, problems=list(problems))


def settled(decisions: list[Decision]) -> Settled:
    """The outcome of the command that wanted the check."""
    (outcome,) = (each for each in decisions if isinstance(each, Settled))
    assert outcome.command_id == MESSAGE
    return outcome


ERROR: JsonObject = {"pointer": "/dsl_json/nodes", "code": "empty", "detail": "no nodes", "severity": "error"}
WARNING: JsonObject = {"pointer": "/dsl_json/nodes/0", "code": "odd", "detail": "is odd", "severity": "warning"}


@pytest.mark.parametrize(("command", "publish"), [(new_version(GREET), False), (PUBLISH, True)])
def test_a_version_is_checked_as_a_step_and_the_outcome_comes_later(command: Command, publish: bool) -> None:
    given = catalog.given(CREATED, draft(GREET)) if publish else catalog.given(CREATED)
    *events, awaited, deferred = given.when(command).run()
    assert events == [*([] if publish else [draft(GREET)]), started(publish=publish)]
    assert isinstance(awaited, Awaited)
    assert isinstance(awaited.command, StartSingle)
    assert (awaited.command.step, awaited.command.inputs) == ("check", {"version_id": VERSION})
    assert (awaited.subject, awaited.wait_id) == (VERSION, CHECK)
    assert isinstance(deferred, Deferred)


def test_a_draft_may_have_errors_and_says_which() -> None:
    decisions = catalog.given(CREATED, draft(EMPTY), started()).when(found(ERROR)).run()
    assert decisions[:-1] == [checked(ERROR)]
    shown = settled(decisions)
    assert (shown.status, shown.body["status"], shown.body["problems"]) == ("succeeded", "draft", [ERROR])


def test_versions_are_numbered() -> None:
    first = draft(GREET).model_copy(update={"version_id": OTHER})
    assert catalog.given(CREATED, first).when(new_version(GREET)).run()[0] == draft(GREET, number=2)


def test_a_version_without_errors_is_published_if_that_is_wanted() -> None:
    decisions = catalog.given(CREATED, draft(GREET), started(publish=True)).when(found(WARNING)).run()
    assert decisions[:-1] == [checked(WARNING), VersionPublished(version_id=VERSION)]
    shown = settled(decisions).body
    assert (shown["status"], shown["problems"]) == ("published", [WARNING])
    assert shown["published_at"] is not None


def test_publishing_with_errors_names_every_one_and_keeps_the_draft() -> None:
    other = ERROR | {"pointer": "/dsl_json/edges"}
    decisions = catalog.given(CREATED, draft(EMPTY), started(publish=True)).when(found(ERROR, WARNING, other)).run()
    assert decisions[:-1] == [checked(ERROR, WARNING, other)]
    outcome = settled(decisions)
    assert (outcome.status, outcome.body["status"], outcome.body["code"]) == ("rejected", 422, "invalid_definition")
    assert [error["pointer"] for error in outcome.body["errors"]] == ["/dsl_json/nodes", "/dsl_json/edges"]
    assert outcome.body["version_id"] == VERSION


def test_what_is_archived_meanwhile_is_not_published() -> None:
    decisions = catalog.given(CREATED, draft(GREET), started(publish=True), ARCHIVED).when(found()).run()
    assert decisions[:-1] == [checked()]
    assert settled(decisions).body["code"] == "definition_archived"


def test_a_check_that_comes_to_nothing_is_told() -> None:
    lost = found().model_copy(update={"code": "lease_lost", "detail": "5 executors were lost"})
    decisions = catalog.given(CREATED, draft(GREET), started(publish=True)).when(lost).run()
    assert [type(each) for each in decisions] == [CheckFailed, Settled]
    outcome = settled(decisions)
    assert (outcome.status, outcome.body["code"], outcome.body["version_id"]) == ("failed", "check_failed", VERSION)


def test_what_was_told_that_it_failed_has_no_effect_later() -> None:
    late = started(publish=True).model_copy(update={"expires_at": 101.0})
    assert catalog.given(CREATED, draft(GREET), late).when(found()).run() == [checked()]


def test_a_check_is_taken_once() -> None:
    assert catalog.given(CREATED, draft(GREET), started(), checked()).when(found()).run() == []


def test_two_checks_of_one_version_do_not_meet() -> None:
    other = started().model_copy(update={"check_id": OTHER, "command_id": OTHER})
    decisions = catalog.given(CREATED, draft(GREET), other, started(publish=True)).when(found()).run()
    assert decisions[:-1] == [checked(), VersionPublished(version_id=VERSION)]
    assert settled(decisions).status == "succeeded"


def test_the_answer_of_a_check_finds_its_version() -> None:
    address = AnswerTo("catalog", AGGREGATE, VERSION, CHECK)
    assert DOMAIN.answered(address, Answer(result={"output": {"problems": [ERROR]}})) == found(ERROR)
    told = DOMAIN.answered(address, Answer(code="timeout", detail="too late"))
    assert told == found().model_copy(update={"code": "timeout", "detail": "too late"})


def test_an_earlier_version_is_published_again_to_roll_back() -> None:
    later = draft(GREET, number=2).model_copy(update={"version_id": OTHER})
    both = (draft(GREET), VersionPublished(version_id=VERSION), later, VersionPublished(version_id=OTHER))
    given = catalog.given(CREATED, *both, started(publish=True))
    decisions = given.when(found()).run()
    assert decisions[:-1] == [checked(), VersionPublished(version_id=VERSION)]
    assert given.when(CREATE).answer()["latest_published_version_id"] == VERSION


def test_publishing_twice_is_once() -> None:
    published = VersionPublished(version_id=VERSION)
    shown = catalog.given(CREATED, draft(GREET), published).when(PUBLISH).then()
    assert shown["status"] == "published"


def test_an_unknown_version_cannot_be_published() -> None:
    catalog.given(CREATED).when(PUBLISH).rejected("not_found", 404)


def test_another_tenants_version_cannot_be_published() -> None:
    given = catalog.given(CREATED, draft(GREET))
    given.when(PUBLISH, tenant_id="t2").rejected("not_found", 404)


def test_a_version_of_an_unknown_workflow_names_the_field() -> None:
    refusal = catalog.given().when(new_version(GREET)).rejected("unknown_reference", 422)
    assert refusal.errors[0]["pointer"] == "/workflow_id"


def test_an_app_has_no_versions() -> None:
    app = DefinitionCreated(kind="app", code="a", name="A")
    command = CreateVersion(definition_id=AGGREGATE, kind="app", spec={})
    catalog.given(app).when(command).rejected("no_versions", 422)


@pytest.mark.parametrize("command", [new_version(GREET), PUBLISH])
def test_an_archived_workflow_gets_no_versions(command: CreateVersion | PublishVersion) -> None:
    catalog.given(CREATED, draft(GREET), ARCHIVED).when(command).rejected("definition_archived")
