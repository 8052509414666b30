"""Lists: pages that neither repeat nor skip, filters, and what is refused."""

from __future__ import annotations

import base64
from itertools import chain
from typing import Any

import httpx
import orjson
import pytest

APPS = "/gateway/workflows/apps"


async def apps(http: httpx.AsyncClient, count: int, tenant: str = "public") -> list[str]:
    ids = []
    for number in range(count):
        body = {"tenant_id": tenant, "code": f"a{number}", "name": "x"}
        ids.append((await http.post(APPS, json=body)).json()["id"])
    return ids


async def pages(http: httpx.AsyncClient, **params: Any) -> list[list[str]]:
    found: list[list[str]] = []
    while True:
        answer = await http.get(APPS, params=params)
        assert answer.status_code == 200, answer.text
        found.append([item["id"] for item in answer.json()["items"]])
        params["cursor"] = answer.json()["next_cursor"]
        if params["cursor"] is None:
            return found


async def test_pages_show_everything_once_newest_first(http: httpx.AsyncClient) -> None:
    ids = await apps(http, 7)
    found = await pages(http, limit=3)
    assert [len(page) for page in found] == [3, 3, 1]
    assert list(chain(*found)) == ids[::-1]


async def test_a_last_page_that_is_full_has_no_next_one(http: httpx.AsyncClient) -> None:
    await apps(http, 4)
    assert [len(page) for page in await pages(http, limit=2)] == [2, 2]


async def test_what_is_made_meanwhile_neither_repeats_nor_hides_a_row(http: httpx.AsyncClient) -> None:
    ids = await apps(http, 4)
    first = (await http.get(APPS, params={"limit": 2})).json()
    await http.post(APPS, json={"code": "later", "name": "x"})
    rest = await pages(http, limit=2, cursor=first["next_cursor"])
    assert [item["id"] for item in first["items"]] + list(chain(*rest)) == ids[::-1]


async def test_fifty_rows_unless_more_are_asked_for(http: httpx.AsyncClient) -> None:
    await apps(http, 52)
    assert len((await http.get(APPS)).json()["items"]) == 50
    assert len((await http.get(APPS, params={"limit": 200})).json()["items"]) == 52


async def test_a_list_shows_one_tenants_rows(http: httpx.AsyncClient) -> None:
    await apps(http, 2, "t1")
    mine = await apps(http, 1, "t2")
    found = (await http.get(APPS, headers={"x-tenant-id": "t2"})).json()["items"]
    assert [item["id"] for item in found] == mine


async def test_another_tenants_cursor_opens_nothing(http: httpx.AsyncClient) -> None:
    await apps(http, 3, "t1")
    cursor = (await http.get(APPS, params={"tenant_id": "t1", "limit": 1})).json()["next_cursor"]
    found = (await http.get(APPS, params={"tenant_id": "t2", "cursor": cursor})).json()
    assert found == {"items": [], "next_cursor": None}


@pytest.mark.parametrize("limit", ["0", "201", "-1", "x", "1.5", "", "9" * 30, "٣"])
async def test_a_limit_out_of_range_is_refused(http: httpx.AsyncClient, limit: str) -> None:
    answer = await http.get(APPS, params={"limit": limit})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/query/limit"


def cursor_of(*values: Any) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(values)).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "%%%",
        "x" * 2000,
        cursor_of(),
        cursor_of(1.0),
        cursor_of(1.0, "not-a-uuid"),
        cursor_of("1", "7d444840-9dc0-41d1-b245-5ffdce74fad2"),
        cursor_of(None, "7d444840-9dc0-41d1-b245-5ffdce74fad2"),
        cursor_of(True, "7d444840-9dc0-41d1-b245-5ffdce74fad2"),
        cursor_of(1.0, "7d444840-9dc0-41d1-b245-5ffdce74fad2", 3),
    ],
)
async def test_a_cursor_nobody_gave_is_refused(http: httpx.AsyncClient, cursor: str) -> None:
    answer = await http.get(APPS, params={"cursor": cursor})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/query/cursor"


async def test_an_unknown_filter_is_refused_not_ignored(http: httpx.AsyncClient) -> None:
    answer = await http.get(APPS, params={"colour": "red"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0] == {
        "pointer": "/query/colour",
        "code": "unknown_parameter",
        "detail": "this list knows limit, cursor, tenant_id, code, name, status",
    }


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("/gateway/runtime/runs", "workflow_id", "wf-1"),
        ("/gateway/runtime/node-runs", "run_id", "run-1"),
        ("/gateway/workflows/versions", "version", "one"),
        ("/gateway/audits", "status_code", "-1"),
        ("/gateway/runtime/runs", "status", "asleep"),
        (APPS, "code", "a\x00"),
        (APPS, "code", ""),
    ],
)
async def test_a_filter_of_the_wrong_type_names_itself(
    http: httpx.AsyncClient, path: str, name: str, value: str
) -> None:
    answer = await http.get(path, params={name: value})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == f"/query/{name}"
