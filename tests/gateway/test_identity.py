"""Who may do what: keys, scopes, tenants, users, the first key."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from pydantic import SecretStr
from starlette.types import ASGIApp, Message

from gateway.api_keys import BOOTSTRAP_KEY_ID
from gateway.http.app import create_app
from gateway.http.operations import operation_id
from gateway.http.routing import PUBLIC, PUBLIC_PATHS, Action, Query, Write, check_permissions
from gateway.http.state import Gateway
from gateway.platform import ReadinessView, get_readiness
from gateway.routes import ROUTES
from infra.settings import Settings
from projections.access import ApiKey
from tests.gateway.test_workflows import GREET
from tests.gateway.world import World, client_of, gateway_over

TOKEN = "bootstrap-token"
RANDOM = "7d444840-9dc0-41d1-b245-5ffdce74fad2"
KEYS = "/gateway/api-keys"


@pytest.fixture
def settings() -> Settings:
    return Settings(auth_required=True, outcome_wait_seconds=0.2, bootstrap_token=SecretStr(TOKEN))


def key(world: World, scopes: str, *, tenant: str = "t1", number: int = 1, **fields: Any) -> dict[str, str]:
    """A key in the table; gives the headers that present it."""
    id = f"00000000-0000-4000-8000-{number:012d}"
    text = f"ap_{id}_secret_with_underscores"
    row = ApiKey(
        id=id,
        tenant_id=tenant,
        seq=1,
        name="k",
        scopes=scopes.split(),
        secret_sha256=hashlib.sha256(text.encode()).hexdigest(),
        user_id=fields.get("user_id"),
        status=fields.get("status", "active"),
        created_at=1.0,
        updated_at=1.0,
    )
    world.tables.rows[ApiKey, id] = row
    return {"x-api-key": text}


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


def every_operation() -> list[tuple[str, str]]:
    return [
        (route.method, route.path.replace("{", "").replace("}", "")) for route in ROUTES if route.permission != PUBLIC
    ]


@pytest.mark.parametrize(("method", "path"), every_operation())
async def test_every_operation_needs_a_key(http: httpx.AsyncClient, world: World, method: str, path: str) -> None:
    good = key(world, "*")["x-api-key"]
    for headers in (
        {},
        {"x-api-key": good + "x"},
        {"x-api-key": good[:-1]},
        {"x-api-key": good.upper()},
        bearer("ap_" + RANDOM + "_x"),
        bearer("ap__"),
        {"authorization": f"Basic {good}"},
    ):
        answer = await http.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert world.sent == []


@pytest.mark.parametrize(("method", "path"), every_operation())
async def test_every_operation_needs_its_scope(http: httpx.AsyncClient, world: World, method: str, path: str) -> None:
    headers = key(world, "gateway:nothing:* act_as platform:*")
    answer = await http.request(method, path, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize(("method", "path"), every_operation())
async def test_a_foreign_tenant_is_refused_wherever_it_stands(
    http: httpx.AsyncClient, world: World, method: str, path: str
) -> None:
    headers = key(world, "*")
    for request in (
        {"headers": headers | {"x-tenant-id": "t2"}},
        {"headers": headers, "params": {"tenant_id": "t2"}},
        {"headers": headers | {"x-tenant-id": "t1"}, "params": {"tenant_id": ["t1", "t2"]}},
        *([] if method == "GET" else [{"headers": headers, "json": {"tenant_id": "t2", "nonsense": 1}}]),
    ):
        answer = await http.request(method, path, **request)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["code"]) == (403, "foreign_tenant")
    assert world.sent == []


async def status_of(app: ASGIApp, raw_path: str) -> int:
    """What a GET of exactly this path gets: no client tidies it up."""
    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost")],
    }
    await app(scope, receive, send)
    return statuses[0]


@pytest.mark.parametrize("path", sorted({path for _, path in every_operation()} | PUBLIC_PATHS))
async def test_no_spelling_of_a_path_gets_around_the_key(gateway: Gateway, path: str) -> None:
    app = create_app(gateway)
    for variant in (
        path + "/",
        path.upper(),
        path.title(),
        "/" + path,
        path.replace("/", "//"),
        path.replace("/", "%2f"),
        path + "%2f",
        path + "%00",
        path + ";x=1",
        path + "%3bx",
        path + "/../../ready",
        path + "/%2e%2e/ready",
        "/ready/.." + path,
        "/ready;" + path,
        "/gateway/services/health/.." + path,
        path + "/ready",
        path + "#/ready",
    ):
        decoded_to_a_public_one = unquote(variant) in PUBLIC_PATHS
        if not decoded_to_a_public_one:
            assert await status_of(app, variant) in (401, 404, 405), variant


async def test_public_routes_need_none(http: httpx.AsyncClient) -> None:
    for path in PUBLIC_PATHS:
        assert (await http.get(path)).status_code == 200
    assert (await http.get("/docs")).status_code == 404
    assert (await http.get("/openapi.json")).status_code == 401


async def test_a_key_works_by_either_header(http: httpx.AsyncClient, world: World) -> None:
    headers = key(world, "gateway:runtime:read")
    for sent in (headers, bearer(headers["x-api-key"]), {"authorization": f"bearer {headers['x-api-key']}"}):
        assert (await http.get("/gateway/runtime/runs", headers=sent)).status_code == 200
    assert (await http.get("/openapi.json", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("scopes", "reads", "writes"),
    [
        ("*", 200, 201),
        ("gateway:*", 200, 201),
        ("gateway:workflows:*", 200, 201),
        ("gateway:workflows:read", 200, 403),
        ("gateway:workflows:write", 403, 201),
        ("gateway:runtime:*", 403, 403),
        ("gateway:work:*", 403, 403),
        ("platform:* act_as", 403, 403),
        ("", 403, 403),
    ],
)
async def test_scopes(http: httpx.AsyncClient, world: World, scopes: str, reads: int, writes: int) -> None:
    headers = key(world, scopes)
    assert (await http.get("/gateway/workflows/apps", headers=headers)).status_code == reads
    answer = await http.post("/gateway/workflows/apps", json={"code": "a", "name": "A"}, headers=headers)
    assert answer.status_code == writes


@pytest.mark.parametrize("status", ["disabled", "revoked", "deleted"])
async def test_only_active_keys_are_accepted(http: httpx.AsyncClient, world: World, status: str) -> None:
    answer = await http.get("/gateway/runtime/runs", headers=key(world, "*", status=status))
    assert answer.status_code == 401


async def test_the_tenant_is_the_keys(http: httpx.AsyncClient, world: World) -> None:
    headers = key(world, "*")
    answer = await http.post("/gateway/workflows/apps", json={"code": "a", "name": "A"}, headers=headers)
    assert answer.json()["tenant_id"] == "t1"
    other = key(world, "*", tenant="t2", number=2)
    mine = await http.get(f"/gateway/workflows/apps/{answer.json()['id']}", headers=other)
    random = await http.get(f"/gateway/workflows/apps/{RANDOM}", headers=other)
    assert mine.status_code == random.status_code == 404
    assert {**mine.json(), "request_id": ""} == {**random.json(), "request_id": ""}


async def test_a_change_of_a_key_takes_effect_within_five_seconds_elsewhere(world: World, settings: Settings) -> None:
    here, elsewhere = gateway_over(world, settings), gateway_over(world, settings)
    world.resolve = here.in_flight.resolve
    headers = key(world, "*")
    admin = key(world, "*", number=2)
    async with client_of(here) as first, client_of(elsewhere) as second:
        for client in (first, second):
            assert (await client.get("/gateway/runtime/runs", headers=headers)).status_code == 200
        id = headers["x-api-key"].split("_")[1]
        answer = await first.patch(f"{KEYS}/{id}/status", json={"status": "disabled"}, headers=admin)
        assert answer.json()["status"] == "disabled"
        assert (await first.get("/gateway/runtime/runs", headers=headers)).status_code == 401
        world.now += 4.9
        assert (await second.get("/gateway/runtime/runs", headers=headers)).status_code == 401
        await first.patch(f"{KEYS}/{id}/status", json={"status": "active"}, headers=admin)
        world.now += 4.9
        assert (await second.get("/gateway/runtime/runs", headers=headers)).status_code == 200


async def test_acting_as_a_user_needs_its_scope(http: httpx.AsyncClient, world: World) -> None:
    path, body = "/gateway/workflows/apps", {"code": "a", "name": "A"}
    plain = key(world, "*")
    assert (await http.post(path, json=body, headers=plain | {"x-user-id": "eve"})).status_code == 403
    acting = key(world, "* act_as", number=2)
    assert (await http.post(path, json=body, headers=acting | {"x-user-id": "eve"})).status_code == 201
    assert world.sent[-1][0].actor == "eve"
    own = key(world, "*", number=3, user_id="ada")
    for headers in (own, own | {"x-user-id": "ada"}):
        await http.patch(f"{path}/{world.sent[0][0].subject}", json={"name": "B"}, headers=headers)
        assert world.sent[-1][0].actor == "ada"


async def test_too_many_requests_of_one_key(world: World) -> None:
    settings = Settings(auth_required=True, requests_per_second_max=2)
    async with client_of(gateway_over(world, settings)) as http:
        one, two = key(world, "*"), key(world, "*", number=2)

        async def status(headers: dict[str, str]) -> int:
            return (await http.get("/gateway/runtime/runs", headers=headers)).status_code

        assert [await status(one) for _ in range(3)] == [200, 200, 429]
        assert await status(two) == 200
        world.now += 1
        assert await status(one) == 200


async def test_another_tenants_ids_answer_as_random_ones_do_in_every_operation(
    http: httpx.AsyncClient, world: World
) -> None:
    mine, other = key(world, "*"), key(world, "*", tenant="t2", number=2)
    app = await http.post("/gateway/workflows/apps", json={"code": "a", "name": "A"}, headers=mine)
    workflow = await http.post("/gateway/workflows", json={"code": "w", "name": "W"}, headers=mine)
    body = {"workflow_id": workflow.json()["id"], "dsl_json": GREET, "status": "published"}
    version = await http.post("/gateway/workflows/versions", json=body, headers=mine)
    run = await http.post("/gateway/runtime/runs", json=body | {"mode": "manual"}, headers=mine)
    assert run.status_code == 422  # The body of a version is none of a run.
    run = await http.post(
        "/gateway/runtime/runs", json={"workflow_id": body["workflow_id"], "mode": "manual"}, headers=mine
    )
    nodes = await http.get("/gateway/runtime/node-runs", params={"run_id": run.json()["id"]}, headers=mine)
    ids = [answer.json()["id"] for answer in (app, workflow, version, run)]
    ids += [nodes.json()["items"][0]["id"], mine["x-api-key"].split("_")[1], next(iter(world.outcomes))]
    events = len(world.events)

    async def told(method: str, path: str, example: Any, id: str) -> tuple[int, str]:
        url = re.sub(r"\{\w+\}", id, path)
        answer = await http.request(method, url, json=example, headers=other)
        shown = {name: value for name, value in answer.json().items() if name not in ("request_id", "command_id")}
        return answer.status_code, str(shown)

    checked = 0
    for route in ROUTES:
        if "{" in route.path:
            example = route.takes.example() if isinstance(route, Write | Action) else {}
            random = await told(route.method, route.path, example, RANDOM)
            assert random[0] == (200 if operation_id(route) == "getCommand" else 404), route.path
            for id in ids:
                assert await told(route.method, route.path, example, id) == random, route.path
                checked += 1
    assert checked >= 7 * 14
    assert len(world.events) == events
    for path in (
        "/gateway/runtime/runs",
        f"/gateway/runtime/node-runs?run_id={run.json()['id']}",
        "/gateway/workflows",
        "/gateway/workflows/apps",
    ):
        assert (await http.get(path, headers=other)).json()["items"] == []
    body = {"workflow_id": workflow.json()["id"], "dsl_json": GREET}
    for path, sent in (("/gateway/workflows/versions", body), ("/gateway/runtime/runs", {"workflow_id": ids[1]})):
        foreign = await http.post(path, json=sent, headers=other)
        random_one = await http.post(path, json=sent | {"workflow_id": RANDOM}, headers=other)
        assert (foreign.status_code, foreign.json()["detail"]) == (422, random_one.json()["detail"])


# --- making keys -----------------------------------------------------------------------------------------------


async def test_the_seeds_key_is_made_shown_once_and_revoked(http: httpx.AsyncClient, world: World) -> None:
    admin = key(world, "*")
    body = {"tenant_id": "t1", "name": "local-dev", "scopes": "gateway:agents:* gateway:runtime:read"}
    made = (await http.post(KEYS, json=body, headers=admin)).json()
    assert made["scopes"] == ["gateway:agents:*", "gateway:runtime:read"]
    fresh = {"x-tenant-id": "t1", "x-api-key": made["api_key"]}
    assert (await http.get("/gateway/runtime/runs", headers=fresh)).status_code == 200
    assert (await http.post("/gateway/workflows/apps", json={}, headers=fresh)).status_code == 403
    listed = await http.get(KEYS, headers=admin)
    assert made["id"] in listed.text
    assert made["api_key"] not in listed.text
    assert made["api_key"].encode() not in b"".join(command.encode() for _, command, _ in world.sent)
    answer = await http.patch(
        f"{KEYS}/{made['id']}/status", json={"tenant_id": "t1", "status": "revoked"}, headers=admin
    )
    assert answer.json()["status"] == "revoked"
    again = await http.patch(f"{KEYS}/{made['id']}/status", json={"status": "active"}, headers=admin)
    assert again.status_code == 409
    assert (await http.delete(f"{KEYS}/{made['id']}", headers=admin)).json()["status"] == "deleted"
    assert made["id"] not in (await http.get(KEYS, headers=admin)).text


@pytest.mark.parametrize(
    ("own", "wanted", "status"),
    [
        ("gateway:api-keys:write", ["gateway:api-keys:write"], 201),
        ("gateway:api-keys:write", ["gateway:runtime:read"], 403),
        ("gateway:api-keys:*", ["gateway:api-keys:read"], 201),
        ("gateway:api-keys:write", [], 403),
        ("*", [], 201),
        ("*", ["gateway:agents:*"], 201),
        ("*", ["act_as"], 403),
        ("*", ["platform:*"], 403),
        ("* act_as", ["act_as"], 201),
        ("gateway:*", ["*"], 403),
    ],
)
async def test_a_key_hands_on_no_more_than_it_has(
    http: httpx.AsyncClient, world: World, own: str, wanted: list[str], status: int
) -> None:
    answer = await http.post(KEYS, json={"name": "x", "scopes": wanted}, headers=key(world, own))
    assert answer.status_code == status


async def test_a_key_for_another_user_needs_act_as(http: httpx.AsyncClient, world: World) -> None:
    body = {"name": "x", "user_id": "eve"}
    assert (await http.post(KEYS, json=body, headers=key(world, "*"))).status_code == 403
    answer = await http.post(KEYS, json=body, headers=key(world, "* act_as", number=2))
    assert answer.json()["user_id"] == "eve"


async def test_only_a_platform_key_makes_keys_for_other_tenants(http: httpx.AsyncClient, world: World) -> None:
    body = {"tenant_id": "t2", "name": "x", "scopes": "gateway:runtime:read"}
    assert (await http.post(KEYS, json=body, headers=key(world, "*"))).status_code == 403
    platform = key(world, "* platform:*", number=2)
    made = await http.post(KEYS, json=body, headers=platform)
    assert (made.status_code, made.json()["tenant_id"]) == (201, "t2")
    own = await http.post(KEYS, json={"name": "y"}, headers=platform)
    assert own.json()["tenant_id"] == "t1"
    assert (await http.get(KEYS + "?tenant_id=t2", headers=platform)).status_code == 403


async def test_a_repeat_with_the_same_key_does_not_invent_a_secret(http: httpx.AsyncClient, world: World) -> None:
    headers = key(world, "*") | {"idempotency-key": "once"}
    first = await http.post(KEYS, json={"name": "x"}, headers=headers)
    second = await http.post(KEYS, json={"name": "x"}, headers=headers)
    assert first.json()["id"] == second.json()["id"]
    assert second.json()["api_key"] is None
    assert (await http.get(KEYS, headers={"x-api-key": first.json()["api_key"]})).status_code == 200


async def test_a_key_whose_outcome_is_late_is_not_lost(http: httpx.AsyncClient, world: World) -> None:
    headers = key(world, "*")
    answer = await http.post(KEYS, json={"name": "x"}, headers=headers | {"prefer": "respond-async"})
    assert answer.status_code == 202
    text = answer.json()["api_key"]
    assert (await http.get("/gateway/runtime/runs", headers={"x-api-key": text})).status_code == 200


# --- the first key ---------------------------------------------------------------------------------------------


async def test_of_many_parallel_tries_exactly_one_makes_the_first_key(http: httpx.AsyncClient, world: World) -> None:
    answers = await asyncio.gather(
        *(http.post(KEYS, json={"tenant_id": f"t{i}", "name": "first"}, headers=bearer(TOKEN)) for i in range(200))
    )
    won = [answer for answer in answers if answer.status_code == 201]
    assert len(won) == 1
    assert {answer.status_code for answer in answers} <= {201, 401, 409}
    assert sum(kind is ApiKey for kind, _ in world.tables.rows) == 1
    made = won[0].json()
    assert made["id"] == BOOTSTRAP_KEY_ID
    assert made["scopes"] == ["*", "act_as", "platform:*"]
    headers = {"x-api-key": made["api_key"]}
    assert (await http.delete(f"{KEYS}/{made['id']}", headers=headers)).status_code == 200
    answer = await http.post(KEYS, json={"name": "second"}, headers=bearer(TOKEN))
    assert answer.status_code == 401, "deleting keys never opens it again"


async def test_tries_that_pass_the_look_together_still_meet_at_one_aggregate(
    world: World, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = gateway_over(world, settings)
    world.workers_up = False
    async with client_of(gateway) as http:
        calls = [
            asyncio.create_task(http.post(KEYS, json={"name": f"k{i}"}, headers=bearer(TOKEN) | {"prefer": "wait=5"}))
            for i in range(20)
        ]
        for _ in calls:
            envelope, command = await world.arrivals.get()
            world.resolve(world.handle(envelope, command))
        statuses = sorted([(await call).status_code for call in calls])
    assert statuses == [201] + [409] * 19


async def test_the_first_key_has_the_scopes_it_asks_for(http: httpx.AsyncClient) -> None:
    body = {"tenant_id": "t1", "name": "x", "scopes": ["gateway:runtime:read"]}
    answer = await http.post(KEYS, json=body, headers=bearer(TOKEN))
    assert (answer.status_code, answer.json()["scopes"]) == (201, ["gateway:runtime:read"])


async def test_the_bootstrap_token_opens_nothing_else(http: httpx.AsyncClient) -> None:
    for method, path in every_operation():
        if (method, path) != ("POST", KEYS):
            assert (await http.request(method, path, headers=bearer(TOKEN))).status_code == 401


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), bearer("")])
async def test_without_the_token_there_is_no_first_key(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert (await http.post(KEYS, json={"name": "x"}, headers=headers)).status_code == 401


async def test_an_open_bootstrap_needs_no_token_once(world: World) -> None:
    gateway = gateway_over(world, Settings(auth_required=True, bootstrap_open=True))
    async with client_of(gateway) as http:
        body = {"tenant_id": "t1", "name": "x"}
        assert (await http.post(KEYS, json=body)).status_code == 201
        assert (await http.post(KEYS, json=body)).status_code == 401


# --- with authentication off -----------------------------------------------------------------------------------


@pytest.fixture
async def local(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(gateway_over(world, Settings())) as client:
        yield client


async def test_with_authentication_off_the_tenant_is_what_is_named_else_public(local: httpx.AsyncClient) -> None:
    path, body = "/gateway/workflows/apps", {"code": "a", "name": "A"}

    async def tenant(**request: Any) -> str:
        request.setdefault("json", body)
        return str((await local.post(path, **request)).json()["tenant_id"])

    assert await tenant(headers={"x-tenant-id": "t1"}) == "t1"
    assert await tenant(params={"tenant_id": "t2"}) == "t2"
    assert await tenant(json=body | {"tenant_id": "t3"}) == "t3"
    assert await tenant() == "public"
    answer = await local.post(path, json=body | {"tenant_id": "t3"}, headers={"x-tenant-id": "t1"})
    assert answer.status_code == 403


async def test_with_authentication_off_a_call_by_id_takes_its_objects_tenant(local: httpx.AsyncClient) -> None:
    made = await local.post("/gateway/workflows/apps", json={"tenant_id": "t1", "code": "a", "name": "A"})
    path = f"/gateway/workflows/apps/{made.json()['id']}"
    assert (await local.get(path)).json()["tenant_id"] == "t1"
    assert (await local.patch(path, json={"name": "B"})).json()["name"] == "B"
    assert (await local.get(path, headers={"x-tenant-id": "t2"})).status_code == 404
    assert (await local.patch(path, json={"name": "C", "tenant_id": "t2"})).status_code == 404


async def test_with_authentication_off_a_credential_is_ignored(local: httpx.AsyncClient) -> None:
    assert (await local.get("/gateway/runtime/runs", headers=bearer("nonsense"))).status_code == 200


# --- the rules themselves --------------------------------------------------------------------------------------


def test_a_route_without_a_permission_stops_the_start(world: World) -> None:
    check_permissions(ROUTES)
    for permission in ("", "public", "gateway:things", "gateway:things:delete"):
        with pytest.raises(ValueError, match="declares no permission"):
            check_permissions([Query("/gateway/things", get_readiness, permission, ReadinessView)])


def test_roles_that_do_not_exist_yet_cannot_be_required(world: World) -> None:
    with pytest.raises(ValueError, match="AUTHZ_REQUIRED"):
        create_app(gateway_over(world, Settings(auth_required=True, authz_required=True)))
