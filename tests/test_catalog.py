"""Definitions and their versions: what may be made, changed and published."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.catalog import domain, version_id
from schemas.catalog import (
    ChangeDefinition,
    CreateDefinition,
    CreateVersion,
    DefinitionChanged,
    DefinitionCreated,
    PublishVersion,
    VersionCreated,
    VersionPublished,
)
from schemas.messages import JsonObject
from tests.gateway.spec import AGGREGATE, MESSAGE, Spec

catalog = Spec(domain())
VERSION = version_id(MESSAGE)
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


def draft(spec: JsonObject, problems: list[JsonObject] | None = None, number: int = 1) -> VersionCreated:
    return VersionCreated(version_id=VERSION, number=number, kind="workflow", spec=spec, problems=problems or [])


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


def test_a_draft_may_be_incomplete_and_says_what_is_missing() -> None:
    given = catalog.given(CREATED)
    decisions = given.when(new_version(EMPTY)).run()
    assert [type(decision) for decision in decisions] == [VersionCreated]
    shown = given.when(new_version(EMPTY)).answer()
    assert shown["status"] == "draft"
    assert [(p["pointer"], p["severity"]) for p in shown["problems"]] == [("/dsl_json/nodes", "error")]


def test_versions_are_numbered() -> None:
    shown = catalog.given(CREATED).when(new_version(GREET)).then(draft(GREET))
    assert shown["version"] == 1
    first = draft(GREET).model_copy(update={"version_id": OTHER})
    shown = catalog.given(CREATED, first).when(new_version(GREET)).then(draft(GREET, number=2))
    assert shown["version"] == 2


def test_a_version_can_be_published_as_it_is_made() -> None:
    shown = (
        catalog.given(CREATED)
        .when(new_version(GREET, status="published"))
        .then(draft(GREET), VersionPublished(version_id=VERSION))
    )
    assert shown["status"] == "published"
    assert shown["published_at"] is not None


def test_publishing_at_once_with_errors_names_every_one_and_records_nothing() -> None:
    bad: JsonObject = {
        "nodes": [{"id": "a", "type": "nonsense"}, {"id": "b", "type": "answer", "config": {"text": "x", "y": 1}}],
        "edges": [{"source": "a", "target": "nowhere"}],
    }
    refusal = catalog.given(CREATED).when(new_version(bad, status="published")).rejected("invalid_definition", 422)
    pointers = {error["pointer"] for error in refusal.errors}
    assert {"/dsl_json/nodes/0/type", "/dsl_json/nodes/1/config/y", "/dsl_json/edges/0/target"} <= pointers


def test_a_draft_with_errors_cannot_be_published() -> None:
    refusal = catalog.given(CREATED, draft(EMPTY)).when(PUBLISH).rejected("invalid_definition", 422)
    assert refusal.errors[0]["pointer"] == "/dsl_json/nodes"


def test_a_good_draft_becomes_the_latest_published_version() -> None:
    given = catalog.given(CREATED, draft(GREET))
    given.when(PUBLISH).then(VersionPublished(version_id=VERSION))
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
