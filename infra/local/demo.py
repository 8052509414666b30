"""The guided example of `ap demo`: tickets are sorted by a workflow, and a worker is killed in the middle."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import asyncpg
import httpx
import orjson
from aiokafka import AIOKafkaProducer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from infra.escaping import escaped
from infra.history.verify import verify
from infra.settings import Settings
from schemas.envelope import Envelope
from schemas.messages import JsonObject
from schemas.runtime import RUN_ENDED, CreateRun
from schemas.topics import INGRESS, partition_of

EXAMPLES = Path(__file__).parent.parent / "examples"
TENANT = "demo"
WAIT_SECONDS_MAX = 90.0
POLL_SECONDS = 0.1
KILL_AT = 0.3
"""The worker is killed once this share of the tickets is done."""
SENT_TWICE = 0.05
"""The share of the records that is published a second time, as a publisher does that saw no acknowledgement."""
BARS = "▁▂▃▄▅▆▇█"


class DemoFailed(Exception):
    """The example did not end as it must."""


class Stack(Protocol):
    """The running stack, as far as the example needs it."""

    @property
    def settings(self) -> Settings: ...
    @property
    def gateway_url(self) -> str: ...
    def pid_of(self, role: Any) -> int: ...


@dataclass(frozen=True, slots=True)
class Ticket:
    """One line of tickets.jsonl: the inputs of a run, and what a person would decide about it."""

    inputs: JsonObject
    expected: JsonObject


def read_tickets(count: int) -> list[Ticket]:
    """`count` tickets, numbered; the lines of the file over and over."""
    lines = (EXAMPLES / "tickets.jsonl").read_text("utf-8").splitlines()
    rows = [orjson.loads(line) for line in lines]
    tickets = []
    for n in range(count):
        row = dict(rows[n % len(rows)])
        expected = row.pop("expected")
        tickets.append(Ticket({"ticket": f"T-{n + 1}", **row}, expected))
    return tickets


async def run_demo(stack: Stack, count: int, console: Console) -> None:
    """Publish the workflow, run it once by HTTP, then `count` times by Kafka. Raises DemoFailed."""
    tickets = read_tickets(count)
    headers = {"x-tenant-id": TENANT, "prefer": "wait=30"}  # The worker may still be claiming its lanes.
    async with httpx.AsyncClient(base_url=f"{stack.gateway_url}/gateway", headers=headers, timeout=40) as client:
        workflow = await _publish(client, console)
        await _one_run(client, workflow, tickets[0], console)
    database = await asyncpg.connect(stack.settings.required_database_url)
    try:
        await _burst(stack, database, workflow, tickets, console)
        await _show_results(database, workflow, tickets, console)
    finally:
        await database.close()
    await _verify(stack.settings, console)


# --- one run by HTTP -----------------------------------------------------------------------------------------


def _begin(console: Console, number: int, what: str) -> None:
    console.print(Text.assemble("\n", (str(number), "bold"), f" {what}"))


async def _publish(client: httpx.AsyncClient, console: Console) -> str:
    dsl = orjson.loads((EXAMPLES / "triage.json").read_bytes())
    app = await _post(client, "/workflows/apps", {"code": "support", "name": "Support 客服"})
    workflow = await _post(client, "/workflows", {"app_id": app["id"], "code": "triage", "name": "Ticket triage"})
    version = await _post(client, "/workflows/versions", {"workflow_id": workflow["id"], "dsl_json": dsl})
    await _post(client, f"/workflows/versions/{version['id']}/publish", {})
    _begin(
        console,
        1,
        f"Workflow published: {len(dsl['nodes'])} nodes that mask personal data in a loop, find topic"
        " and urgency\n  in parallel, join, branch, and answer in the ticket's language (infra/examples/triage.json)",
    )
    return str(workflow["id"])


async def _one_run(client: httpx.AsyncClient, workflow: str, ticket: Ticket, console: Console) -> None:
    run = await _post(client, "/runtime/runs", {"workflow_id": workflow, "inputs": ticket.inputs})
    run = await _until_ended(client, run["id"])
    if run["status"] != "completed" or not _as_expected(run["output_json"], ticket):
        raise DemoFailed(f"expected {ticket.expected} and got {run}")
    page = await _get(client, f"/runtime/node-runs?run_id={run['id']}&limit=200")
    _begin(console, 2, f"One ticket by HTTP: POST /gateway/runtime/runs, {len(page['items'])} node runs")
    console.print(_timeline(page["items"]))
    console.print(escaped(f"  Answer: {run['output_text']}"))


def _timeline(node_runs: Sequence[JsonObject]) -> Table:
    """The node runs in the order of their start, in milliseconds from the first."""
    table = Table(box=None, padding=(0, 1, 0, 2), header_style="dim")
    for name, width in (("node", 9), ("no.", 3), ("type", 18), ("status", 9)):
        table.add_column(name, min_width=width, no_wrap=True)
    for name in ("start ms", "took ms"):
        table.add_column(name, min_width=8, justify="right", no_wrap=True)
    table.add_column("result", max_width=48, no_wrap=True, overflow="ellipsis")
    begin = min(_milliseconds(node["started_at"]) for node in node_runs if node["started_at"])
    for node in sorted(node_runs, key=lambda node: (node["started_at"] or node["ended_at"] or "", node["seq"])):
        start, end = _milliseconds(node["started_at"]), _milliseconds(node["ended_at"])
        shown = node["output_text"] or node["route"] or _short(node["output_json"])
        table.add_row(
            node["node_id"],
            node["iteration"],
            node["node_type"],
            node["status"],
            f"{start - begin:.1f}" if start else "",
            f"{end - start:.1f}" if start and end else "",
            escaped(shown.strip().replace("\n", " ")),
        )
    return table


def _milliseconds(instant: str | None) -> float:
    return datetime.fromisoformat(instant).timestamp() * 1_000 if instant else 0.0


def _short(output: Mapping[str, Any] | None) -> str:
    value: Any = output or {}
    while isinstance(value, dict) and len(value) == 1:
        value = next(iter(value.values()))
    return orjson.dumps(value).decode() if value else ""


# --- many runs by Kafka --------------------------------------------------------------------------------------


async def _burst(
    stack: Stack, database: asyncpg.Connection, workflow: str, tickets: Sequence[Ticket], console: Console
) -> None:
    again = int(len(tickets) * SENT_TWICE)
    _begin(
        console,
        3,
        f"{len(tickets)} tickets by Kafka: one record each on topic `{INGRESS}`, {again} of them twice;"
        " then kill -9 of a worker",
    )
    publishing = asyncio.create_task(_send(stack.settings, workflow, tickets, again))
    begin = monotonic()
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("tickets answered", total=len(tickets))
        killed = False
        while True:
            started, ended = await _counts(database, workflow)
            progress.update(task, completed=ended)
            if not killed and ended >= len(tickets) * KILL_AT:
                killed = True
                _kill(stack, started - ended, ended, progress.console)
            if ended >= len(tickets) and publishing.done():
                break
            if monotonic() - begin > WAIT_SECONDS_MAX:
                raise DemoFailed(f"{ended} of {len(tickets)} runs ended within {WAIT_SECONDS_MAX:g} seconds")
            await asyncio.sleep(POLL_SECONDS)
    publishing.result()


async def _send(settings: Settings, workflow: str, tickets: Sequence[Ticket], again: int) -> None:
    """As any outside publisher would: a CloudEvent whose id says which wish it is."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.required_kafka_bootstrap, acks="all", linger_ms=5)
    await producer.start()
    try:
        sent = []
        for ticket in [*tickets, *tickets[:again]]:
            number = ticket.inputs["ticket"]
            command = CreateRun(workflow_id=workflow, session_id=f"burst-{number}", inputs=ticket.inputs)
            place = partition_of(number, settings.ingress_partitions)
            sent.append(
                await producer.send(
                    settings.topic_prefix + INGRESS,
                    command.encode(),
                    key=number.encode(),
                    partition=place,
                    headers=Envelope(f"triage-{number}", "runtime.create_run", TENANT).headers(),
                )
            )
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


def _kill(stack: Stack, in_flight: int, ended: int, console: Console) -> None:
    pid = stack.pid_of("worker")
    os.kill(pid, signal.SIGKILL)
    console.print(f"  kill -9 {pid}: a worker is gone, {ended} tickets are answered, {in_flight} are under way")


async def _counts(database: asyncpg.Connection, workflow: str) -> tuple[int, int]:
    """Runs of the burst that were started, and of these the ended ones."""
    ((started, ended),) = await database.fetch(
        "SELECT count(*), count(*) FILTER (WHERE status = ANY ($2))"
        " FROM run WHERE tenant_id = $1 AND workflow_id = $3 AND session_id IS NOT NULL",
        TENANT,
        list(RUN_ENDED),
        workflow,
    )
    return started, ended


# --- what came of it -----------------------------------------------------------------------------------------


async def _show_results(
    database: asyncpg.Connection, workflow: str, tickets: Sequence[Ticket], console: Console
) -> None:
    rows = await database.fetch(
        "SELECT id, session_id, status, output, created_at, ended_at FROM run"
        " WHERE tenant_id = $1 AND workflow_id = $2 AND session_id IS NOT NULL",
        TENANT,
        workflow,
    )
    node_runs = await database.fetchval(
        "SELECT count(*) FROM node_run WHERE run_id = ANY ($1)", [row["id"] for row in rows]
    )
    check_runs(rows, tickets)
    begin, end = min(row["created_at"] for row in rows), max(row["ended_at"] for row in rows)
    seconds = max(end - begin, 0.001)
    console.print(
        f"  {len(rows)} tickets, {node_runs} node runs in {seconds:.1f} s, the worker's absence included:"
        f" {len(rows) / seconds:.0f} tickets/s, {node_runs / seconds:.0f} node runs/s"
    )
    console.print(f"  answered each half second: {_bars([row['ended_at'] - begin for row in rows], seconds)}")
    _begin(console, 4, "Results: every ticket answered once, in the queue and priority that a person chose")
    console.print(_result_table([orjson.loads(row["output"]) for row in rows]))


def check_runs(rows: Sequence[Any], tickets: Sequence[Ticket]) -> None:
    """Each ticket has exactly one run, completed, with what its line in the file expects."""
    by_number = {ticket.inputs["ticket"]: ticket for ticket in tickets}
    seen = Counter(row["session_id"].removeprefix("burst-") for row in rows)
    wanted = Counter(by_number.keys())
    if seen != wanted:
        raise DemoFailed(f"lost: {sorted(wanted - seen)}, doubled: {sorted(seen - wanted)}")
    for row in rows:
        ticket = by_number[row["session_id"].removeprefix("burst-")]
        if row["status"] != "completed" or not _as_expected(orjson.loads(row["output"]), ticket):
            raise DemoFailed(f"run {row['id']} is {row['status']} with {row['output']!r}, not {ticket.expected}")


def _as_expected(output: JsonObject, ticket: Ticket) -> bool:
    return all(output[name] == value for name, value in ticket.expected.items())


def _bars(ended: Sequence[float], seconds: float) -> str:
    counts = Counter(int(at * 2) for at in ended)
    highest = max(counts.values())
    steps = [counts[n] for n in range(int(seconds * 2) + 1)]
    return "".join(BARS[round(count / highest * (len(BARS) - 1))] if count else "_" for count in steps)


def _result_table(outputs: Sequence[JsonObject]) -> Table:
    priorities = ("urgent", "high", "normal")
    counts = Counter((output["queue"], output["priority"]) for output in outputs)
    table = Table(box=None, padding=(0, 1, 0, 2), header_style="dim")
    table.add_column("queue")
    for name in (*priorities, "tickets"):
        table.add_column(name, justify="right")
    for queue in sorted({output["queue"] for output in outputs}):
        row = [counts[queue, priority] for priority in priorities]
        table.add_row(queue, *map(str, row), str(sum(row)))
    return table


async def _verify(settings: Settings, console: Console) -> None:
    _begin(console, 5, "ap verify, over everything recorded in Postgres and Kafka ...")
    url, bootstrap = settings.required_database_url, settings.required_kafka_bootstrap
    report = await verify(url, bootstrap, settings.topic_prefix, lease_seconds=settings.lease_seconds)
    if not report.clean:
        raise DemoFailed(f"ap verify: {report.violations}")
    checked = ", ".join(f"{count} {what}" for what, count in sorted(report.checked.items()))
    console.print(f"  Clean: nothing was lost and nothing happened twice ({checked}).")


# --- HTTP ----------------------------------------------------------------------------------------------------


async def _until_ended(client: httpx.AsyncClient, run_id: str) -> JsonObject:
    until = monotonic() + WAIT_SECONDS_MAX
    while monotonic() < until:
        run = await _get(client, f"/runtime/runs/{run_id}")
        if run["status"] in RUN_ENDED:
            return run
        await asyncio.sleep(POLL_SECONDS)
    raise DemoFailed(f"run {run_id} did not end within {WAIT_SECONDS_MAX:g} seconds")


async def _get(client: httpx.AsyncClient, path: str) -> JsonObject:
    return await _request(client, "GET", path)


async def _post(client: httpx.AsyncClient, path: str, body: JsonObject) -> JsonObject:
    return await _request(client, "POST", path, json=body)


async def _request(client: httpx.AsyncClient, method: str, path: str, **more: Any) -> JsonObject:
    try:
        response = await client.request(method, path, **more)
    except httpx.TransportError as error:
        raise DemoFailed(f"{method} {path}: {error!r}") from error
    if response.status_code not in (200, 201) or "json" not in response.headers.get("content-type", ""):
        raise DemoFailed(f"{method} {path} answered {response.status_code}: {response.text[:500]}")
    answer: JsonObject = response.json()
    return answer
