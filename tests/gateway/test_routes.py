"""What one line of a route table makes: the body of a command, the schema and the example, the operation's name."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import httpx
import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from gateway.http.app import create_app
from gateway.http.openapi import openapi_document
from gateway.http.operations import shape_of
from gateway.http.problems import Problem
from gateway.http.request_body import CommandBody
from gateway.http.routing import Listing, Post, Read, Write
from gateway.http.state import Gateway
from gateway.routes import ROUTES
from gateway.runtime import NODE_RUN_LIST, RUN_LIST
from projections.catalog_views import WORKFLOW_VERSION
from projections.runtime_views import RUN
from projections.views import View
from schemas.catalog import PublishVersion
from schemas.examples import Example, example_of_shape
from schemas.messages import Command, Id
from tests.gateway.test_runtime import CHAIN, started, workflow
from tests.gateway.test_workflows import RANDOM
from tests.gateway.world import shown_at
from tests.golden.files import OPERATIONS, operations

TASK = "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e"


class Place(BaseModel):
    model_config = ConfigDict(extra="forbid")
    street: str
    number: int = 1


class CompleteTask(Command):
    type: Literal["human.complete_task"] = "human.complete_task"
    task_id: Id
    kind: str
    verdict: Literal["approved", "rejected"]
    seconds: Annotated[int, Field(ge=1, le=60), Example(5)] = 10
    content: Annotated[dict[str, Any], Example({})] = Field(default_factory=dict)
    place: Place | None = None
    public: ClassVar[bool] = True

    def aggregate_id(self, tenant_id: str, command_id: str) -> str:
        return self.task_id


TAKES = CommandBody(
    CompleteTask,
    path=("id",),
    fixed={"kind": "review"},
    words={"task_id": "id", "content": ("content_json", "content")},
    defaults={"seconds": 20},
)


def read(body: Any) -> CompleteTask:
    return TAKES.read(body, {"id": TASK}, None)


def refused(body: Any) -> dict[str, tuple[str, str]]:
    with pytest.raises(Problem) as problem:
        read(body)
    assert problem.value.status == 422
    return {error["pointer"]: (error["code"], error["detail"]) for error in problem.value.errors}


def test_a_body_is_the_commands_fields_less_what_path_and_route_say() -> None:
    expected = CompleteTask(task_id=TASK, kind="review", verdict="approved", seconds=20)
    assert read({"verdict": "approved"}) == read({"verdict": "approved", "tenant_id": "t1"}) == expected
    for word in ("content", "content_json"):
        assert read({"verdict": "approved", word: {"a": 1}}).content == {"a": 1}


@pytest.mark.parametrize("field", ["kind", "task_id", "id", "type"])
def test_what_the_path_and_the_route_say_a_body_may_not(field: str) -> None:
    assert refused({"verdict": "approved", field: "review"})["/" + field][0] == "extra_forbidden"


@pytest.mark.parametrize(
    ("body", "pointer", "code", "detail"),
    [
        ({"verdict": "approved", "verdikt": 1}, "/verdikt", "extra_forbidden", "did you mean 'verdict'?"),
        ({"verdict": "approved", "zzz": 1}, "/zzz", "extra_forbidden", "there is no such field"),
        ({"verdict": "approved", "a/b": 1}, "/a~1b", "extra_forbidden", "there is no such field"),
        (
            {"verdict": "approved", "place": {"street": "x", "nummer": 2}},
            "/place/nummer",
            "extra_forbidden",
            "'number'",
        ),
        ({"verdict": "perhaps"}, "/verdict", "literal_error", "'approved' or 'rejected'"),
        ({}, "/verdict", "missing", "required"),
        ({"verdict": "approved", "seconds": 61}, "/seconds", "less_than_equal", "60"),
        ({"verdict": "approved", "content": 1}, "/content", "dict_type", ""),
        ({"verdict": "approved", "content_json": 1}, "/content_json", "dict_type", ""),
        ({"verdict": "approved", "content": {}, "content_json": {}}, "/content_json", "given_twice", "'content'"),
        ({"verdict": "approved", "tenant_id": 1}, "/tenant_id", "string_type", ""),
        ([], "", "model_type", "object"),
        (None, "", "model_type", "object"),
    ],
)
def test_what_is_wrong_is_named_in_the_senders_words(body: Any, pointer: str, code: str, detail: str) -> None:
    found = refused(body)
    assert found[pointer][0] == code
    assert detail in found[pointer][1]
    assert len(found) == 1


def test_all_that_is_wrong_comes_at_once() -> None:
    assert set(refused({"seconds": 0, "colour": 1, "content": 1})) == {"/verdict", "/seconds", "/content", "/colour"}


def test_the_schema_of_a_body_says_what_is_required_chosen_and_limited() -> None:
    schema = TAKES.schema("#/components/schemas/{model}")
    assert set(schema["properties"]) == {"tenant_id", "verdict", "seconds", "content_json", "place"}
    assert schema["required"] == ["verdict"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["verdict"]["enum"] == ["approved", "rejected"]
    seconds = schema["properties"]["seconds"]
    assert (seconds["minimum"], seconds["maximum"], seconds["default"]) == (1, 60, 20)
    assert "content" in schema["properties"]["content_json"]["description"]
    assert "Place" in schema["$defs"]
    assert TAKES.example() == {"verdict": "approved", "seconds": 5, "content_json": {}}


@pytest.mark.parametrize(
    "wrong",
    [{"path": ("run_id",)}, {"fixed": {"colour": 1}}, {"words": {"colour": "c"}}, {"defaults": {"colour": 1}}],
)
def test_a_route_that_names_no_field_stops_the_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="CompleteTask has no"):
        CommandBody(CompleteTask, **wrong)


def test_a_row_within_an_aggregate_gives_the_command_its_aggregate() -> None:
    for route in ROUTES:
        if isinstance(route, Write) and route.command.__name__ in ("SetNodeStatus", "PublishVersion"):
            assert route.takes.parent == route.view.spec.parent
            assert route.takes.parent not in route.takes.accepted.values()


async def test_a_list_below_an_object_shows_what_belongs_to_it(gateway: Gateway, http: httpx.AsyncClient) -> None:
    workflow_id = await workflow(http, CHAIN, tenant_id="t1")
    first, second = [await started(http, workflow_id) for _ in range(2)]
    below = Listing("/gateway/runtime/runs/{run_id}/nodes", NODE_RUN_LIST, "gateway:runtime:read", named=RUN)
    transport = httpx.ASGITransport(create_app(gateway, [below]))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost/gateway/runtime/runs") as client:
        for run in (first, second):
            items = (await client.get(f"/{run['id']}/nodes")).json()["items"]
            assert {item["run_id"] for item in items} == {run["id"]}
            assert len(items) == 4
        one = (await client.get(f"/{first['id']}/nodes", params={"node_id": "n1", "tenant_id": "t1"})).json()["items"]
        assert [item["node_id"] for item in one] == ["n1"]
        assert (await client.get(f"/{first['id']}/nodes", params={"run_id": second["id"]})).status_code == 422
        for id, tenant in ((first["id"], "t2"), (RANDOM, "t1"), ("x", "t1"), (RANDOM, "")):
            params = {"tenant_id": tenant} if tenant else {}
            assert (await client.get(f"/{id}/nodes", params=params)).status_code == 404
    (operation,) = openapi_document([below])["paths"][below.path].values()
    named = [parameter["in"] for parameter in operation["parameters"] if parameter["name"] == "run_id"]
    assert named == ["path"]


def test_a_list_below_an_object_needs_its_filter_and_its_view() -> None:
    with pytest.raises(TypeError, match="app_id"):
        Listing("/gateway/apps/{app_id}/runs", RUN_LIST, "gateway:runtime:read", named=RUN)
    with pytest.raises(TypeError, match="names"):
        Listing("/gateway/x/{workflow_id}/runs", RUN_LIST, "gateway:runtime:read")


def test_an_aggregate_that_the_path_names_is_not_taken_from_the_row() -> None:
    """Else the path could name one object and mean another."""
    path = "/gateway/flows/{workflow_id}/versions/{version_id}/publish"
    words = {"definition_id": "workflow_id"}
    route = Post(path, PublishVersion, "gateway:workflows:write", WORKFLOW_VERSION, words=words)
    assert route.takes.parent is None
    command = route.takes.read({}, {"workflow_id": TASK, "version_id": RANDOM}, None)
    assert command == PublishVersion(definition_id=TASK, version_id=RANDOM)


# --- views -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", dict.fromkeys(map(shape_of, ROUTES)), ids=lambda shape: shape.__name__)
def test_the_example_of_a_view_fits_its_schema(shape: type[Any]) -> None:
    TypeAdapter(shape).validate_python(example_of_shape(shape), strict=True)


async def test_what_is_shown_fits_its_schema(http: httpx.AsyncClient) -> None:
    run = await started(http, await workflow(http, CHAIN), mode="manual")
    await http.post("/gateway/api-keys", json={"name": "k"})
    await http.post("/gateway/human/tasks", json={"task_type": "input", "title": "Name?"})
    seen = 0
    for route in ROUTES:
        if isinstance(route, Listing):
            for item in (await http.get(shown_at(route, run["id"]))).json()["items"]:
                TypeAdapter(shape_of(route)).validate_python(item, strict=True)
                seen += 1
    assert seen >= 6


class Unknown(TypedDict):
    id: str


def test_a_view_without_an_example_or_with_anothers_name_stops_the_start() -> None:
    class RunView(TypedDict):
        id: Annotated[str, Example("x")]

    read = Read("/gateway/x/{run_id}", RUN, "gateway:runtime:read")
    with pytest.raises(LookupError, match="bears no Example"):
        openapi_document([Read("/gateway/y/{id}", View("x", RUN.spec, Unknown, dict), "gateway:runtime:read")])
    with pytest.raises(ValueError, match="two components are called Run"):
        openapi_document([read, replace(read, view=View("x", RUN.spec, RunView, dict), operation="getOther")])


# --- operations --------------------------------------------------------------------------------------------------


def test_operations_are_called_what_they_were_called() -> None:
    """Their ids are the method names of whoever generates a client."""
    assert OPERATIONS.read_text().splitlines() == operations(), "if that is meant, `python -m tests.golden` records it"


def test_two_operations_of_one_name_stop_the_start() -> None:
    again = Post("/gateway/runtime/again", CompleteTask, "gateway:runtime:write", RUN, operation="startRun")
    with pytest.raises(ValueError, match="two operations are called startRun"):
        openapi_document([*ROUTES, again])
