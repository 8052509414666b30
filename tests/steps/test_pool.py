"""The step pool counts a lease from before it began: what stood still too long starts nothing."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from handlers.steps.pool import Result, StepPool
from handlers.steps.port import StepCall, StepResult
from projections.runtime import NodeRun
from schemas.graph import Node
from tests.schemas.workflows import accepted, node

RUN = "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e"


class Seen:
    """A pool with room for one tool step, the effects it performed, and the answers it delivered."""

    def __init__(self, lease_seconds: float) -> None:
        self.effects: list[str] = []
        self.answers: list[Result] = []
        self.pool = StepPool(
            {"tool": self._perform},
            {"tool": 1},
            owner="worker-1",
            deliver=self._deliver,
            lease_seconds=lease_seconds,
        )

    async def _perform(self, call: StepCall) -> StepResult:
        self.effects.append(call.node_run_id)
        return StepResult({})

    async def _deliver(self, result: Result) -> None:
        self.answers.append(result)

    async def leased_and_started_after(self, seconds: float) -> None:
        row = self.pool.lease(_step(), 1_000.0)
        assert row is not None
        assert self.pool.room("tool") == 0
        await asyncio.sleep(seconds)
        self.pool.start(self.pool.prepare(row, _node(), "", ""))
        held = self.pool.held[row.id].task
        assert held is not None
        await held


async def test_a_step_is_executed_while_its_lease_holds() -> None:
    seen = Seen(lease_seconds=60)
    await seen.leased_and_started_after(0)
    assert len(seen.effects) == len(seen.answers) == 1
    assert seen.pool.room("tool") == 1


async def test_nothing_is_started_after_standing_still_longer_than_the_lease() -> None:
    seen = Seen(lease_seconds=0.6)
    await seen.leased_and_started_after(0.2)
    assert seen.effects == []
    assert seen.answers == []
    assert seen.pool.room("tool") == 1


def _node() -> Node:
    return accepted(node("call", "tool", tool_binding_id="x")).nodes[0]


def _step() -> NodeRun:
    empty: dict[str, Any] = {"str": "", "int": 0, "float": 0.0, "bool": False}
    fields: dict[str, Any] = {field.name: empty.get(str(field.type)) for field in dataclasses.fields(NodeRun)}
    fields |= {"id": RUN, "run_id": RUN, "kind": "tool", "node_id": "call", "status": "queued", "ready": True}
    return NodeRun(**fields)
