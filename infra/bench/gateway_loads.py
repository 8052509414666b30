"""Workloads on the gateway: a write from request to outcome, and reads of one run by its id."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import cycle

import asyncpg
import orjson

from infra.bench.bench import Bench
from infra.bench.http_client import Connection
from infra.bench.load import Load, One, closed_loop
from infra.bench.measure import accounted, cpu, latency, throughput
from infra.bench.platform import TENANT, BenchFailed, Chain, Platform
from infra.bench.processes import Kinds
from infra.bench.role import NOOP
from infra.bench.workloads import NODES
from infra.local.embedded.processes import LOOPBACK, STOP_GENTLY, free_port, stop_child
from infra.local.supervisor import answers_ready

READY_SECONDS_MAX = 30.0
UNLIMITED = 10_000_000
APPS = "/gateway/workflows/apps"
RUNS = "/gateway/runtime/runs"
READABLE_RUNS = 100
READS_A_RUN = 10
"""Reads are cheap: as many more of them than of runs."""

Request = Callable[[Connection], Awaitable[None]]


@contextlib.asynccontextmanager
async def _gateway(platform: Platform) -> AsyncIterator[tuple[int, Kinds]]:
    """A gateway with its limits of requests lifted; its port, and all processes to account for."""
    port = free_port()
    child = platform.start_role(
        "gateway", 0, gateway_port=port, requests_per_second_max=UNLIMITED, commands_in_flight_max=UNLIMITED
    )
    try:
        async with asyncio.timeout(READY_SECONDS_MAX):
            while not await answers_ready(LOOPBACK, port):
                if child.poll() is not None:
                    raise BenchFailed(f"the gateway ended, see {platform.stack.folder.path}/log")
                await asyncio.sleep(0.05)
        yield port, {"gateway": [child.pid], **platform.kinds()}
    finally:
        await stop_child(child, STOP_GENTLY)


@contextlib.asynccontextmanager
async def _clients(port: int, count: int, request: Request) -> AsyncIterator[One]:
    """`request` on so many kept connections; each is used by one run of the loop at a time."""
    free = [await Connection.open(LOOPBACK, port, {"x-tenant-id": TENANT}) for _ in range(count)]
    everyone = list(free)

    async def one() -> None:
        connection = free.pop()
        try:
            await request(connection)
        finally:
            free.append(connection)

    try:
        yield one
    finally:
        for connection in everyone:
            await connection.close()


async def http(bench: Bench) -> None:
    """POST an app and wait for its outcome: the request goes by Kafka to a worker and back."""
    options = bench.options

    async def request(connection: Connection) -> None:
        code = f"app-{uuid.uuid4().hex}"
        status, body = await connection.request("POST", APPS, orjson.dumps({"code": code, "name": code}))
        if status != 201 or orjson.loads(body)["code"] != code:
            raise BenchFailed(f"POST {APPS} was answered with {status} {body[:300]!r}")

    for _ in bench.repeats():
        await bench.quiesce()
        async with bench.platform.running(), _gateway(bench.platform) as (port, kinds):
            for count, name in ((1, "one client"), (options.reads_in_flight, f"{options.reads_in_flight} clients")):
                async with _clients(port, count, request) as one:
                    await closed_loop(one, bench.warm_up(count))
                    load = Load(count, options.runs, options.seconds)
                    measured, spent = await accounted(kinds, closed_loop(one, load))
                values = throughput(measured, spent, 1, "write")
                if count == 1:
                    values = {**latency(measured), **cpu(spent, measured.runs, "write"), "runs": measured.runs}
                bench.note("http", name, values)


async def reads(bench: Bench) -> None:
    """GET a run by its id from one gateway process, under row level security; another tenant sees nothing."""
    options = bench.options
    platform = bench.platform
    async with platform.running():
        version = await platform.create_workflow(NODES, NOOP)
        await Chain(platform, version, NODES).load(Load(READABLE_RUNS, READABLE_RUNS, options.seconds))
    turn = cycle(await _some_runs(platform))

    async def request(connection: Connection) -> None:
        id = next(turn)
        status, body = await connection.request("GET", f"{RUNS}/{id}")
        if status != 200 or orjson.loads(body)["id"] != id:
            raise BenchFailed(f"GET {RUNS}/{id} was answered with {status} {body[:300]!r}")

    for _ in bench.repeats():
        await bench.quiesce()
        async with _gateway(platform) as (port, kinds):
            await _check_isolation(port, next(turn))
            async with _clients(port, options.reads_in_flight, request) as one:
                await closed_loop(
                    one, Load(options.reads_in_flight, READS_A_RUN * options.runs, options.warm_up_seconds)
                )
                load = Load(options.reads_in_flight, READS_A_RUN * options.runs, options.seconds)
                measured, spent = await accounted(kinds, closed_loop(one, load))
            bench.note("reads", f"{options.reads_in_flight} clients", throughput(measured, spent, 1, "read"))


async def _some_runs(platform: Platform) -> list[str]:
    connection = await asyncpg.connect(platform.settings.required_database_url)
    try:
        rows = await connection.fetch(
            "SELECT id::text FROM run WHERE tenant_id = $1 AND kind = 'graph' LIMIT 100", TENANT
        )
    finally:
        await connection.close()
    return [row["id"] for row in rows]


async def _check_isolation(port: int, run_id: str) -> None:
    stranger = await Connection.open(LOOPBACK, port, {"x-tenant-id": "stranger"})
    status, _ = await stranger.request("GET", f"{RUNS}/{run_id}")
    await stranger.close()
    if status != 404:
        raise BenchFailed(f"another tenant's run is answered with {status}: nothing is measured without isolation")
