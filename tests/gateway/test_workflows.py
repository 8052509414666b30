"""Apps, workflows and versions over HTTP: the seed's requests as they are written."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from schemas.catalog import CreateDefinition
from tests.gateway.world import World

GREET: dict[str, Any] = {
    "nodes": [
        {"id": "start", "type": "start", "config": {}},
        {"id": "greet", "type": "answer", "config": {"template": "Hello"}},
    ],
    "edges": [{"source": "start", "target": "greet"}],
}
RANDOM = "7d444840-9dc0-41d1-b245-5ffdce74fad2"


async def made(http: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await http.post(f"/gateway/workflows{path}", json=body)
    assert answer.status_code == 201, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def test_the_seeds_app_is_made(http: httpx.AsyncClient, world: World) -> None:
    shown = await made(http, "/apps", tenant_id="t1", code="sales_assistant", name="Sales Assistant")
    assert (shown["tenant_id"], shown["code"]) == ("t1", "sales_assistant")
    envelope, command, _ = world.sent[0]
    assert isinstance(command, CreateDefinition)
    assert envelope.tenant_id == "t1"
    assert b"tenant" not in command.encode()


async def test_a_second_app_with_the_code_is_a_conflict_that_names_the_first(http: httpx.AsyncClient) -> None:
    first = await made(http, "/apps", code="a", name="A")
    answer = await http.post("/gateway/workflows/apps", json={"code": "a", "name": "B"})
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["code"], answer.json()["existing_id"]) == ("definition_exists", first["id"])


async def test_the_seeds_version_is_a_draft_with_problems(http: httpx.AsyncClient) -> None:
    workflow = await made(http, "", tenant_id="t1", code="w", name="W", app_id="app-1")
    version = await made(
        http, "/versions", tenant_id="t1", workflow_id=workflow["id"], dsl_json={"nodes": [], "edges": []}
    )
    assert version["status"] == "draft"
    assert version["problems"][0]["pointer"] == "/dsl_json/nodes"
    answer = await http.post(f"/gateway/workflows/versions/{version['id']}/publish", json={"tenant_id": "t1"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/dsl_json/nodes"


async def test_a_draft_is_published_once_and_twice(http: httpx.AsyncClient) -> None:
    workflow = await made(http, "", code="w", name="W")
    version = await made(http, "/versions", workflow_id=workflow["id"], dsl_json=GREET)
    for _ in range(2):
        answer = await http.post(f"/gateway/workflows/versions/{version['id']}/publish")
        assert (answer.status_code, answer.json()["status"]) == (200, "published")
    shown = (await http.get(f"/gateway/workflows/{workflow['id']}")).json()
    assert shown["latest_published_version_id"] == version["id"]
    assert (await http.get(f"/gateway/workflows/versions/{version['id']}")).json()["dsl_json"] == GREET


async def test_a_change_is_shown(http: httpx.AsyncClient) -> None:
    app = await made(http, "/apps", code="a", name="A")
    answer = await http.patch(f"/gateway/workflows/apps/{app['id']}", json={"name": "B"})
    assert (answer.status_code, answer.json()["name"]) == (200, "B")
    assert (await http.get(f"/gateway/workflows/apps/{app['id']}")).json()["name"] == "B"


async def test_an_app_is_not_found_among_workflows(http: httpx.AsyncClient) -> None:
    app = await made(http, "/apps", code="a", name="A")
    assert (await http.get(f"/gateway/workflows/{app['id']}")).status_code == 404
    assert (await http.get("/gateway/workflows")).json()["items"] == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/apps/{}"),
        ("PATCH", "/apps/{}"),
        ("GET", "/{}"),
        ("PATCH", "/{}"),
        ("GET", "/versions/{}"),
        ("POST", "/versions/{}/publish"),
    ],
)
@pytest.mark.parametrize("id", [RANDOM, "wf-1", "%00"])
async def test_an_unknown_id_in_a_path_is_not_found(http: httpx.AsyncClient, method: str, path: str, id: str) -> None:
    for headers in ({}, {"x-tenant-id": "t1"}):
        answer = await http.request(method, "/gateway/workflows" + path.format(id), headers=headers)
        assert answer.status_code == 404


async def test_an_unknown_workflow_in_a_body_names_the_field(http: httpx.AsyncClient) -> None:
    for id in (RANDOM, "wf-1"):
        answer = await http.post(
            "/gateway/workflows/versions", json={"tenant_id": "t1", "workflow_id": id, "dsl_json": GREET}
        )
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/workflow_id"


async def test_fields_that_are_missing_unknown_or_too_long_are_all_named(http: httpx.AsyncClient) -> None:
    answer = await http.post("/gateway/workflows/apps", json={"name": "x" * 257, "colour": "red"})
    assert answer.status_code == 422
    assert {error["pointer"] for error in answer.json()["errors"]} == {"/code", "/name", "/colour"}


WRONG: dict[str, Any] = {
    "nodes": [
        {"id": "a", "type": "anser"},
        {"id": "b", "type": "answer", "config": {"template": "{{state.x"}},
        {"id": "b", "type": "answer", "config": {"template": "twice"}},
        {"id": "c", "type": "if-else", "config": {"expression": "state.x >="}},
        {"id": "d", "type": "join", "config": {"join_policy": "most"}},
        {"id": "e", "type": "join", "config": {"join_policy": "n_completed"}},
        {"id": "f", "type": "code", "config": {"language": "perl", "code": "1"}},
        {"id": "g", "type": "code", "config": {"code": "result = 1", "colour": "red"}},
        {"id": "h", "type": "code", "config": {}},
        {"id": "i", "type": "answer", "config": {"template": "{{nodes.nobody.text}}"}},
        {"id": "j", "type": "answer", "config": {"template": "x", "timeout_seconds": -1}},
        {"id": "k", "type": "answer", "config": {"template": "x", "retry_policy": {"max_attempts": 0}}},
        {"id": "l", "type": "answer", "config": {"template": "x", "retry_policy": {"backoff": "wild"}}},
        {"id": "m", "type": "answer", "config": {"template": "x", "on_error": "shrug"}},
        {"id": "n", "type": "answer", "config": {"template": "x", "on_error": "default"}},
        {"id": "o", "type": "answer", "config": {"template": "x", "compensation_node_id": "o"}},
        {"id": "p", "type": "answer", "config": {"template": "x", "compensation_node_id": "nobody"}},
        {"id": "q", "type": "answer", "config": {"template": "x", "delay_seconds": -1}},
        {"id": "r/s", "type": "answer", "config": {"template": "x"}},
        {"id": "t", "type": "answer", "config": {"template": "x", "text": "y"}},
        {"id": "u", "type": "assigner", "config": {"assignments": [1]}},
        {"id": "v", "type": "answer", "config": {"template": "{{moon.x}}"}},
        {"id": "w", "type": "start", "config": {"inputs": {"n": {"type": "colour"}}}},
        {"id": "x", "type": "answer", "config": {"template": "x"}},
        {"id": "y", "type": "answer", "config": {"template": "x"}},
        {
            "id": "z",
            "type": "if-else",
            "config": {"cases": [{"id": "1", "expression": "1"}, {"id": "1", "expression": "1"}]},
        },
    ],
    "edges": [
        {"source": "x", "target": "y"},
        {"source": "x", "target": "y"},
        {"source": "y", "target": "x"},
        {"source": "x", "target": "nobody"},
        {"source": "nobody", "target": "x"},
        {"source": "x", "target": "b", "condition": "perhaps"},
    ],
}


async def test_everything_that_is_wrong_comes_back_in_one_answer(http: httpx.AsyncClient) -> None:
    workflow = await made(http, "", code="w", name="W")
    answer = await http.post(
        "/gateway/workflows/versions", json={"workflow_id": workflow["id"], "dsl_json": WRONG, "status": "published"}
    )
    assert answer.status_code == 422
    errors = answer.json()["errors"]
    assert all(error["pointer"].startswith("/dsl_json/") for error in errors)
    assert len({error["code"] for error in errors}) >= 20, sorted({error["code"] for error in errors})
    named = {error["pointer"].split("/")[3] for error in errors if error["pointer"].startswith("/dsl_json/nodes/")}
    right = {"1" if index == 1 else str(index) for index, node in enumerate(WRONG["nodes"]) if node["id"] in ("x", "y")}
    assert named | right >= {str(index) for index in range(len(WRONG["nodes"]))}, "every wrong node is named"


async def test_a_path_that_nothing_can_set_is_named_with_what_was_meant(http: httpx.AsyncClient) -> None:
    workflow = await made(http, "", code="w", name="W")
    declared = {"inputs": {"plan": {"default": "free"}, "客户名": {"type": "string"}}}
    greet = {"template": "{{inputs.客户}} {{inputs.plan}} {{nodes.greet.text}}"}
    dsl = {
        "nodes": [
            {"id": "start", "type": "start", "config": declared},
            {"id": "greet", "type": "answer", "config": greet},
        ],
        "edges": [{"source": "start", "target": "greet"}],
    }
    body = {"workflow_id": workflow["id"], "dsl_json": dsl}
    draft = await http.post("/gateway/workflows/versions", json=body)
    at = "/dsl_json/nodes/1/config/template"
    assert draft.json()["problems"] == [
        {
            "pointer": at,
            "code": "undeclared_input",
            "detail": "no start node declares an input '客户'; did you mean '客户名'?",
            "severity": "error",
        },
        {
            "pointer": at,
            "code": "impossible_reference",
            "detail": "'greet' reads its own answer, and no loop leads back to it",
            "severity": "error",
        },
    ]
    refused = await http.post("/gateway/workflows/versions", json=body | {"status": "published"})
    assert refused.status_code == 422
    assert [each["code"] for each in refused.json()["errors"]] == ["undeclared_input", "impossible_reference"]
    greet["template"] = "{{inputs.客户名}} {{inputs.plan}}"
    assert (await http.post("/gateway/workflows/versions", json=body | {"status": "published"})).status_code == 201
