"""Any command handled twice equals once: a run's records are handled again, and nothing is different."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from bus.limits import Defences
from bus.store import Out
from projections.runtime import NodeRun
from schemas import access as access_wire
from schemas import catalog as catalog_wire
from schemas import human as human_wire
from schemas import runtime as wire
from schemas.messages import Command
from schemas.runtime import Failure
from tests.domains.platform import TENANT, Platform, record
from tests.simulation import observations as seen
from tests.simulation.generator import Scenario, generate

RECORDS_MAX = 2_000


@dataclass(frozen=True)
class Handled:
    """A record, and the time at which it was handled."""

    out: Out
    at: float


@dataclass
class Run(Platform):
    """A platform on which a scenario is played."""

    scenario: Scenario = field(default_factory=lambda: generate(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        self._ids = random.Random(self.scenario.seed)

    def _fresh(self) -> str:
        return str(uuid.UUID(int=self._ids.getrandbits(128), version=4))

    def ask(self, command: Command) -> Out:
        """A command from outside."""
        return record(command, self._fresh(), reply=True)

    def answers(self) -> list[Out]:
        """What the steps that wait answer, in any order."""
        rows = [row for row in self.database.tables["node_run"].values() if row.ready and row.status == "queued"]
        return [self._answer(row) for row in self._ids.sample(rows, len(rows))]

    def _answer(self, row: NodeRun) -> Out:
        names: dict[str, Any] = {"run_id": row.run_id, "node_run_id": row.id, "lease_token": row.lease_token}
        command: Command
        if row.kind == "check":
            command = wire.CompleteNode(**names, output={"problems": []})
            return record(command, self._fresh(), reply=False)
        match self.scenario.effects(row.path, row.iteration, row.attempt):
            case seen.Success(output, text):
                command = wire.CompleteNode(**names, output=output, output_text=text)
            case seen.Failure(code, retryable):
                command = wire.FailNode(**names, error=Failure(code=code), retryable=retryable)
        return record(command, self._fresh(), reply=False)


async def play(scenario: Scenario) -> tuple[list[Handled], Mapping[str, Any]]:
    """Play a scenario to its end without faults: every record in the order it was handled, and what came out."""
    platform = Run(scenario=scenario)
    await platform.claim()
    handled: list[Handled] = []
    asked = [platform.ask(command) for command in commands(platform)]
    published = next(index for index, out in enumerate(asked) if out.key == asked[-1].key)
    todo = deque(asked[:published])
    later = deque(asked[published:])  # What is asked of the run: its workflow is published by then.
    while len(handled) < RECORDS_MAX:
        todo += platform.made
        platform.made.clear()
        if not todo:
            todo += platform.answers()
        if not todo:
            todo, later = later, todo
        if not todo and platform.database.timers:
            platform.at = min(due for due, _ in platform.database.timers.values())
            await platform.kernel.fire_timers()
            while not platform.made:
                await asyncio.sleep(0)
            continue
        if not todo:
            return handled, platform.dump()
        handled.append(Handled(todo.popleft(), platform.at))
        await platform.feed(handled[-1].out)
    raise AssertionError("the run does not end")


def commands(platform: Run) -> list[Command]:
    """What is asked from outside: of every kind that can be said twice."""
    scenario = platform.scenario
    workflow = catalog_wire.definition_id(TENANT, "workflow", "w")
    key_id, run_id, answered, late = (str(uuid.UUID(int=number, version=4)) for number in (1, 2, 3, 4))
    create_key = access_wire.CreateApiKey(api_key_id=key_id, name="k", scopes=("*",), secret_sha256="0" * 64)
    found: list[Command] = [
        create_key,
        access_wire.SetApiKeyStatus(api_key_id=key_id, status="disabled"),
        access_wire.DeleteApiKey(api_key_id=key_id),
        human_wire.CreateTask(task_id=answered, task_type="approval", title="t", timeout_seconds=60.0),
        human_wire.ClaimTask(task_id=answered, claimed_by="ops-1"),
        human_wire.CompleteTask(task_id=answered, status="approved"),
        human_wire.CreateTask(
            task_id=late, task_type="input", title="t", timeout_seconds=60.0, on_timeout="escalate", escalate_to="boss"
        ),
        catalog_wire.CreateDefinition(kind="workflow", code="w", name="w"),
        catalog_wire.ChangeDefinition(definition_id=workflow, kind="workflow", name="other"),
        catalog_wire.CreateVersion(definition_id=workflow, kind="workflow", spec=scenario.dsl, status="published"),
        wire.CreateRun(run_id=run_id, workflow_id=workflow, inputs=scenario.inputs),
    ]
    if scenario.cancel is not None:
        found.append(wire.CancelRun(run_id=run_id, compensate=scenario.cancel.compensate))
    return found


async def replay(scenario: Scenario, handled: list[Handled], defences: Defences | None = None) -> Mapping[str, Any]:
    platform = Run(defences=defences or Defences(), scenario=scenario)
    await platform.claim()
    for each in handled:
        platform.at = each.at
        await platform.feed(each.out)
    return platform.dump()


def doubled(handled: list[Handled]) -> list[Handled]:
    return [again for each in handled for again in (each, each)]


def haunted(handled: list[Handled], chance: random.Random) -> list[Handled]:
    """After each record an earlier one comes again."""
    found = []
    for index, each in enumerate(handled):
        found += [each, replace(handled[chance.randrange(index + 1)], at=each.at)]
    return found


@pytest.mark.parametrize("seed", range(25))
async def test_records_that_come_again_change_nothing(seed: int) -> None:
    scenario = generate(seed)
    handled, expected = await play(scenario)
    assert await replay(scenario, handled) == expected
    assert await replay(scenario, doubled(handled)) == expected
    assert await replay(scenario, haunted(handled, random.Random(seed))) == expected
    assert await replay(scenario, handled + handled) == expected


async def test_without_the_inbox_they_do() -> None:
    scenario = generate(0)
    handled, expected = await play(scenario)
    assert await replay(scenario, doubled(handled), Defences(inbox=False)) != expected
