"""Runs that the platform has for itself: nobody outside answers for them, whoever awaits one is told its end."""

from __future__ import annotations

import pytest

from schemas import runtime as wire
from schemas.decider import Answer, Decision, Reply
from schemas.messages import Command
from tests.specs.flow import RUN, Flow, cancel, complete, fail, id_of, set_node, set_run


class Single(Flow):
    """A run of one step, awaited by somebody."""

    def begin(self) -> list[Decision]:
        self.answer_to = "catalog/a/b/c"
        return self.handle(wire.StartSingle(run_id=RUN, step="check", inputs={"version_id": RUN}))


@pytest.fixture
def single() -> Single:
    flow = Single("x:answer")
    flow.begin()
    return flow


def told(decisions: list[Decision]) -> list[Answer]:
    return [each.answer for each in decisions if isinstance(each, Reply) and each.answer_to == "catalog/a/b/c"]


def test_its_step_waits_with_its_input(single: Single) -> None:
    assert (single.run.kind, single.node("check").kind, single.node("check").ready) == ("single", "check", True)
    assert single.node("check").input == {"version_id": RUN}


def test_whoever_awaits_it_is_told_its_output(single: Single) -> None:
    assert told(single.handle(complete("check", {"problems": []}))) == [
        Answer(result={"output": {"problems": []}, "output_text": None})
    ]


def test_whoever_awaits_it_is_told_why_it_failed(single: Single) -> None:
    (answer,) = told(single.handle(fail("check", "broken", retryable=False)))
    assert (answer.code, answer.result) == ("broken", {"retryable": True})


def test_whoever_awaits_it_is_told_that_it_was_cancelled(single: Single) -> None:
    (answer,) = told(single.handle(cancel()))
    assert answer.code == "run_cancelled"


@pytest.mark.parametrize(
    "command",
    [
        set_node("check", "completed", output={"problems": []}),
        set_node("check", "running"),
        set_run("completed"),
        set_run("failed"),
    ],
)
def test_nobody_outside_answers_for_it(single: Single, command: Command) -> None:
    single.when(command).rejected("run_of_platform")
    assert single.node("check").id == id_of("check")
