"""Human tasks over HTTP: the seed's requests as they are written, and who a request speaks for."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gateway.http.state import Gateway
from infra.settings import Settings
from schemas.human import RESPONSE_BYTES_MAX, CreateTask
from schemas.runtime import VALUE_BYTES_MAX
from tests.gateway.test_identity import key
from tests.gateway.world import World, client_of, gateway_over

TASKS = "/gateway/human/tasks"
RANDOM = "7d444840-9dc0-41d1-b245-5ffdce74fad2"
SEED: dict[str, Any] = {
    "tenant_id": "t1",
    "task_type": "approval",
    "title": "Approve refund",
    "run_id": "run-id",
    "node_run_id": "node-run-id",
    "assigned_to": "ops-1",
    "request_payload_json": {"amount": 99},
}
CLAIM = {"tenant_id": "t1", "claimed_by": "ops-1"}
COMPLETE = {"tenant_id": "t1", "status": "approved", "response_payload_json": {"approved": True}}


async def made(http: httpx.AsyncClient, body: dict[str, Any] = SEED, **more: Any) -> dict[str, Any]:
    answer = await http.post(TASKS, json=body | more)
    assert answer.status_code == 201, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def told(http: httpx.AsyncClient, task: dict[str, Any], verb: str, **request: Any) -> httpx.Response:
    return await http.post(f"{TASKS}/{task['id']}/{verb}", **request)


# --- the seed -----------------------------------------------------------------------------------------------------


async def test_the_seeds_task_is_made_claimed_and_completed(http: httpx.AsyncClient, world: World) -> None:
    task = await made(http)
    envelope, command, _ = world.sent[0]
    assert isinstance(command, CreateTask)
    assert (task["id"], task["tenant_id"], task["status"]) == (envelope.id, "t1", "open")
    assert {name: task[name] for name in SEED} == SEED
    claimed = (await told(http, task, "claim", json=CLAIM)).json()
    assert (claimed["status"], claimed["claimed_by"]) == ("claimed", "ops-1")
    answer = await told(http, task, "complete", json=COMPLETE)
    assert (answer.status_code, answer.json()["status"]) == (200, "approved")
    assert (answer.json()["completed_by"], answer.json()["response_payload_json"]) == ("ops-1", {"approved": True})
    assert (await told(http, task, "complete", json=COMPLETE)).json() == answer.json()
    assert (await http.get(f"{TASKS}/{task['id']}", params={"tenant_id": "t1"})).json() == answer.json()
    other = await told(http, task, "complete", json=COMPLETE | {"status": "rejected"})
    assert (other.status_code, other.json()["code"]) == (409, "task_already_completed")


async def test_a_call_by_id_needs_no_tenant(http: httpx.AsyncClient) -> None:
    task = await made(http)
    assert (await told(http, task, "claim", json={"claimed_by": "ops-1"})).json()["status"] == "claimed"
    assert (await told(http, task, "release")).json()["status"] == "open"


async def test_everything_that_a_task_may_be_given_is_shown(http: httpx.AsyncClient) -> None:
    given = {
        "description": "超过额度",
        "require_claim": True,
        "require_hash": True,
        "four_eyes": True,
        "timeout_seconds": 60,
        "on_timeout": "escalate",
        "escalate_to": "boss",
        "default_output": {"approved": False},
    }
    task = await made(http, SEED, title="批准退款", request_payload_json={"金额": [99, None]}, **given)
    assert {name: task[name] for name in given} == given
    assert (task["title"], task["request_payload_json"]) == ("批准退款", {"金额": [99, None]})
    assert task["due_at"] is not None
    listed = (await http.get(TASKS, params={"tenant_id": "t1"})).json()["items"]
    assert listed == [task]


async def test_a_task_is_handed_on_released_and_cancelled(http: httpx.AsyncClient) -> None:
    task = await made(http)
    shown = (await told(http, task, "assign", json={"assigned_to": "ops-2"})).json()
    assert shown["assigned_to"] == "ops-2"
    for _ in range(2):
        answer = await told(http, task, "cancel", json={"tenant_id": "t1", "reason": "不需要了"})
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        assert answer.json()["cancel_reason"] == "不需要了"
    late = await told(http, task, "complete", json=COMPLETE)
    assert (late.status_code, late.json()["code"]) == (409, "task_cancelled")


async def test_tasks_are_found_by_what_they_are(http: httpx.AsyncClient) -> None:
    first = await made(http)
    second = await made(http, {"title": "Name?", "task_type": "input", "tenant_id": "t1"})
    await told(http, first, "claim", json=CLAIM)
    for params, expected in (
        ({}, [second, first]),
        ({"status": "open"}, [second]),
        ({"status": "claimed"}, [first]),
        ({"assigned_to": "ops-1"}, [first]),
        ({"assigned_to": "ops-1", "status": "open"}, []),
        ({"task_type": "input"}, [second]),
        ({"run_id": "run-id"}, [first]),
        ({"node_run_id": "node-run-id"}, [first]),
        ({"claimed_by": "ops-1"}, [first]),
    ):
        answer = await http.get(TASKS, params={"tenant_id": "t1", **params})
        assert [item["id"] for item in answer.json()["items"]] == [task["id"] for task in expected], params
    assert (await http.get(TASKS, params={"tenant_id": "t2"})).json()["items"] == []
    assert (await http.get(TASKS, params={"status": "asleep"})).status_code == 422


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"task_type": "approval"}, "/title"),
        (SEED | {"task_type": "guess"}, "/task_type"),
        (SEED | {"request_payload_json": "x" * VALUE_BYTES_MAX}, "/request_payload_json"),
        (SEED | {"default_output": {"x": "早" * (VALUE_BYTES_MAX // 3)}}, "/default_output"),
        (SEED | {"on_timeout": "escalate"}, "/escalate_to"),
        (SEED | {"on_timeout": "default"}, "/default_output"),
        (SEED | {"timeout_seconds": 0}, "/timeout_seconds"),
        (SEED | {"task_id": RANDOM}, "/task_id"),
        (SEED | {"answer_to": "runtime/a/b/c"}, "/answer_to"),
        (SEED | {"requested_by": "ada"}, "/requested_by"),
    ],
)
async def test_what_is_wrong_with_a_new_task_is_named(
    http: httpx.AsyncClient, body: dict[str, Any], pointer: str
) -> None:
    answer = await http.post(TASKS, json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/status"),
        ({"status": "completed"}, "/status"),
        ({"status": "expired"}, "/status"),
        ({"status": "approved", "response_payload_json": "x" * RESPONSE_BYTES_MAX}, "/response_payload_json"),
        ({"status": "approved", "shown_hash": "0"}, "/shown_hash"),
        ({"status": "approved"}, "/shown_hash"),
    ],
)
async def test_what_is_wrong_with_an_answer_is_named(
    http: httpx.AsyncClient, body: dict[str, Any], pointer: str
) -> None:
    task = await made(http, SEED, require_hash=True)
    answer = await told(http, task, "complete", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)
    good = {"status": "approved", "shown_hash": task["request_hash"]}
    assert (await told(http, task, "complete", json=good)).status_code == 200


@pytest.mark.parametrize("verb", ["claim", "release", "assign", "complete", "cancel", ""])
async def test_another_tenants_task_is_as_unknown_as_a_random_one(http: httpx.AsyncClient, verb: str) -> None:
    task = await made(http)
    bodies = {"claim": CLAIM, "assign": {"assigned_to": "x"}, "complete": {"status": "approved"}}
    body = {**bodies.get(verb, {}), "tenant_id": "t2"}
    answers = []
    for id in (task["id"], RANDOM):
        request = {"params": {"tenant_id": "t2"}} if not verb else {"json": body}
        path = f"{TASKS}/{id}/{verb}" if verb else f"{TASKS}/{id}"
        answer = await http.request("POST" if verb else "GET", path, **request)  # type: ignore[arg-type]
        assert answer.status_code == 404
        answers.append({name: answer.json()[name] for name in ("title", "code", "detail")})
    assert answers[0] == answers[1]


# --- who a request speaks for -------------------------------------------------------------------------------------


def with_credentials(world: World) -> Gateway:
    return gateway_over(world, Settings(auth_required=True, outcome_wait_seconds=0.2))


async def test_with_credentials_the_user_is_theirs(world: World) -> None:
    ops = key(world, "gateway:human:*", number=1, user_id="ops-1")
    other = key(world, "gateway:human:*", number=2, user_id="ops-2")
    nobody = key(world, "gateway:human:*", number=3)
    acting = key(world, "gateway:human:* act_as", number=4) | {"x-user-id": "ops-1"}
    async with client_of(with_credentials(world)) as http:
        task = (await http.post(TASKS, json=SEED, headers=other)).json()
        assert task["requested_by"] == "ops-2"
        for headers, body, status, code in (
            (other, CLAIM, 403, "foreign_user"),
            (nobody, CLAIM, 403, "foreign_user"),
            (other, {}, 403, "assigned_to_other"),
            (nobody, {}, 403, "assigned_to_other"),
        ):
            answer = await told(http, task, "claim", json=body, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (status, code)
        for headers, body in ((ops, CLAIM), (acting, CLAIM), (ops, {})):
            answer = await told(http, task, "claim", json=body, headers=headers)
            assert (answer.status_code, answer.json()["claimed_by"]) == (200, "ops-1")
        answer = await told(http, task, "assign", json={"assigned_to": "ops-2"}, headers=other)
        assert answer.json()["code"] == "assigned_to_other"
        answer = await told(http, task, "complete", json=COMPLETE, headers=other)
        assert answer.json()["code"] == "assigned_to_other"
        answer = await told(http, task, "complete", json=COMPLETE, headers=ops)
        assert (answer.status_code, answer.json()["completed_by"]) == (200, "ops-1")


async def test_four_eyes_are_two_users(world: World) -> None:
    ada = key(world, "gateway:human:*", number=1, user_id="ada")
    ops = key(world, "gateway:human:*", number=2, user_id="ops-1")
    nobody = key(world, "gateway:human:*", number=3)
    async with client_of(with_credentials(world)) as http:
        body = {"task_type": "approval", "title": "批准退款", "four_eyes": True}
        task = (await http.post(TASKS, json=body, headers=ada)).json()
        for headers in (ada, nobody):
            answer = await told(http, task, "complete", json=COMPLETE, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "four_eyes")
        assert (await told(http, task, "complete", json=COMPLETE, headers=ops)).status_code == 200


async def test_without_credentials_the_header_says_who_it_is_and_a_body_may_not_differ(http: httpx.AsyncClient) -> None:
    task = await made(http)
    answer = await told(http, task, "claim", json=CLAIM, headers={"x-user-id": "ops-2"})
    assert (answer.status_code, answer.json()["code"]) == (403, "foreign_user")
    answer = await told(http, task, "claim", json={"tenant_id": "t1"}, headers={"x-user-id": "ops-1"})
    assert answer.json()["claimed_by"] == "ops-1"
    answer = await told(http, task, "complete", json=COMPLETE, headers={"x-user-id": "ops-2"})
    assert answer.json()["code"] == "assigned_to_other"
