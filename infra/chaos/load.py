"""The load driver: starts runs evenly over time by HTTP and Kafka, retries each until it is taken, notes which."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from bus.producer import BusUnavailable, Producer
from infra.chaos.poison import Poison
from infra.chaos.workload import TENANTS, VIAS, WORKFLOWS, Job, job
from infra.settings import Settings
from schemas.envelope import Envelope
from schemas.messages import JsonObject, derive, natural_id
from schemas.runtime import CreateRun
from schemas.topics import BROKER_MESSAGE_BYTES_MAX, COMMANDS, INGRESS, partition_of

RETRY_SECONDS = 0.3
GIVE_UP_SECONDS = 180.0
REFUSALS_THAT_PASS = frozenset({429, 503})


class NotTaken(Exception):
    """A run that nobody took although it was retried long after the faults had stopped."""


@dataclass(slots=True)
class Load:
    """Runs `jobs` over `seconds`. `taken`: job by run id, for every run somebody has answered for.

    `keys` false leaves the Idempotency-Key out: the control arm of that defence.
    """

    gateway_url: str
    producer: Producer
    seed: int
    settings: Settings
    vias: tuple[str, ...] = VIAS
    keys: bool = True
    taken: dict[str, Job] = field(default_factory=dict)
    offered: dict[int, float] = field(default_factory=dict)
    """When each job was first offered, by its number; seconds since 1970."""
    poisoned: dict[str, Poison] = field(default_factory=dict)
    """Records sent that nobody can handle, by key."""
    answers: Counter[str] = field(default_factory=Counter)
    """How often each HTTP status or error came, retries included."""
    wrong: list[str] = field(default_factory=list)
    """Answers that nobody may give."""
    in_flight: int = 0
    versions: dict[tuple[str, str], str] = field(default_factory=dict)
    started: int = 0
    other_gateways: list[str] = field(default_factory=list)
    """Asked when the first one takes no connections."""

    @property
    def served(self) -> int:
        """How many requests a gateway has taken a run by."""
        return self.answers["201"] + self.answers["202"]

    async def prepare(self) -> None:
        """Publish the workflows, each tenant its own under the same codes."""
        async with self._client() as client:
            for tenant in TENANTS:
                for code, dsl in WORKFLOWS.items():
                    made = await self._posted(client, tenant, "/gateway/workflows", {"code": code, "name": code})
                    body: JsonObject = {"workflow_id": made["id"], "dsl_json": dsl, "status": "published"}
                    version = await self._posted(client, tenant, "/gateway/workflows/versions", body)
                    self.versions[tenant, code] = version["id"]

    async def run(self, runs: int, seconds: float, on_taken: Callable[[str, Job], None] | None = None) -> None:
        """Start `runs` runs over `seconds`; returns when each has been taken. Raises NotTaken."""
        began = time.monotonic()
        async with self._client() as client, asyncio.TaskGroup() as group:
            for number in range(runs):
                await asyncio.sleep(max(0.0, began + number * seconds / runs - time.monotonic()))
                it = job(self.started, self.seed, self.vias)
                self.started += 1
                self.offered[it.number] = time.time()
                group.create_task(self._start(client, it, on_taken))

    async def poison(self, it: Poison) -> bool:
        """Send a record that nobody can handle; false if Kafka did not take it."""
        try:
            async with self._raw_producer() as producer:
                key, topic = it.key.encode(), self.settings.topic_prefix + it.topic
                await producer.send_and_wait(topic, it.body, key=key, partition=it.partition, headers=it.headers)
        except (KafkaError, OSError, TimeoutError):
            return False
        self.poisoned[it.key] = it
        return True

    async def _start(self, client: httpx.AsyncClient, it: Job, on_taken: Callable[[str, Job], None] | None) -> None:
        pause = Random(f"{it.tenant_id} {it.key}")
        give_up = time.monotonic() + GIVE_UP_SECONDS
        while True:
            self.in_flight += 1
            try:
                run_id = await (self._by_http(client, it) if it.via == "http" else self.by_kafka(it))
            finally:
                self.in_flight -= 1
            if run_id is not None:
                self.taken[run_id] = it
                if on_taken is not None:
                    on_taken(run_id, it)
                return
            if time.monotonic() > give_up:
                raise NotTaken(f"{it.tenant_id} {it.key} by {it.via}: {dict(self.answers)}")
            await asyncio.sleep(RETRY_SECONDS * pause.uniform(0.5, 1.5))

    async def _by_http(self, client: httpx.AsyncClient, it: Job) -> str | None:
        body = {"workflow_version_id": self.versions[it.tenant_id, it.workflow], "inputs": it.inputs}
        headers = {"x-tenant-id": it.tenant_id} | ({"idempotency-key": it.key} if self.keys else {})
        answer = await self._answer(client, body, headers)
        if answer is None:
            return None
        self.answers[str(answer.status_code)] += 1
        if answer.status_code in (201, 202):
            said: str = answer.json().get("id", answer.json().get("command_id"))
            expected = natural_id(it.tenant_id, "command", it.key) if self.keys else said
            if said != expected:
                self.wrong.append(f"{it.key}: {answer.status_code} names {said}, not {expected}")
            return expected
        if answer.status_code not in REFUSALS_THAT_PASS:
            self.wrong.append(f"{it.key}: {answer.status_code} {answer.text[:300]}")
        elif "retry-after" not in answer.headers:
            self.wrong.append(f"{it.key}: {answer.status_code} without Retry-After")
        return None

    async def _answer(self, client: httpx.AsyncClient, body: JsonObject, headers: Any) -> httpx.Response | None:
        """Of the first gateway that takes a connection."""
        for gateway in (self.gateway_url, *self.other_gateways):
            try:
                return await client.post(f"{gateway}/gateway/runtime/runs", json=body, headers=headers)
            except httpx.ConnectError:
                self.answers["ConnectError"] += 1
            except httpx.TransportError as error:
                self.answers[type(error).__name__] += 1
                return None
        return None

    async def by_kafka(self, it: Job) -> str | None:
        command = CreateRun(workflow_version_id=self.versions[it.tenant_id, it.workflow], inputs=it.inputs)
        name = natural_id(it.tenant_id, "command")
        if it.via == INGRESS:
            run_id = derive(name, it.key)
            envelope = Envelope(it.key, command.type, it.tenant_id)
            topic, key, partition = INGRESS, it.key, partition_of(it.key, self.settings.ingress_partitions)
        else:
            run_id = derive(name, f"direct:{it.key}")
            fingerprint = hashlib.sha256(command.encode()).hexdigest()
            envelope = Envelope(
                run_id, command.type, it.tenant_id, subject=run_id, correlation_id=it.key, fingerprint=fingerprint
            )
            topic, key, partition = COMMANDS, run_id, partition_of(run_id, self.settings.commands_partitions)
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
        )

    @contextlib.asynccontextmanager
    async def _raw_producer(self) -> AsyncIterator[AIOKafkaProducer]:
        """One without the bounds of ours: a poisoner respects none."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.settings.required_kafka_bootstrap,
            acks="all",
            max_request_size=BROKER_MESSAGE_BYTES_MAX,
            request_timeout_ms=5_000,
        )
        try:
            await asyncio.wait_for(producer.start(), 5)
            yield producer
        finally:
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                await asyncio.wait_for(producer.stop(), 2)

    async def _posted(self, client: httpx.AsyncClient, tenant: str, path: str, body: JsonObject) -> dict[str, str]:
        key = hashlib.sha256(f"{tenant} {path} {body}".encode()).hexdigest()
        give_up = time.monotonic() + GIVE_UP_SECONDS
        while True:
            try:
                answer = await client.post(path, json=body, headers={"x-tenant-id": tenant, "idempotency-key": key})
            except httpx.TransportError as error:
                if time.monotonic() > give_up:
                    raise NotTaken(f"POST {path}: {error}") from error
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if answer.status_code == 201:
                made: dict[str, str] = answer.json()
                return made
            if answer.status_code not in REFUSALS_THAT_PASS | {202} or time.monotonic() > give_up:
                raise NotTaken(f"POST {path}: {answer.status_code} {answer.text[:500]}")
            await asyncio.sleep(RETRY_SECONDS)
