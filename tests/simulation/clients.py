"""What comes from outside: workflows are defined and run, runs are cancelled and stepped, and some records are bad."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bus.lanes import INGRESS_BASE
from bus.store import Out
from projections.runtime import NodeRun
from schemas import catalog as catalog_wire
from schemas import runtime as wire
from schemas.envelope import Envelope
from schemas.messages import Command, derive, natural_id
from tests.simulation.attendants import Attendants
from tests.simulation.generator import Behaviour, Oracle, Scenario, generate
from tests.simulation.observations import Path, Success
from tests.simulation.observed import BY_HAND

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
    """A run that was wanted: what it is made of. `poisoned`: the database refuses what its step answers.

    `parent`: the node run that started it, `root`: the run above all; `depth`: how many are above it.
    """

    id: str
    tenant_id: str
    scenario: Scenario
    poisoned: bool = False
    ends: int = 0
    parent: str = ""
    root: str = ""
    depth: int = 0


Attempt = tuple[Started, Path, str, int]


class Clients:
    def __init__(self, world: World) -> None:
        self.world = world
        self.requests: list[Request] = []
        self.started: dict[str, Started] = {}
        self.asked: dict[str, Attempt] = {}  # Whose task it is.
        self.junk: set[tuple[str, int, int]] = set()

    async def ask(self, command: Command, tenant_id: str, *, poisoned: bool = False) -> str:
        """Send a command until its outcome is known, as a client with an idempotency key does."""
        world = self.world
        id = world.new_id()
        if command.public and world.chance.random() < 0.2:
            out = self._by_ingress(command, id, tenant_id)
            id = derive(natural_id(tenant_id, "command"), id)
        else:
            key = command.aggregate_id(tenant_id, id)
            fingerprint = f"{len(self.requests):064x}"
            envelope = Envelope(id, command.type, tenant_id, subject=key, fingerprint=fingerprint, reply_partition=0)
            out = world.record(command, envelope)
        key = command.aggregate_id(tenant_id, id)
        self.requests.append(Request(id, key, tenant_id, command))
        if poisoned:
            world.database.refused.add(id)
        while True:
            for _ in range(2 if world.faults.strikes("repeated_request") else 1):
                world.log.append(out)
            deadline = world.now() + 5
            while world.now() < deadline:
                outcome = world.database.outcomes.get(id)
                if outcome is not None and outcome.status != "pending":
                    return outcome.status
                await asyncio.sleep(0.05)

    def _by_ingress(self, command: Command, id: str, tenant_id: str) -> Out:
        """The record of an outside publisher, who need not know where a command belongs."""
        headers = Envelope(id, command.type, tenant_id).headers()
        lane = self.world.chance.choice([lane for lane in self.world.lanes if lane >= INGRESS_BASE])
        topic, partition = self.world.place(lane)
        return Out(lane, 0, topic, partition, "any", headers, command.encode(), tenant_id)

    def plays(self) -> list[Coroutine[Any, Any, None]]:
        """Everything that comes from outside."""
        coming = [self.play(number) for number in range(self.world.runs)]
        return coming + ([self.poison(), self.rubbish()] if self.world.chance.random() < 0.2 else [])

    async def play(self, number: int) -> None:
        """One generated workflow: define it, publish it, run it; perhaps cancel the run, once or twice."""
        chance = self.world.chance
        scenario = self._hurried(generate(self.world.seed * 1_000 + number))
        await asyncio.sleep(chance.uniform(0, 3))
        mode = "manual" if chance.random() < 0.15 else "auto"
        forced = chance.random() < 0.2
        started = await self._start(scenario, f"tenant-{number % 2}", f"workflow-{number}", mode)
        waits = [self._cancel_in_time(started)] if scenario.cancel is not None else []
        waits += [self._cancel_by_force(started)] if forced else []
        waits += [self._step(started)] if mode == "manual" else []
        waits += [self._outside_worker(started)] if chance.random() < 0.1 else []
        waits += [self._vanishing_worker(started)] if chance.random() < 0.1 else []
        await asyncio.gather(*waits, *self._attendants(started))

    def _attendants(self, started: Started) -> list[Coroutine[Any, Any, None]]:
        chance, attendants = self.world.chance, Attendants(self, started)
        found = [attendants.people()]
        found += [attendants.pauses()] if chance.random() < 0.3 else []
        found += [attendants.cancels_a_child()] if chance.random() < 0.15 else []
        found += [attendants.by_hand()] if chance.random() < 0.15 else []
        return found

    def waits(self, row: NodeRun, on: str, wait_id: str) -> None:
        """A node run waits for a task or a child run: who that is, and what it is made of."""
        parent = self.started.get(row.run_id)
        if parent is None or on == "timer":
            return
        attempt = (row.path, row.iteration, row.attempt)
        if on == "task":
            self.asked[wait_id] = (parent, *attempt)
        elif scenario := parent.scenario.effects.child(*attempt):
            self.started[wait_id] = Started(
                wait_id, parent.tenant_id, scenario, parent=row.id, root=parent.root, depth=parent.depth + 1
            )

    def _hurried(self, scenario: Scenario) -> Scenario:
        """The scenario with a limit on the time of some of its effects."""
        dsl = copy.deepcopy(scenario.dsl)
        for node in dsl["nodes"]:
            if node["type"] == "code" and self.world.chance.random() < 0.1:
                node["config"]["timeout_seconds"] = self.world.chance.choice((1, 3))
        return replace(scenario, dsl=dsl)

    async def _start(
        self, scenario: Scenario, tenant_id: str, code: str, mode: str = "auto", *, poisoned: bool = False
    ) -> Started:
        definition = await self._define(scenario, tenant_id, code)
        run_id = self.world.new_id()
        started = self.started[run_id] = Started(run_id, tenant_id, scenario, poisoned, root=run_id)
        body = {"run_id": run_id, "workflow_id": definition, "inputs": scenario.inputs, "mode": mode}
        await self.ask(wire.CreateRun.model_validate(body), tenant_id)
        return started

    async def _define(self, scenario: Scenario, tenant_id: str, code: str) -> str:
        """Publish a workflow, after those that it starts; one may start itself."""
        dsl = copy.deepcopy(scenario.dsl)
        for node in dsl["nodes"]:
            child = scenario.effects.children.get(node["id"])
            if child is scenario:
                node["config"]["workflow_id"] = catalog_wire.definition_id(tenant_id, "workflow", code)
            elif isinstance(child, Scenario):
                node["config"]["workflow_id"] = await self._define(child, tenant_id, f"{code}/{node['id']}")
        await self.ask(catalog_wire.CreateDefinition(kind="workflow", code=code, name=code), tenant_id)
        definition = catalog_wire.definition_id(tenant_id, "workflow", code)
        version = catalog_wire.CreateVersion(definition_id=definition, kind="workflow", spec=dsl, status="published")
        while await self.ask(version, tenant_id) == "failed":
            """Its check was lost with several executors: a version is made anew."""
        return definition

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

    async def _outside_worker(self, started: Started) -> None:
        """Somebody who knows nothing of leases does the work of some nodes, unless an executor holds it.

        Only where there is one attempt: what it says of a node run counts for whichever attempt is due by then.
        """
        chance, tables = self.world.chance, self.world.database.tables
        nodes = started.scenario.dsl["nodes"]
        once = {node["id"] for node in nodes if "retry_policy" not in node.get("config", {})}
        while not self.world.ended(started.id):
            await asyncio.sleep(chance.uniform(0, 1))
            rows = [row for row in tables["node_run"].values() if row.run_id == started.id and row.status == "queued"]
            row = chance.choice(rows) if rows else None
            if row is None or row.node_type != "code" or row.node_id not in once:
                continue
            answer = started.scenario.effects(row.path, row.iteration, row.attempt)
            names = {"run_id": started.id, "node_run_id": row.id, "worker_key": BY_HAND}
            if isinstance(answer, Success):
                await self.ask(wire.SetNodeStatus(**names, status="running"), started.tenant_id)
                done = wire.SetNodeStatus(**names, status="completed", output=answer.output, output_text=answer.text)
                await self.ask(done, started.tenant_id)

    async def _vanishing_worker(self, started: Started) -> None:
        """Somebody who claims what waits, perhaps renews that once, and is not heard of again."""
        chance, tables = self.world.chance, self.world.database.tables
        for number in range(chance.randint(1, 3)):
            rows: list[NodeRun] = []
            while not rows and not self.world.ended(started.id):
                await asyncio.sleep(chance.uniform(0, 1))
                found = [row for row in tables["node_run"].values() if row.run_id == started.id]
                rows = [row for row in found if row.status in ("queued", "pending") and row.leased_by is None]
            if not rows:
                return
            claim = wire.SetNodeStatus(
                run_id=started.id, node_run_id=chance.choice(rows).id, status="running",
                worker_key=f"vanishing-{number}", lease_seconds=chance.randint(1, 10),
            )  # fmt: skip
            for _ in range(chance.randint(1, 2)):
                await self.ask(claim, started.tenant_id)

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
            topic, partition = world.place(chance.choice(world.lanes))
            id = chance.choice((world.new_id(), world.new_id().upper(), ""))
            envelope = Envelope(id, "catalog.create_definition", "tenant-0", fingerprint="f")
            self.junk.add((topic, partition, len(world.log.of(topic, partition))))
            world.log.append(Out(0, 0, topic, partition, world.new_id(), envelope.headers(), body, "tenant-0"))
