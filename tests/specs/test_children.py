"""Nodes that have another run in their stead: what the runs tell each other, and what each makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from projections.runtime import Run
from schemas import runtime as wire
from schemas.decider import Answer
from schemas.envelope import AnswerTo
from schemas.messages import Command
from tests.specs.flow import (
    RUN,
    Flow,
    Later,
    answer,
    cancel,
    child_of,
    complete,
    fail,
    id_of,
    set_node,
    set_run,
)


def nested(edges: str = "", **config: object) -> Flow:
    return Flow("a:workflow b:answer", edges, configs={"a": config} if config else {})


def test_a_child_run_is_awaited_and_its_output_is_the_nodes() -> None:
    flow = nested("a>b", inputs={"x": "{{inputs.n}}"})
    flow.inputs = {"n": 3}
    run = flow.when(flow.create()).then("run created", "queued a", "pending a", "start a")
    assert (run.status, run.children, flow.node("a").wait_id) == ("waiting", 1, child_of("a"))
    assert flow.node("a").input == {"inputs": {"x": 3}}
    run = flow.when(answer("a", {"sum": 4}, output_text="four")).then("completed a", "completed b", "run completed")
    assert (flow.node("a").output, flow.node("a").output_text) == ({"sum": 4}, "four")
    flow.when(answer("a", {"sum": 5})).then()


def test_an_answer_to_another_wait_changes_nothing() -> None:
    nested("a>b").given().when(answer("a", {}, attempt=2)).then()


def test_a_childs_failure_is_the_nodes_and_names_the_child() -> None:
    flow = nested("a>b").given()
    flow.when(answer("a", error="card_refused")).then(
        "failed a:card_refused", "run failing:card_refused", "run failed:card_refused"
    )
    error = flow.node("a").error
    assert error is not None
    assert (error["run_id"], error["message"]) == (child_of("a"), f"run {child_of('a')}: it broke")


def test_a_failed_child_is_tried_again_as_another_run() -> None:
    flow = nested("a>b", retry_policy={"max_attempts": 2}).given()
    flow.when(answer("a", error="card_refused", retryable=True)).then("retry a:card_refused", "pending a", "start a")
    assert (flow.node("a").wait_on, flow.node("a").wait_id) == ("run", child_of("a", 2))
    flow.when(answer("a", {}, attempt=1)).then()
    flow.when(answer("a", {}, attempt=2)).then("completed a", "completed b", "run completed")


def test_what_was_refused_or_cancelled_is_not_tried_again() -> None:
    flow = nested("a>b", retry_policy={"max_attempts": 2}).given()
    flow.when(answer("a", error="run_cancelled")).then(
        "failed a:run_cancelled", "run failing:run_cancelled", "run failed:run_cancelled"
    )


def test_a_child_that_is_late_is_cancelled_and_the_node_fails() -> None:
    flow = nested("a>b", timeout_seconds=5)
    flow.when(flow.create()).then("run created", "queued a", "pending a", "start a", "time out a in 5.0")
    late = answer("a", error="timeout", retryable=True, timed_out=True)
    flow.when(late).then(
        "cancel compensate child of a", "failed a:timeout", "run failing:timeout", "run failed:timeout"
    )


def test_runs_do_not_nest_deeper_than_eight() -> None:
    flow = nested()
    flow.answer_to = "runtime/x/y/z"
    start = wire.StartChild(
        run_id=RUN,
        workflow_id=flow.version.definition_id,
        parent_run_id=RUN,
        parent_node_run_id=RUN,
        root_run_id=RUN,
        depth=8,
    )
    decided = flow.handle(start)
    assert any(isinstance(each, wire.NodeFailed) and each.error.code == "depth_exceeded" for each in decided)


def test_a_run_starts_no_more_than_so_many_children() -> None:
    flow = Flow("a:workflow b:workflow", "a>b").given()
    flow.tables.rows[Run, RUN] = replace(flow.run, children=wire.CHILDREN_MAX)
    flow.when(answer("a", {})).then(
        "completed a", "failed b:too_many_children", "run failing:too_many_children", "run failed:too_many_children"
    )


@pytest.mark.parametrize(("command", "told"), [(cancel(), "cancel"), (cancel(compensate=True), "cancel compensate")])
def test_a_cancelled_run_awaits_its_child(command: Command, told: str) -> None:
    flow = nested("a>b").given()
    run = flow.when(command).then("run cancelling", f"{told} child of a")
    assert run.status == "cancelling"
    flow.when(answer("a", error="run_cancelled")).then("failed a:run_cancelled", "run cancelled")


def test_by_force_it_does_not() -> None:
    flow = nested("a>b").given()
    flow.when(cancel(force=True)).then("run cancelling", "cancelled a", "cancel force child of a", "run cancelled")


def test_a_failing_run_has_its_child_make_up_for_itself_and_awaits_it() -> None:
    flow = Flow("s:answer a:workflow x:code u:answer", "s>a s>x", configs={"a": {"compensation_node_id": "u"}}).given()
    flow.when(fail("x", retryable=False)).then("failed x:broken", "run failing:broken", "cancel compensate child of a")
    flow.when(answer("a", {"done": True})).then(
        "completed a", "run compensating a", "queued a/u", "completed a/u", "run compensated:broken"
    )


def test_a_result_by_hand_ends_the_child_and_a_claim_is_refused() -> None:
    flow = nested("a>b").given()
    flow.when(set_node("a", "running")).rejected("node_run_waits")
    flow.when(set_node("a", "completed", output={"x": 1})).then(
        "completed a", "cancel child of a", "completed b", "run completed"
    )


def test_an_early_join_makes_a_child_superfluous() -> None:
    flow = Flow(
        "s:answer a:workflow x:code j:join", "s>a s>x a>j x>j", configs={"j": {"join_policy": "any_completed"}}
    ).given()
    flow.when(complete("x")).then("completed x", "completed j", "cancelled a", "cancel child of a", "run completed")


def test_a_run_that_is_said_to_be_completed_cuts_its_child() -> None:
    flow = nested("a>b").given()
    flow.when(set_run("completed")).then("cancelled a", "cancel force child of a", "run completed")


def test_a_dead_letter_of_a_run_cuts_its_child() -> None:
    flow = nested("a>b").given(Later(1.0))
    lost = wire.FailRun(run_id=RUN, error=wire.Failure(code="internal_error"))
    flow.when(lost).then(
        "run failing:internal_error", "cancelled a", "cancel compensate force child of a", "run failed:internal_error"
    )


@pytest.mark.parametrize(("said", "follows"), [({"refused": True}, []), ({}, ["run compensating a", "queued a/u"])])
def test_a_child_that_never_was_is_not_made_up_for(said: dict[str, Any], follows: list[str]) -> None:
    flow = Flow("a:workflow u:code", configs={"a": {"compensation_node_id": "u"}}).given()
    told = flow.when(answer("a", error="broken", **said))
    end = [*follows, "ready a/u#1"] if follows else ["run failed:broken"]
    told.then("failed a:broken", "run failing:broken", *end)


def test_only_what_was_refused_counts_as_never_having_been() -> None:
    told = nested().domain.answered
    address = AnswerTo("runtime", RUN, id_of("a"), child_of("a"))
    refused = told(address, Answer(code="no_published_version"))
    stopped = told(address, Answer({"retryable": False}, "run_cancelled"))
    assert isinstance(refused, wire.ResumeNode)
    assert isinstance(stopped, wire.ResumeNode)
    assert (refused.refused, stopped.refused) == (True, False)
