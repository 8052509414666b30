"""The load driver: starts runs evenly over time by HTTP and Kafka, retries each until it is taken, notes which."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import httpx

from bus.producer import BusUnavailable, Producer
from infra.chaos.workload import TENANT, VIAS, WORKFLOWS, Job, job
from schemas.envelope import Envelope
from schemas.messages import JsonObject, derive, natural_id
from schemas.runtime import CreateRun
from schemas.topics import COMMANDS, INGRESS, partition_of

RETRY_SECONDS = 0.3
GIVE_UP_SECONDS = 180.0
REFUSALS_THAT_PASS = frozenset({429, 503})


class NotTaken(Exception):
    """A run that nobody took although it was retried long after the faults had stopped."""


@dataclass(slots=True)
class Load:
    """Runs `jobs` over `seconds`. `taken`: job by run id, for every run somebody has answered for."""

    gateway_url: str
    producer: Producer
    seed: int
    commands_partitions: int
    ingress_partitions: int
    vias: tuple[str, ...] = VIAS
    taken: dict[str, Job] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    """How often each HTTP status or error came, retries included."""
    wrong: list[str] = field(default_factory=list)
    """Answers that nobody may give."""
    in_flight: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    started: int = 0

    @property
    def served(self) -> int:
        """How many requests a gateway has taken a run by."""
        return self.answers["201"] + self.answers["202"]

    async def prepare(self) -> None:
        """Publish the workflows."""
        async with self._client() as client:
            for code, dsl in WORKFLOWS.items():
                made = await self._posted(client, "/gateway/workflows", {"code": code, "name": code})
                body: JsonObject = {"workflow_id": made["id"], "dsl_json": dsl, "status": "published"}
                version = await self._posted(client, "/gateway/workflows/versions", body)
                self.versions[code] = version["id"]

    async def run(self, runs: int, seconds: float, on_taken: Callable[[str, Job], None] | None = None) -> None:
        """Start `runs` runs over `seconds`; returns when each has been taken. Raises NotTaken."""
        began = time.monotonic()
        async with self._client() as client, asyncio.TaskGroup() as group:
            for number in range(runs):
                await asyncio.sleep(max(0.0, began + number * seconds / runs - time.monotonic()))
                it = job(self.started, self.seed, self.vias)
                self.started += 1
                group.create_task(self._start(client, it, on_taken))

    async def _start(self, client: httpx.AsyncClient, it: Job, on_taken: Callable[[str, Job], None] | None) -> None:
        pause = Random(it.key)
        give_up = time.monotonic() + GIVE_UP_SECONDS
        while True:
            self.in_flight += 1
            try:
                run_id = await (self._by_http(client, it) if it.via == "http" else self._by_kafka(it))
            finally:
                self.in_flight -= 1
            if run_id is not None:
                self.taken[run_id] = it
                if on_taken is not None:
                    on_taken(run_id, it)
                return
            if time.monotonic() > give_up:
                raise NotTaken(f"{it.key} by {it.via}: {dict(self.answers)}")
            await asyncio.sleep(RETRY_SECONDS * pause.uniform(0.5, 1.5))

    async def _by_http(self, client: httpx.AsyncClient, it: Job) -> str | None:
        body = {"workflow_version_id": self.versions[it.workflow], "inputs": it.inputs}
        try:
            answer = await client.post("/gateway/runtime/runs", json=body, headers={"idempotency-key": it.key})
        except httpx.TransportError as error:
            self.answers[type(error).__name__] += 1
            return None
        self.answers[str(answer.status_code)] += 1
        expected = natural_id(TENANT, "command", it.key)
        if answer.status_code in (201, 202):
            said = answer.json().get("id", answer.json().get("command_id"))
            if said != expected:
                self.wrong.append(f"{it.key}: {answer.status_code} names {said}, not {expected}")
            return expected
        if answer.status_code not in REFUSALS_THAT_PASS:
            self.wrong.append(f"{it.key}: {answer.status_code} {answer.text[:300]}")
        elif "retry-after" not in answer.headers:
            self.wrong.append(f"{it.key}: {answer.status_code} without Retry-After")
        return None

    async def _by_kafka(self, it: Job) -> str | None:
        command = CreateRun(workflow_version_id=self.versions[it.workflow], inputs=it.inputs)
        if it.via == INGRESS:
            run_id = derive(natural_id(TENANT, "command"), it.key)
            envelope = Envelope(it.key, command.type, TENANT)
            topic, key, partition = INGRESS, it.key, partition_of(it.key, self.ingress_partitions)
        else:
            run_id = derive(natural_id(TENANT, "command"), f"direct:{it.key}")
            fingerprint = hashlib.sha256(command.encode()).hexdigest()
            envelope = Envelope(
                run_id, command.type, TENANT, subject=run_id, correlation_id=it.key, fingerprint=fingerprint
            )
            topic, key, partition = COMMANDS, run_id, partition_of(run_id, self.commands_partitions)
        try:
            await self.producer.send(topic, partition, key, envelope.headers(), command.encode())
        except BusUnavailable:
            self.answers["BusUnavailable"] += 1
            return None
        self.answers[f"{it.via} acknowledged"] += 1
        return run_id

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.gateway_url,
            timeout=httpx.Timeout(30, connect=5),
            limits=httpx.Limits(max_connections=200),
            headers={"x-tenant-id": TENANT},
        )

    async def _posted(self, client: httpx.AsyncClient, path: str, body: JsonObject) -> dict[str, str]:
        answer = await client.post(path, json=body)
        if answer.status_code != 201:
            raise NotTaken(f"POST {path}: {answer.status_code} {answer.text[:500]}")
        made: dict[str, str] = answer.json()
        return made
