"""What comes from outside: workflows are defined and run, runs are cancelled and stepped, and some records are bad."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bus.store import Out
from schemas import catalog as catalog_wire
from schemas import runtime as wire
from schemas.envelope import Envelope
from schemas.messages import Command
from schemas.topics import COMMANDS
from tests.simulation.generator import Behaviour, Oracle, Scenario, generate

if TYPE_CHECKING:
    from tests.simulation.world import World

UNWINDING = ("failing", "compensating", "cancelling")
PLAIN = Scenario(
    seed=0,
    dsl={
        "nodes": [{"id": "work", "type": "code", "config": {"code": "result = payload"}}],
        "edges": [],
    },
    inputs={},
    effects=Oracle(0, {"work": Behaviour()}),
)
JUNK = (b"{", b"[]", b'{"kind":"workflow"}', b'{"kind":"workflow","code":"\\u0000","name":"x"}', b"\xff")


@dataclass
class Request:
    """A command from outside, as often as it is sent."""

    id: str
    key: str
    tenant_id: str
    command: Command


@dataclass
class Started:
    """A run that was wanted: what it is made of. `poisoned`: the database refuses what its step answers."""

    id: str
    tenant_id: str
    scenario: Scenario
    poisoned: bool = False
    ends: int = 0


class Clients:
    def __init__(self, world: World) -> None:
        self.world = world
        self.requests: list[Request] = []
        self.started: dict[str, Started] = {}
        self.junk: set[tuple[int, int]] = set()

    async def ask(self, command: Command, tenant_id: str, *, poisoned: bool = False) -> None:
        """Send a command until its outcome is known, as a client with an idempotency key does."""
        world = self.world
        id = world.new_id()
        key = command.aggregate_id(tenant_id, id)
        fingerprint = f"{len(self.requests):064x}"
        envelope = Envelope(id, command.type, tenant_id, subject=key, fingerprint=fingerprint, reply_partition=0)
        out = world.record(command, envelope)
        self.requests.append(Request(id, key, tenant_id, command))
        if poisoned:
            world.database.refused.add(id)
        while True:
            for _ in range(2 if world.faults.strikes("repeated_request") else 1):
                world.log.append(out)
            deadline = world.now() + 5
            while world.now() < deadline:
                if id in world.database.outcomes:
                    return
                await asyncio.sleep(0.05)

    async def play(self, number: int) -> None:
        """One generated workflow: define it, publish it, run it; perhaps cancel the run, once or twice."""
        chance = self.world.chance
        scenario = generate(self.world.seed * 1_000 + number)
        await asyncio.sleep(chance.uniform(0, 3))
        mode = "manual" if chance.random() < 0.15 else "auto"
        forced = chance.random() < 0.2
        started = await self._start(scenario, f"tenant-{number % 2}", f"workflow-{number}", mode)
        waits = [self._cancel_in_time(started)] if scenario.cancel is not None else []
        waits += [self._cancel_by_force(started)] if forced else []
        waits += [self._step(started)] if mode == "manual" else []
        await asyncio.gather(*waits)

    async def _start(
        self, scenario: Scenario, tenant_id: str, code: str, mode: str = "auto", *, poisoned: bool = False
    ) -> Started:
        await self.ask(catalog_wire.CreateDefinition(kind="workflow", code=code, name=code), tenant_id)
        definition = catalog_wire.definition_id(tenant_id, "workflow", code)
        version = catalog_wire.CreateVersion(
            definition_id=definition, kind="workflow", spec=scenario.dsl, status="published"
        )
        await self.ask(version, tenant_id)
        run_id = self.world.new_id()
        started = self.started[run_id] = Started(run_id, tenant_id, scenario, poisoned)
        body = {"run_id": run_id, "workflow_id": definition, "inputs": scenario.inputs, "mode": mode}
        await self.ask(wire.CreateRun.model_validate(body), tenant_id)
        return started

    async def _cancel_in_time(self, started: Started) -> None:
        cancel = started.scenario.cancel
        assert cancel is not None
        while started.ends < started.scenario.cancel_after_ends and not self.world.ended(started.id):
            await asyncio.sleep(0.02)
        if not self.world.ended(started.id):
            await self.ask(wire.CancelRun(run_id=started.id, compensate=cancel.compensate), started.tenant_id)

    async def _cancel_by_force(self, started: Started) -> None:
        """Cancel a run that fails, compensates or is being cancelled already."""
        while not self.world.ended(started.id):
            await asyncio.sleep(self.world.chance.choice((0.02, 0.5)))
            run = self.world.database.tables["run"].get(started.id)
            if run is not None and run.status in UNWINDING:
                compensate = self.world.chance.random() < 0.5
                cancel = wire.CancelRun(run_id=started.id, compensate=compensate, force=True)
                await self.ask(cancel, started.tenant_id)
                return

    async def _step(self, started: Started) -> None:
        """Let a manual run go on until it has ended."""
        chance, tables = self.world.chance, self.world.database.tables
        while not self.world.ended(started.id):
            rows = [row for row in tables["node_run"].values() if row.run_id == started.id and row.status == "queued"]
            if rows and chance.random() < 0.3:
                node_run_id = chance.choice(rows).id
                await self.ask(wire.ExecuteNode(run_id=started.id, node_run_id=node_run_id), started.tenant_id)
            else:
                await self.ask(wire.ExecuteRun(run_id=started.id, max_steps=chance.randint(1, 6)), started.tenant_id)
            await asyncio.sleep(chance.uniform(0, 0.5))

    async def poison(self) -> None:
        """What Postgres refuses: a command from outside, and what a step answers."""
        await asyncio.sleep(self.world.chance.uniform(0, 5))
        cursed = catalog_wire.CreateDefinition(kind="workflow", code="cursed", name="cursed")
        await self.ask(cursed, "tenant-0", poisoned=True)
        await self._start(PLAIN, "tenant-1", "plain", poisoned=True)

    async def rubbish(self) -> None:
        """Records that are no commands: bad bodies, bad headers, the wrong key or partition."""
        chance, world = self.world.chance, self.world
        for body in JUNK:
            await asyncio.sleep(chance.uniform(0, 2))
            lane = chance.randrange(world.partitions.commands)
            id = chance.choice((world.new_id(), world.new_id().upper(), ""))
            envelope = Envelope(id, "catalog.create_definition", "tenant-0", fingerprint="f")
            place = len(world.log.of(COMMANDS, lane))
            world.log.append(Out(lane, 0, COMMANDS, lane, world.new_id(), envelope.headers(), body, "tenant-0"))
            self.junk.add((lane, place))
