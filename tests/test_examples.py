"""What the documentation shows works as written, and so do the bodies that users of the API know."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from infra.local import demo
from infra.local.embedded import EmbeddedStack
from schemas.runtime import RUN_ENDED
from tests.gateway.test_server import gateway
from tests.live import prepared, running, until
from tests.readme import README, with_tables

live = [pytest.mark.services, pytest.mark.asyncio(loop_scope="module")]
TENANT = {"tenant_id": "t1"}


def marked(test: Any) -> Any:
    for mark in live:
        test = mark(test)
    return test


# --- README --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """Requests shown one after the other, and what the last one's answer is said to contain."""

    requests: tuple[httpx.Request, ...]
    answer: Any


BLOCK = re.compile(r"^```(sh|json)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shown_in(text: str) -> Iterator[Shown]:
    blocks = [(kind, body) for kind, body in BLOCK.findall(text) if kind == "json" or "curl" in body]
    for at, (kind, body) in enumerate(blocks):
        if kind == "sh":
            answered = blocks[at + 1] if at + 1 < len(blocks) else ("", "")
            answer = json.loads(answered[1]) if answered[0] == "json" else None
            yield Shown(tuple(requests_of(body)), answer)


def requests_of(script: str) -> Iterator[httpx.Request]:
    """The requests that a script's curl calls make."""
    words = shlex.split(script.replace("\\\n", " "))
    starts = [at for at, word in enumerate(words) if word == "curl"]
    for begin, end in itertools.pairwise([*starts, len(words)]):
        yield request_of(words[begin + 1 : end])


def request_of(words: Sequence[str]) -> httpx.Request:
    headers, body, url = {}, None, ""
    rest = iter(words)
    for word in rest:
        if word == "-H":
            name, _, value = next(rest).partition(": ")
            headers[name] = value
        elif word == "--json":
            body = next(rest)
            headers["Content-Type"] = "application/json"
        elif word != "-s":
            url = word
    method = "GET" if body is None else "POST"
    return httpx.Request(method, f"http://{url}", headers=headers, content=body and body.encode())


def contains(whole: Any, part: Any) -> bool:
    """Whether all that is shown is in what was answered: objects by their fields, lists item by item."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            name in whole and contains(whole[name], value) for name, value in part.items()
        )
    if isinstance(part, list):
        return len(whole) == len(part) and all(map(contains, whole, part))
    return bool(whole == part)


def test_a_shown_request_is_read_as_a_shell_would() -> None:
    (request,) = requests_of(
        "curl -s --json '{\"a\": \"b c\"}' \\\n  localhost:8000/gateway/x -H 'Idempotency-Key: k'\n"
    )
    assert (request.method, str(request.url)) == ("POST", "http://localhost:8000/gateway/x")
    assert json.loads(request.content) == {"a": "b c"}
    assert request.headers["idempotency-key"] == "k"


def test_a_shown_answer_must_be_there() -> None:
    assert contains({"a": 1, "b": [{"c": 2, "d": 3}]}, {"b": [{"c": 2}]})
    assert not contains({"a": 1}, {"a": 2})
    assert not contains({"a": []}, {"a": [{}]})


def test_the_tables_of_the_readme_say_what_the_code_says() -> None:
    text = README.read_text("utf-8")
    assert text == with_tables(text), "`make readme` writes them anew"


# --- the platform --------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(services: EmbeddedStack) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway with a worker behind it."""
    async with (
        prepared(services, "examples", gateway_port=0, outcome_wait_seconds=30) as settings,
        running(settings),
        gateway(settings) as serving,
    ):
        yield serving.http


async def post(http: httpx.AsyncClient, path: str, body: Any) -> Any:
    response = await http.post(f"/gateway{path}", json=body)
    assert response.status_code in (200, 201), response.text
    return response.json()


async def get(http: httpx.AsyncClient, path: str) -> Any:
    response = await http.get(f"/gateway{path}")
    assert response.status_code == 200, response.text
    return response.json()


async def ended(http: httpx.AsyncClient, run_id: str) -> Any:
    async def look() -> Any:
        run = await get(http, f"/runtime/runs/{run_id}")
        return run if run["status"] in RUN_ENDED else None

    return await until(look)


async def workflow(http: httpx.AsyncClient, nodes: Sequence[Any], edges: Sequence[Any]) -> str:
    """A fresh workflow with this graph published: its id."""
    made = await post(http, "/workflows", {**TENANT, "code": f"w-{uuid.uuid4()}", "name": "W"})
    dsl = {"nodes": list(nodes), "edges": list(edges)}
    body = {**TENANT, "workflow_id": made["id"], "dsl_json": dsl, "status": "published"}
    version = await post(http, "/workflows/versions", body)
    assert version["status"] == "published", version
    return str(made["id"])


async def run_of(http: httpx.AsyncClient, workflow_id: str, **inputs: Any) -> Any:
    run = await post(http, "/runtime/runs", {**TENANT, "workflow_id": workflow_id, "inputs": inputs})
    return await ended(http, run["id"])


async def node_runs(http: httpx.AsyncClient, run_id: str, **filters: Any) -> list[Any]:
    query = "&".join(f"{name}={value}" for name, value in {"run_id": run_id, "limit": 200, **filters}.items())
    page = await get(http, f"/runtime/node-runs?tenant_id=t1&{query}")
    return list(page["items"])


@marked
async def test_the_readmes_requests_are_answered_as_it_shows(http: httpx.AsyncClient) -> None:
    shown = list(shown_in(README.read_text("utf-8")))
    assert len(shown) >= 6
    for each in shown:
        answers = []
        for request in each.requests:
            request.url = http.base_url.join(request.url.raw_path.decode())
            response = await http.send(request)
            answers.append(response.json())
            if "id" in answers[-1] and request.url.path.endswith("/runtime/runs"):
                manual = answers[-1]["mode"] == "manual"
                assert manual or await ended(http, answers[-1]["id"])
        if each.answer is not None:
            assert contains(answers[-1], each.answer), (each.requests[-1].url, answers[-1])


@marked
async def test_every_ticket_of_the_guided_example_goes_where_a_person_would_send_it(http: httpx.AsyncClient) -> None:
    triage = json.loads((demo.EXAMPLES / "triage.json").read_text("utf-8"))
    id = await workflow(http, triage["nodes"], triage["edges"])
    for ticket in demo.read_tickets(40):
        run = await run_of(http, id, **ticket.inputs)
        assert run["status"] == "completed", run
        assert contains(run["output_json"], ticket.expected), (ticket, run["output_json"])


# --- bodies that users of the API know -----------------------------------------------------------------------

SEED_STATE = {"id": "seed-state", "type": "assigner", "config": {"assignments": {"score": 7, "user_name": "Alice"}}}
CHECK_SCORE = {"id": "check-score", "type": "if-else", "config": {"expression": "state.score >= 5"}}
CONDITIONAL_EDGES = [
    {"source": "check-score", "target": "high-path", "condition": "true"},
    {"source": "check-score", "target": "low-path", "condition": "false"},
]
HIGH_PATH = {
    "id": "high-path",
    "type": "template-transform",
    "config": {"template": "{{state.user_name}} passed with score {{state.score}}"},
}
LOW_PATH = {"id": "low-path", "type": "answer", "config": {"text": "too low"}}
JOIN_RESULTS = {"id": "join-results", "type": "join", "config": {"join_policy": "all_completed"}}
COMPUTE_SUMMARY = {
    "id": "compute-summary",
    "type": "code",
    "config": {
        "language": "python",
        "timeout_seconds": 5,
        "input_json": {"numbers": [1, 2, 3, 4]},
        "code": "total = sum(payload['numbers'])\n"
        "result = {'total': total, 'count': len(payload['numbers'])}\n"
        "print(f'total={total}')",
    },
}
POLL_STATUS = {
    "id": "poll-status",
    "type": "tool",
    "config": {
        "allow_loop": True,
        "max_iterations": 5,
        "timeout_seconds": 30,
        "retry_policy": {"max_attempts": 3, "retry_delay_seconds": 2},
    },
}
CHARGE_CARD = {"id": "charge-card", "type": "tool", "config": {"compensation_node_id": "refund-card"}}
SCORED = ([SEED_STATE, CHECK_SCORE, HIGH_PATH, LOW_PATH], [{"source": "seed-state", "target": "check-score"}])


@marked
async def test_definitions(http: httpx.AsyncClient) -> None:
    body = {"tenant_id": "t1", "code": "sales_helper", "name": "Sales Assistant"}
    app = await post(http, "/workflows/apps", body)
    assert contains(app, body)
    flow = await post(http, "/workflows", {**TENANT, "app_id": app["id"], "code": "销售", "name": "销售助手"})
    draft = await post(
        http, "/workflows/versions", {**TENANT, "workflow_id": flow["id"], "dsl_json": {"nodes": [], "edges": []}}
    )
    assert (draft["status"], draft["dsl_json"]) == ("draft", {"nodes": [], "edges": []})
    assert draft["problems"]
    refused = await http.post(f"/gateway/workflows/versions/{draft['id']}/publish", json={})
    assert refused.status_code == 422
    assert (await get(http, f"/workflows/{flow['id']}?tenant_id=t1"))["name"] == "销售助手"


@marked
async def test_assigner_condition_and_template(http: httpx.AsyncClient) -> None:
    nodes, edges = SCORED
    run = await run_of(http, await workflow(http, nodes, [*edges, *CONDITIONAL_EDGES]))
    assert (run["status"], run["state_json"]) == ("completed", {"score": 7, "user_name": "Alice"})
    found = {node["node_id"]: node for node in await node_runs(http, run["id"])}
    assert contains(found["seed-state"]["output_json"], {"state_updates": {"score": 7, "user_name": "Alice"}})
    assert found["check-score"]["output_json"] == {"condition_result": True, "route": "true"}
    assert found["high-path"]["output_text"] == "Alice passed with score 7"
    assert found["low-path"]["status"] == "skipped"


@marked
async def test_code_beside_a_branch_and_a_join(http: httpx.AsyncClient) -> None:
    nodes, edges = SCORED
    graph_edges = [
        *edges,
        *CONDITIONAL_EDGES,
        {"source": "seed-state", "target": "compute-summary"},
        {"source": "high-path", "target": "join-results"},
        {"source": "compute-summary", "target": "join-results"},
    ]
    run = await run_of(http, await workflow(http, [*nodes, COMPUTE_SUMMARY, JOIN_RESULTS], graph_edges))
    assert run["status"] == "completed", run
    (summary,) = await node_runs(http, run["id"], node_id="compute-summary")
    assert summary["output_json"]["result_json"] == {"total": 10, "count": 4}
    assert summary["output_text"].strip() == "total=10"
    (joined,) = await node_runs(http, run["id"], node_id="join-results")
    assert joined["seq"] > summary["seq"]


@marked
async def test_the_template_context(http: httpx.AsyncClient) -> None:
    template = (
        "{{state.user_name}}|{{nodes.compute-summary.output.result_json.count}}|{{nodes.compute-summary.text}}"
        "|{{current.node_id}}|{{state.nothing}}|"
    )
    render = {"id": "render-answer", "type": "template-transform", "config": {"template": template}}
    edges = [
        {"source": "seed-state", "target": "compute-summary"},
        {"source": "compute-summary", "target": "render-answer"},
    ]
    run = await run_of(http, await workflow(http, [SEED_STATE, COMPUTE_SUMMARY, render], edges))
    (rendered,) = await node_runs(http, run["id"], node_id="render-answer")
    assert rendered["output_text"] == "Alice|4|total=10\n|render-answer||"


@marked
async def test_configs_of_loops_retries_and_compensations_are_accepted_on_every_type(http: httpx.AsyncClient) -> None:
    refund = {"id": "refund-card", "type": "tool", "config": {}}
    again = {"id": "again", "type": "if-else", "config": {"expression": "nodes.poll-status.output.status != 'done'"}}
    edges = [
        {"source": "seed-state", "target": "poll-status"},
        {"source": "poll-status", "target": "again"},
        {"source": "again", "target": "poll-status", "condition": "true"},
        {"source": "again", "target": "charge-card", "condition": "false"},
    ]
    id = await workflow(http, [SEED_STATE, POLL_STATUS, again, CHARGE_CARD, refund], edges)
    assert id


@marked
async def test_a_loop_goes_round_until_its_condition_says_no(http: httpx.AsyncClient) -> None:
    poll = {
        "id": "poll-status",
        "type": "code",
        "config": {
            **POLL_STATUS["config"],  # type: ignore[dict-item]
            "input_json": {"tries": "{{state.tries}}"},
            "code": "result = {'tries': payload['tries'] + 1}",
        },
    }
    count = {
        "id": "count",
        "type": "assigner",
        "config": {"assignments": {"tries": "{{nodes.poll-status.output.result_json.tries}}"}},
    }
    begin = {"id": "begin", "type": "assigner", "config": {"assignments": {"tries": 0}}}
    again = {"id": "again", "type": "if-else", "config": {"expression": "state.tries < inputs.enough"}}
    done = {"id": "done", "type": "answer", "config": {"template": "{{state.tries}} 次"}}
    edges = [
        {"source": "begin", "target": "poll-status"},
        {"source": "poll-status", "target": "count"},
        {"source": "count", "target": "again"},
        {"source": "again", "target": "poll-status", "condition": "true"},
        {"source": "again", "target": "done", "condition": "false"},
    ]
    id = await workflow(http, [begin, poll, count, again, done], edges)
    run = await run_of(http, id, enough=3)
    assert (run["status"], run["output_text"]) == ("completed", "3 次")
    assert [node["iteration"] for node in await node_runs(http, run["id"], node_id="poll-status")] == ["1", "2", "3"]
    run = await run_of(http, id, enough=9)
    assert (run["status"], run["error"]["code"]) == ("failed", "max_iterations_exceeded")


@marked
async def test_a_failing_node_is_tried_again_and_then_made_up_for(http: httpx.AsyncClient) -> None:
    policy = {"max_attempts": 3, "retry_delay_seconds": 0.1}
    charge = {
        "id": "charge-card",
        "type": "code",
        "config": {
            "code": "raise ValueError('declined')",
            "retry_policy": policy,
            "compensation_node_id": "refund-card",
        },
    }
    refund = {"id": "refund-card", "type": "template-transform", "config": {"template": "已退款"}}
    id = await workflow(http, [SEED_STATE, charge, refund], [{"source": "seed-state", "target": "charge-card"}])
    run = await run_of(http, id)
    assert run["status"] == "compensated", run
    found = {node["path"]: node for node in await node_runs(http, run["id"])}
    assert (found["charge-card"]["status"], found["charge-card"]["attempt"]) == ("failed", 3)
    assert "declined" in found["charge-card"]["error"]["message"]
    assert found["charge-card/refund-card"]["output_text"] == "已退款"


@marked
async def test_a_manual_run_by_the_calls_of_a_worker(http: httpx.AsyncClient) -> None:
    nodes, edges = SCORED
    id = await workflow(http, nodes, [*edges, *CONDITIONAL_EDGES])
    start = {**TENANT, "workflow_id": id, "mode": "manual", "session_id": "sess-1", "app_id": "app-1"}
    run = await post(http, "/runtime/runs", start)
    assert run["status"] in ("queued", "running")
    path = f"/runtime/runs/{run['id']}"
    await post(http, f"{path}/execute-next?tenant_id=t1", {"worker_key": "runtime-worker-1"})
    (first,) = await node_runs(http, run["id"], status="completed")
    assert first["node_id"] == "seed-state"
    (queued,) = await node_runs(http, run["id"], status="queued")
    await post(http, f"/runtime/node-runs/{queued['id']}/execute", {"worker_key": "runtime-worker-1"})
    assert {node["node_id"] for node in await node_runs(http, run["id"], status="completed")} == {
        "seed-state",
        "check-score",
    }
    await post(http, f"{path}/execute?tenant_id=t1", {"worker_key": "runtime-worker-1", "max_steps": 16})
    assert (await get(http, path))["status"] == "completed"

    run = await post(http, "/runtime/runs", start)
    claimed = await post(http, "/runtime/workers/execute-next", {"worker_key": "worker-1", "lease_seconds": 300})
    assert claimed["run_id"] == run["id"]
    node = (await node_runs(http, run["id"], status="queued"))[0]
    for status in ("running", "completed"):
        body = {"status": status, "worker_key": "runtime-worker-1"}
        shown = await post(http, f"/runtime/node-runs/{node['id']}/status", body)
        assert shown["status"] == status
    assert (await post(http, f"/runtime/runs/{run['id']}/status", {"status": "completed"}))["status"] == "completed"


@marked
async def test_a_run_that_begins_in_the_middle(http: httpx.AsyncClient) -> None:
    nodes, edges = SCORED
    id = await workflow(http, [*nodes, COMPUTE_SUMMARY], [*edges, *CONDITIONAL_EDGES])
    start = {**TENANT, "workflow_id": id, "initial_node": {"node_id": "low-path", "node_type": "answer"}}
    run = await ended(http, (await post(http, "/runtime/runs", start))["id"])
    assert (run["status"], run["output_text"]) == ("completed", "too low")
    other = {**TENANT, "workflow_id": id, "initial_node": {"node_id": "low-path", "node_type": "llm"}}
    assert (await http.post("/gateway/runtime/runs", json=other)).status_code == 422


@marked
async def test_node_types_that_cannot_run_yet_say_so(http: httpx.AsyncClient) -> None:
    draft = {"id": "draft-answer", "type": "llm", "config": {"prompt": "Summarize the user intent in Chinese."}}
    run = await run_of(
        http, await workflow(http, [SEED_STATE, draft], [{"source": "seed-state", "target": draft["id"]}])
    )
    assert (run["status"], run["error"]["code"]) == ("failed", "node_type_unavailable")


@marked
async def test_the_gateways_own_calls(http: httpx.AsyncClient) -> None:
    assert (await http.get("/ready")).status_code == 200
    assert (await get(http, "/services/health"))["services"]["kafka"] == "up"
    headers = {"x-tenant-id": "t1", "x-request-id": "asked-by-me"}
    audits = await http.get("/gateway/audits?tenant_id=t1&limit=20", headers=headers)
    assert audits.headers["x-request-id"] == "asked-by-me"
    assert audits.json()["items"]
    assert (await http.get("/gateway/audits/stats?tenant_id=t1", headers=headers)).json()["requests"] > 0
    key = await post(http, "/api-keys", {**TENANT, "name": "local", "scopes": "gateway:agents:* gateway:runtime:read"})
    assert key["api_key"].startswith("ap_")
    revoke = {**TENANT, "status": "revoked"}
    revoked = await http.patch(f"/gateway/api-keys/{key['id']}/status", json=revoke, headers={"x-tenant-id": "t1"})
    assert (revoked.status_code, revoked.json()["status"]) == (200, "revoked")
