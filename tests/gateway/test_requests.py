"""What every request has in common: bodies, limits, ids, refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import get_type_hints

import httpx
import pytest

from gateway.api_keys import CreatedApiKey
from gateway.http.app import create_app
from gateway.http.operations import shape_of
from gateway.http.ports import Found, Page
from gateway.http.routing import Listing
from gateway.http.state import Gateway
from gateway.routes import ROUTES
from infra.settings import Settings
from tests.gateway.test_workflows import GREET
from tests.gateway.world import World, shown_at

APPS = "/gateway/workflows/apps"
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [b"{", b"nonsense", b"NaN", b'{"code": NaN}', b'{"code": Infinity}', b'{"a": "\xff"}', b"\x00", b"'x'", b"{}x"],
)
async def test_what_is_not_json_is_400(http: httpx.AsyncClient, world: World, body: bytes) -> None:
    answer = await http.post(APPS, content=body, headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_json")
    assert answer.headers["content-type"] == "application/problem+json"
    assert world.sent == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (rb'{"code": "a\u0000b", "name": "x"}', "nul_character"),
        (rb'{"code": "\ud800", "name": "x"}', "lone_surrogate"),
        (rb'{"code": "\udc00\ud800", "name": "x"}', "lone_surrogate"),
        (rb'{"a\u0000": 1}', "nul_character"),
        (b'{"code": 1e400}', "not_a_number"),
        (b'{"code": ' + b"[" * 65 + b"]" * 65 + b"}", "too_deep"),
        (b"[" * 10_000 + b"]" * 10_000, "too_deep"),
        (b"[]", "model_type"),
        (b"null", "model_type"),
        (b'"x"', "model_type"),
    ],
)
async def test_json_that_cannot_be_stored_is_422(http: httpx.AsyncClient, body: bytes, code: str) -> None:
    answer = await http.post(APPS, content=body, headers=JSON)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["code"] == code


async def test_text_of_any_script_goes_through_unchanged(http: httpx.AsyncClient) -> None:
    name = "客户助手 🤖 \U0010ffff"
    answer = await http.post(APPS, json={"code": "a", "name": name})
    assert answer.json()["name"] == name


async def test_a_body_over_the_limit_is_413_announced_or_not(http: httpx.AsyncClient, world: World) -> None:
    body = b'{"code": "a", "name": "' + b"x" * 1024 * 1024 + b'"}'

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    for content in (body, chunks()):
        answer = await http.post(APPS, content=content, headers=JSON)
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert world.sent == []


async def test_a_body_at_the_limit_is_read(http: httpx.AsyncClient) -> None:
    start, end = b'{"code": "a", "name": "n"', b"}"
    body = start + b" " * (1024 * 1024 - len(start) - len(end)) + end
    assert len(body) == 1024 * 1024
    assert (await http.post(APPS, content=body, headers=JSON)).status_code == 201


@pytest.mark.parametrize("id", ["abc-1", "x" * 128])
async def test_a_request_id_is_reused(http: httpx.AsyncClient, id: str) -> None:
    answer = await http.get("/gateway/runtime/runs", headers={"x-request-id": id})
    assert answer.headers["x-request-id"] == id


@pytest.mark.parametrize("id", ["", "x" * 129, "a b", "ä"])
async def test_a_request_id_that_cannot_be_one_is_replaced(http: httpx.AsyncClient, id: str) -> None:
    answer = await http.get("/nowhere", headers=[(b"x-request-id", id.encode())])
    assert answer.headers["x-request-id"] not in ("", id)
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("header", ["nonsense", "00-" + "0" * 32 + "-00f067aa0ba902b7-01"])
async def test_a_trace_that_cannot_be_one_is_begun_anew(http: httpx.AsyncClient, world: World, header: str) -> None:
    await http.post(APPS, json={"code": "a", "name": "x"}, headers={"traceparent": header})
    sent = world.sent[0][0].traceparent
    assert sent != header
    assert len(sent) == 55


async def test_an_unknown_path_and_a_wrong_method_are_problems_too(http: httpx.AsyncClient) -> None:
    for answer, status, code in (
        (await http.get("/gateway/nowhere"), 404, "not_found"),
        (await http.get(APPS + "/"), 404, "not_found"),
        (await http.delete(APPS), 405, "method_not_allowed"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/problem+json"
    allowed = (await http.delete(APPS)).headers["allow"]
    assert {method.strip() for method in allowed.split(",")} == {"GET", "HEAD", "POST"}


async def test_what_nobody_foresaw_is_a_problem_without_its_insides(
    gateway: Gateway, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(tenant_id: str, page: Page) -> Found:
        raise RuntimeError("secret detail")

    world.page = broken  # type: ignore[method-assign]
    transport = httpx.ASGITransport(create_app(gateway), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        answer = await http.get("/gateway/runtime/runs")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret detail" not in answer.text
    assert "secret detail" in caplog.text


@pytest.mark.parametrize("header", ["x-tenant-id", "x-user-id"])
async def test_identities_that_cannot_be_are_refused(http: httpx.AsyncClient, header: str) -> None:
    for value, status in ((b"", 422), (b"x" * 129, 422), (b"\xff\xfe", 400), ("客户".encode(), 200)):
        answer = await http.get("/gateway/runtime/runs", headers=[(header.encode(), value)])
        assert answer.status_code == status
    for tenant_id in ("", "x" * 129, "a\x00b"):
        answer = await http.get("/gateway/runtime/runs", params={"tenant_id": tenant_id})
        assert answer.status_code == 422


async def test_the_documents_name_every_operation(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    operations = {
        (method, path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert set(operations) == {(route.method.lower(), route.path) for route in ROUTES}
    assert ("get", "/ready") in operations
    ids = [operation["operationId"] for operation in operations.values()]
    assert len(ids) == len(set(ids))
    schemes = document["components"]["securitySchemes"]
    assert {(each["type"], each.get("scheme") or each["name"]) for each in schemes.values()} == {
        ("http", "bearer"),
        ("apiKey", "x-api-key"),
    }


async def test_the_documents_say_what_a_write_and_a_list_are(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            responses = set(operation["responses"])
            if method != "get":
                assert {"202", "400", "401", "403", "404", "409", "413", "422", "429", "503"} <= responses, path
                assert "example" in operation["requestBody"]["content"]["application/json"], path
            names = {parameter["name"] for parameter in operation["parameters"]}
            shown = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
            if shown.get("schema", {}).get("$ref", "").endswith("Page"):
                assert {"limit", "cursor"} <= names, path


async def test_every_reference_in_the_documents_resolves(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]

    def check(value: object) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                assert value["$ref"].removeprefix("#/components/schemas/") in schemas
            for each in value.values():
                check(each)
        elif isinstance(value, list):
            for each in value:
                check(each)

    check(document)


async def test_the_examples_are_accepted_as_they_are_written(http: httpx.AsyncClient, world: World) -> None:
    """Each example passes validation; what it names may not exist."""
    document = (await http.get("/openapi.json")).json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if "requestBody" in operation:
                example = operation["requestBody"]["content"]["application/json"]["example"]
                url = path
                for parameter in operation["parameters"]:
                    if parameter["in"] == "path":
                        url = url.replace(f"{{{parameter['name']}}}", "7d444840-9dc0-41d1-b245-5ffdce74fad2")
                answer = await http.request(method, url, json={"tenant_id": "t1", **example})
                assert answer.status_code in (200, 201, 404, 422), path
                if answer.status_code == 422:
                    assert "no such" in answer.text, (path, answer.text)


async def test_the_examples_show_the_fields_that_answers_have(http: httpx.AsyncClient) -> None:
    await http.post("/gateway/workflows/apps", json={"code": "a", "name": "A"})
    workflow = await http.post("/gateway/workflows", json={"code": "w", "name": "W"})
    version = {"workflow_id": workflow.json()["id"], "dsl_json": GREET, "status": "published"}
    await http.post("/gateway/workflows/versions", json=version)
    run = await http.post("/gateway/runtime/runs", json={"workflow_id": workflow.json()["id"]})
    await http.post("/gateway/human/tasks", json={"task_type": "input", "title": "Name?"})
    made = await http.post("/gateway/api-keys", json={"name": "k"})
    assert set(made.json()) == set(get_type_hints(CreatedApiKey))
    listings = [route for route in ROUTES if isinstance(route, Listing)]
    for route in listings:
        item = (await http.get(shown_at(route, run.json()["id"]))).json()["items"][0]
        assert set(item) == set(get_type_hints(shape_of(route))), route.path


def test_authentication_off_is_for_loopback_only() -> None:
    with pytest.raises(ValueError, match="AUTH_REQUIRED"):
        Settings(gateway_host="0.0.0.0")


@pytest.mark.parametrize("tail", ["%0A", "%0a%0a", "%20"])
async def test_an_id_in_a_path_with_something_after_it_names_nothing(http: httpx.AsyncClient, tail: str) -> None:
    made = (await http.post(APPS, json={"code": "a", "name": "x"})).json()
    assert (await http.get(f"{APPS}/{made['id']}")).status_code == 200
    assert (await http.get(f"{APPS}/{made['id']}{tail}")).status_code == 404


async def test_an_id_in_a_body_with_a_line_feed_is_refused_before_the_bus(
    http: httpx.AsyncClient, world: World
) -> None:
    body = {"workflow_version_id": "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e\n", "tenant_id": "t"}
    assert (await http.post("/gateway/runtime/runs", json=body)).status_code == 422
    assert world.sent == []
