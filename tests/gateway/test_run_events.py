"""The events of a run, by page."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from outbox.tombstones import Tombstone
from projections.runtime import Run
from tests.gateway.test_runtime import CHAIN, started, workflow
from tests.gateway.test_workflows import RANDOM
from tests.gateway.world import World


def path_of(run: dict[str, Any]) -> str:
    return f"/gateway/runtime/runs/{run['id']}/events"


async def page(http: httpx.AsyncClient, run: dict[str, Any], **params: Any) -> dict[str, Any]:
    answer = await http.get(path_of(run), params=params)
    assert answer.status_code == 200, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def test_they_are_all_there_in_order_and_of_this_run_only(http: httpx.AsyncClient, world: World) -> None:
    workflow_id = await workflow(http, CHAIN)
    run = await started(http, workflow_id, inputs={"客户": "李雷"})
    await started(http, workflow_id)
    shown = await page(http, run)
    items = shown["items"]
    assert shown["next_cursor"] is None
    assert [each["seq"] for each in items] == list(range(1, run["seq"] + 1))
    assert (items[0]["type"], items[-1]["type"]) == ("runtime.run_created", "runtime.run_completed")
    assert items[0]["data"]["inputs"] == {"客户": "李雷"}
    nodes = (await http.get("/gateway/runtime/node-runs", params={"run_id": run["id"]})).json()["items"]
    assert [each["node_run_id"] for each in items if each["node_run_id"]] == [node["id"] for node in nodes]
    assert {each["run_id"] for each in items} == {run["id"]}


async def test_pages_follow_each_other_by_cursor_and_begin_behind_any_seq(http: httpx.AsyncClient) -> None:
    run = await started(http, await workflow(http, CHAIN))
    everything = (await page(http, run))["items"]
    found: list[Any] = []
    params: dict[str, Any] = {"limit": 2}
    while True:
        shown = await page(http, run, **params)
        found += shown["items"]
        if shown["next_cursor"] is None:
            break
        assert len(shown["items"]) == 2
        params["cursor"] = shown["next_cursor"]
    assert found == everything
    for seq in range(len(everything) + 2):
        assert (await page(http, run, after=seq))["items"] == everything[seq:]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("after=x", "/query/after"),
        ("after=-1", "/query/after"),
        ("after=1&after=2", "/query/after"),
        ("cursor=WzFd&after=2", "/query/after"),
        ("cursor=WyJhIl0", "/query/cursor"),
        ("run_id=1", "/query/run_id"),
        ("type=x", "/query/type"),
    ],
)
async def test_what_is_no_place_is_refused(http: httpx.AsyncClient, query: str, pointer: str) -> None:
    run = await started(http, await workflow(http, CHAIN))
    answer = await http.get(f"{path_of(run)}?{query}")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


async def test_they_are_their_tenants(http: httpx.AsyncClient, world: World) -> None:
    run = await started(http, await workflow(http, CHAIN, tenant_id="t1"), tenant_id="t1")
    assert len((await page(http, run, tenant_id="t1"))["items"]) == run["seq"]
    assert (await http.get(path_of(run), params={"tenant_id": "t2"})).status_code == 404
    assert (await http.get(path_of({"id": RANDOM}))).status_code == 404
    del world.tables.rows[Run, run["id"]]
    world.tables.rows[Tombstone, run["id"]] = Tombstone(run["id"], "t1", "run", "completed", 9, 1.0, 2.0)
    assert (await http.get(path_of(run), params={"tenant_id": "t1"})).status_code == 410
    assert (await http.get(path_of(run), params={"tenant_id": "t2"})).status_code == 404
