"""Who may speak to a gateway on one's own machine: a web page of somebody else may not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from gateway.http.app import create_app
from gateway.http.server import http_server, listen
from gateway.http.state import Gateway
from gateway.routes import ROUTES
from infra.settings import Settings, SettingsError, load_settings
from tests.gateway.world import World, client_of, gateway_over

APPS = "/gateway/workflows/apps"
RUNS = "/gateway/runtime/runs"
EVERYWHERE = (RUNS, APPS, "/ready", "/docs", "/openapi.json", "/gateway/services/health", "/nowhere")
APP = {"code": "a", "name": "A"}
EVIL = "https://evil.example"

LOOPBACK = [
    "localhost", "LocalHost", "localhost.", "localhost:8000", "localhost:", "a.localhost", "a.b.localhost:1",
    "127.0.0.1", "127.0.0.1:8000", "127.8.9.10", "127.255.255.255", "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]",
]  # fmt: skip
OTHERS = [
    "", " ", "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil-localhost",
    "evillocalhost", "127.0.0.1.nip.io", "128.0.0.1", "126.255.255.255", "0.0.0.0", "10.0.0.1", "192.168.1.4",
    "169.254.169.254", "[::]", "[::2]", "[fe80::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "::1", "[::1", "::1]",
    "[::1]evil", "[::1%25lo]", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "127.1",
    "127.0.0.01", "127.0.0.256", "user@localhost", "localhost@evil.example", "user:pw@127.0.0.1", "localhost:80:80",
    "localhost:x", "localhost:999999", "localhost/", "localhost/@evil.example", "localhost?", "localhost#",
    "localhost,evil.example", "localhost evil.example", "localhost..", ".localhost", "a..localhost", "http://localhost",
    "localhost\\evil.example", "localhost%00", "loc%61lhost", "l\u00f6calhost", "\uff4cocalhost", "localhost\t",
]  # fmt: skip


def raw(text: str) -> bytes:
    return text.encode("utf-8")


@pytest.mark.parametrize("path", EVERYWHERE)
async def test_a_page_that_goes_by_another_name_reads_nothing(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path, headers={"host": "evil.example"})
    assert (answer.status_code, answer.json()["code"]) == (403, "host_not_allowed")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("host", LOOPBACK)
async def test_every_name_of_this_machine_is_one(http: httpx.AsyncClient, host: str) -> None:
    headers = [(b"host", raw(host)), (b"origin", raw(f"http://{host}"))]
    assert (await http.get(RUNS, headers=headers)).status_code == 200


@pytest.mark.parametrize("host", OTHERS)
async def test_what_is_no_name_of_this_machine_is_refused(http: httpx.AsyncClient, world: World, host: str) -> None:
    answer = await http.post(APPS, json=APP, headers=[(b"host", raw(host))])
    assert (answer.status_code, answer.json()["code"]) == (403, "host_not_allowed")
    answer = await http.post(APPS, json=APP, headers=[(b"origin", raw(f"http://{host}"))])
    assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed")
    assert world.sent == []


@pytest.mark.parametrize("hosts", [["localhost", "evil.example"], ["evil.example", "localhost"], ["localhost"] * 2])
async def test_two_hosts_are_malformed(http: httpx.AsyncClient, hosts: list[str]) -> None:
    answer = await http.get(RUNS, headers=[(b"host", raw(host)) for host in hosts])
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_host")


@pytest.mark.parametrize(
    "origin",
    ["null", "", EVIL, "http://evil.example:8000", "file://", "localhost", "//localhost", "ftp://localhost",
     "chrome-extension://abcdef", "http://localhost/", "http://localhost/x", "http://localhost http://evil.example"],
)  # fmt: skip
@pytest.mark.parametrize("path", [APPS, "/ready", "/docs", "/openapi.json"])
async def test_a_page_of_somebody_else_is_refused(
    http: httpx.AsyncClient, world: World, origin: str, path: str
) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        answer = await http.request(method, path, json=APP, headers={"origin": origin})
        assert (answer.status_code, answer.json()["code"]) == (403, "origin_not_allowed"), method
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert world.sent == []


async def test_one_good_origin_does_not_hide_another(http: httpx.AsyncClient) -> None:
    headers = [(b"origin", b"http://localhost"), (b"origin", raw(EVIL))]
    assert (await http.get(RUNS, headers=headers)).status_code == 403


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({}, 403),
        ({"referer": f"{EVIL}/page"}, 403),
        ({"referer": "http://localhost@evil.example/"}, 403),
        ({"referer": "http://localhost:3000/page"}, 200),
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": EVIL, "referer": "http://localhost:3000/"}, 403),
    ],
)
async def test_what_a_browser_calls_cross_site_must_come_from_here(
    http: httpx.AsyncClient, more: dict[str, str], status: int
) -> None:
    for name in ("cross-site", "Cross-Site "):
        assert (await http.get(RUNS, headers={"sec-fetch-site": name, **more})).status_code == status


@pytest.mark.parametrize("site", ["none", "same-origin", "same-site"])
async def test_what_a_browser_calls_its_own_is_answered(http: httpx.AsyncClient, site: str) -> None:
    assert (await http.get(RUNS, headers={"sec-fetch-site": site})).status_code == 200


async def test_pages_of_this_machine_get_no_cors_headers_either(http: httpx.AsyncClient) -> None:
    answer = await http.get(RUNS, headers={"origin": "http://localhost:3000"})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("host", "status"),
    [("ap.example.com", 200), ("AP.example.com.:8443", 200), ("x.team.example", 200), ("a.b.team.example", 200),
     ("[fd00:0::1]", 200), ("10.1.2.3", 200), ("localhost", 200), ("team.example", 403), ("evil.example", 403),
     ("xap.example.com", 403), ("x.ap.example.com", 403), ("evilteam.example", 403), ("10.1.2.4", 403)],
)  # fmt: skip
@pytest.mark.parametrize("bind", ["127.0.0.1", "0.0.0.0"])
async def test_the_setting_names_more(world: World, bind: str, host: str, status: int) -> None:
    settings = Settings(
        gateway_host=bind, auth_required=bind == "0.0.0.0", bootstrap_open=True,
        allowed_hosts=" ap.example.com, *.Team.example.,[FD00::1],10.1.2.3 ",
    )  # fmt: skip
    async with client_of(gateway_over(world, settings)) as http:
        for headers in ({"host": host}, {"origin": f"https://{host}"}):
            assert (await http.get("/ready", headers=headers)).status_code == status


async def test_on_another_address_any_name_will_do_unless_some_are_named(world: World) -> None:
    settings = Settings(gateway_host="0.0.0.0", auth_required=True)
    async with client_of(gateway_over(world, settings)) as http:
        headers = {"host": "ap.example.com", "origin": EVIL, "sec-fetch-site": "cross-site"}
        assert (await http.get("/ready", headers=headers)).status_code == 200
        two = await http.get("/ready", headers=[(b"host", b"a"), (b"host", b"b")])
        assert two.status_code == 400


@pytest.mark.parametrize(
    "hosts",
    ["http://x", "x:80", "x/y", "*", "*.*.x", "a.*", "u@x", "x y", "[fd00::1", "[x]", "*.", "a,,b*", "\u00e4.x"],
)
def test_what_can_be_no_host_is_refused_as_a_setting(hosts: str) -> None:
    with pytest.raises(SettingsError, match="AGENT_PLATFORM_ALLOWED_HOSTS"):
        load_settings(allowed_hosts=hosts)


async def test_a_refused_page_leaves_an_audit_record(http: httpx.AsyncClient, gateway: Gateway, world: World) -> None:
    await http.post(APPS, json=APP, headers={"origin": EVIL})
    await gateway.audit.flush()
    assert [(record.path, record.status_code) for record in world.audits] == [(APPS, 403)]


# --- on the wire ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(gateway: Gateway) -> AsyncIterator[int]:
    """The port of a real HTTP server over this gateway."""
    server, socket = http_server(create_app(gateway)), listen("127.0.0.1", 0)
    serving = asyncio.create_task(server.serve([socket]))
    try:
        yield socket.getsockname()[1]  # The socket listens already: who connects waits.
    finally:
        server.should_exit = True
        await serving


async def status_of(port: int, head: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.replace("\n", "\r\n").encode() + b"\r\nConnection: close\r\n\r\n")
        line = await reader.readline()
    finally:
        writer.close()
    return int(line.split()[1])


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (f"GET {RUNS} HTTP/1.1\nHost: localhost", 200),
        (f"GET {RUNS} HTTP/1.1\nHost: evil.example", 403),
        (f"GET {RUNS} HTTP/1.1\nHost:", 403),
        (f"GET {RUNS} HTTP/1.1\nX: y", 400),
        (f"GET {RUNS} HTTP/1.0\nX: y", 403),
        (f"GET {RUNS} HTTP/1.1\nHost: localhost\nHost: localhost", 400),
        (f"GET {RUNS} HTTP/1.1\nHost: localhost\nhost: evil.example", 400),
        (f"GET http://localhost{RUNS} HTTP/1.1\nHost: localhost", 200),
        (f"GET http://evil.example{RUNS} HTTP/1.1\nHost: localhost", 403),
        (f"GET http://localhost{RUNS} HTTP/1.1\nHost: evil.example", 403),
        (f"GET http://localhost@evil.example{RUNS} HTTP/1.1\nHost: localhost", 403),
        (f"GET http://evil.example?x{RUNS} HTTP/1.1\nHost: localhost", 400),
        (f"GET //evil.example{RUNS} HTTP/1.1\nHost: localhost", 404),
    ],
)
async def test_requests_as_they_come_on_the_wire(gateway: Gateway, head: str, status: int) -> None:
    async with listening(gateway) as port:
        assert await status_of(port, head) == status


# --- bodies --------------------------------------------------------------------------------------------------

NOT_JSON = [
    "text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
    "text/json", "text/plain; application/json", "application/jsonx", "application/json-seq", "xapplication/json",
    "application/json, text/plain", "application/xml", "application/octet-stream", "json", "*/*", "application/*",
    "application/+json", "", " ", ";", "application", "application/json\u00a0", "application / json",
]  # fmt: skip
JSON = [
    "application/json", "application/json; charset=utf-8", "Application/JSON;CHARSET=UTF-8", "application/json ; x=y",
    "application/json;", "application/merge-patch+json", "application/vnd.api+json; ext=x",
]  # fmt: skip


@pytest.mark.parametrize("media_type", NOT_JSON)
async def test_a_body_that_is_not_said_to_be_json_is_415(
    http: httpx.AsyncClient, world: World, media_type: str
) -> None:
    headers = [(b"content-type", raw(media_type))]
    answer = await http.post(APPS, content=b'{"code": "a", "name": "A"}', headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert world.sent == []


@pytest.mark.parametrize("media_type", JSON)
async def test_json_by_any_spelling_is_read(http: httpx.AsyncClient, media_type: str) -> None:
    answer = await http.post(APPS, content=b'{"code": "a", "name": "A"}', headers={"content-type": media_type})
    assert answer.status_code == 201


WRITES = [route for route in ROUTES if route.method != "GET"]


@pytest.mark.parametrize("route", WRITES, ids=lambda route: f"{route.method} {route.path}")
async def test_every_route_that_takes_a_body_wants_json(http: httpx.AsyncClient, world: World, route: object) -> None:
    method, path = getattr(route, "method", ""), getattr(route, "path", "")
    for headers in ([], [(b"content-type", b"text/plain")], [(b"content-type", b"application/json")] * 2):
        answer = await http.request(method, path, content=b"{}", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type"), headers
    empty = await http.request(method, path, headers={"content-type": "text/plain"})
    assert empty.status_code == 415
    assert world.sent == []


async def test_a_body_sent_in_chunks_needs_its_type_too(http: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"code": "a", '
        yield b'"name": "A"}'

    assert (await http.post(APPS, content=chunks())).status_code == 415
    typed = await http.post(APPS, content=chunks(), headers={"content-type": "application/json"})
    assert typed.status_code == 201


async def test_no_body_needs_no_type(http: httpx.AsyncClient) -> None:
    answer = await http.post("/gateway/runtime/workers/execute-next")
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "identity, gzip", "x", "GZIP"])
async def test_a_coded_body_is_415(http: httpx.AsyncClient, world: World, coding: str) -> None:
    answer = await http.post(APPS, json=APP, headers={"content-encoding": coding})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert answer.headers["accept-encoding"] == "identity"
    assert world.sent == []


async def test_the_coding_that_is_none_is_fine(http: httpx.AsyncClient) -> None:
    assert (await http.post(APPS, json=APP, headers={"content-encoding": "Identity"})).status_code == 201


@pytest.mark.parametrize("second", ["k", "l"])
async def test_two_idempotency_keys_are_400(http: httpx.AsyncClient, world: World, second: str) -> None:
    headers = [(b"idempotency-key", b"k"), (b"idempotency-key", raw(second))]
    answer = await http.post(APPS, json=APP, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "repeated_header")
    assert world.sent == []


@pytest.mark.parametrize(
    "body",
    [b'{"code": "a", "code": "b", "name": "A"}', b'{"code": "a", "c\\u006fde": "a", "name": "A"}',
     b'{"code": "a", "name": "A", "x": [{"y": {"z": 1, "z": 1}}]}'],
)  # fmt: skip
async def test_a_key_that_is_given_twice_is_400(http: httpx.AsyncClient, world: World, body: bytes) -> None:
    answer = await http.post(APPS, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "duplicate_key")
    assert world.sent == []


async def test_numbers_of_any_length_are_looked_at_for_keys_only(http: httpx.AsyncClient) -> None:
    body = b'{"code": "a", "name": "A", "x": ' + b"9" * 5_000 + b"}"
    answer = await http.post(APPS, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
