"""The step pool counts a lease from before it began: what stood still too long starts nothing."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from handlers.steps.pool import Result, StepPool
from handlers.steps.port import StepCall, StepFailed, StepResult
from projections.runtime import NodeRun
from schemas.runtime import FailNode
from schemas.workflow.graph import Node
from tests.schemas.workflows import accepted, node

RUN = "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e"


class Seen:
    """A pool with room for one tool step, the effects it performed, and the answers it delivered."""

    def __init__(self, lease_seconds: float, answer: StepResult | StepFailed | None = None) -> None:
        self.effects: list[str] = []
        self.answers: list[Result] = []
        self._answer = answer or StepResult({})
        self.pool = StepPool(
            {"tool": self._perform},
            {"tool": 1},
            owner="worker-1",
            deliver=self._deliver,
            abandon=self._abandon,
            lease_seconds=lease_seconds,
        )

    async def _perform(self, call: StepCall) -> StepResult:
        self.effects.append(call.node_run_id)
        if isinstance(self._answer, StepFailed):
            raise self._answer
        return self._answer

    async def _deliver(self, result: Result) -> None:
        self.answers.append(result)

    async def _abandon(self, row: NodeRun) -> None:
        raise AssertionError("every answer was delivered")

    async def leased_and_started_after(self, seconds: float) -> None:
        row = self.pool.lease(_step(), 1_000.0, new=True)
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


@pytest.mark.parametrize(
    "answer",
    [
        StepResult({"name": "\ud800"}),
        StepResult({"when": object()}),
        StepResult({}, "half a character \udc00"),
        StepResult({}, "nothing \x00"),
    ],
    ids=["surrogate", "no JSON", "surrogate in the text", "U+0000"],
)
async def test_an_answer_that_cannot_be_stored_fails_its_step(answer: StepResult) -> None:
    """Else deciding it would fail the whole batch, or nobody would hear of it until the lease has run out."""
    seen = Seen(lease_seconds=60, answer=answer)
    await seen.leased_and_started_after(0)
    (result,) = seen.answers
    assert isinstance(result.command, FailNode)
    assert (result.command.error.code, result.command.retryable) == ("output_invalid", False)
    assert result.out.body == result.command.encode()


async def test_a_failure_is_told_whatever_its_message() -> None:
    failed = StepFailed("refused", "客 \ud800 \x00", output={"got": "\ud800"}, text="\udc00")
    seen = Seen(lease_seconds=60, answer=failed)
    await seen.leased_and_started_after(0)
    (result,) = seen.answers
    assert isinstance(result.command, FailNode)
    assert (result.command.error.code, result.command.error.message) == ("refused", "客 \\ud800 \\u0000")
    assert (result.command.output, result.command.output_text) == (None, None)
    assert result.out.body == result.command.encode()
