"""Restate: a durable handler whose steps go through the log of a server of its own; it uses no Postgres.

Settings: the server's defaults on one node (24 partitions, its log synced to disk), telemetry off, bound to
127.0.0.1; the handler under Hypercorn, as its documentation serves it, in the process of the client. The server
is the program `restate-server` on the path.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import hypercorn
import hypercorn.asyncio
import orjson
import restate

from infra.bench.http_client import Connection
from infra.bench.peers import find_program
from infra.bench.peers.process import Workload
from infra.local.embedded.processes import LOOPBACK, STOP_GENTLY, free_port, spawn, stop_child

START_SECONDS_MAX = 60.0
STREAMS_MAX = 2**31 - 1
JSON = {"accept": "application/json"}


async def run(workload: Workload) -> None:
    async with _server(workload) as (ingress, admin), _handler(workload.nodes) as handler:
        await _asked(admin, "/deployments", {"uri": f"http://{LOOPBACK}:{handler}"})
        free: list[Connection] = []

        async def one() -> None:
            connection = free.pop() if free else await Connection.open(LOOPBACK, ingress, JSON)
            status, body = await connection.request("POST", "/Chain/run", b'{"x":1}')
            if status != 200 or orjson.loads(body) != {"ok": True}:
                raise RuntimeError(f"the handler was answered with {status} {body[:300]!r}")
            free.append(connection)

        await workload.drive(one)
        for connection in free:
            await connection.close()
        await _check(workload, admin)


@contextlib.asynccontextmanager
async def _server(workload: Workload) -> AsyncIterator[tuple[int, int]]:
    """A server on an empty folder; its ports of ingress and admin."""
    program = find_program("restate-server")
    if program is None:
        raise FileNotFoundError("restate-server is not on the path")
    ports = [free_port() for _ in range(3)]
    with tempfile.TemporaryDirectory(prefix="ap-restate-", ignore_cleanup_errors=True) as folder:
        settings = {
            "RESTATE_BASE_DIR": folder,
            "RESTATE_LISTEN_MODE": "tcp",
            "RESTATE_INGRESS__BIND_ADDRESS": f"{LOOPBACK}:{ports[0]}",
            "RESTATE_ADMIN__BIND_ADDRESS": f"{LOOPBACK}:{ports[1]}",
            "RESTATE_BIND_ADDRESS": f"{LOOPBACK}:{ports[2]}",
            "RESTATE_ADVERTISED_ADDRESS": f"http://{LOOPBACK}:{ports[2]}",
            "RESTATE_LOG_FILTER": "warn",
            "RESTATE_DISABLE_TELEMETRY": "true",
        }
        child = spawn([program, "--no-logo"], log=Path(folder) / "log", environment={**os.environ, **settings})
        try:
            await _until_healthy(ports[1])
            workload.server = child.pid
            yield ports[0], ports[1]
        finally:
            await stop_child(child, STOP_GENTLY)


async def _until_healthy(admin: int) -> None:
    async with asyncio.timeout(START_SECONDS_MAX), httpx.AsyncClient() as client:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get(f"http://{LOOPBACK}:{admin}/health")).status_code == 200:
                    return
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def _handler(nodes: int) -> AsyncIterator[int]:
    """The port on which the handler is served."""
    service = restate.Service("Chain")

    async def step() -> dict[str, bool]:
        return {"ok": True}

    @service.handler("run")
    async def chain(context: restate.Context, inputs: dict[str, int]) -> dict[str, bool]:
        result = {"ok": False}
        for number in range(nodes):
            result = await context.run_typed(f"n{number}", step)
        return result

    port = free_port()
    config = hypercorn.Config()
    config.bind = [f"{LOOPBACK}:{port}"]
    config.h2_max_concurrent_streams = STREAMS_MAX
    config.keep_alive_max_requests = STREAMS_MAX
    config.keep_alive_timeout = STREAMS_MAX
    stop = asyncio.Event()
    serving = asyncio.create_task(hypercorn.asyncio.serve(restate.app([service]), config, shutdown_trigger=stop.wait))
    try:
        yield port
    finally:
        stop.set()
        await asyncio.wait({serving}, timeout=5)


async def _asked(port: int, path: str, body: object) -> Any:
    """The answer of the server's administration. Raises httpx.HTTPError."""
    async with httpx.AsyncClient(headers=JSON, timeout=60) as client:
        answer = await client.post(f"http://{LOOPBACK}:{port}{path}", json=body)
        return answer.raise_for_status().json()


async def _check(workload: Workload, admin: int) -> None:
    """Every invocation is completed and every step is in its journal."""
    counts = []
    for what in ("sys_invocation WHERE status = 'completed'", "sys_journal WHERE entry_type = 'Command: Run'"):
        answer = await _asked(admin, "/query", {"query": f"SELECT count(*) AS n FROM {what}"})
        counts.append(int(answer["rows"][0]["n"]))
    workload.check(*counts)
