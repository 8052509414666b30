"""Nodes that ask somebody: what the task is given, and what its end means for the run."""

from __future__ import annotations

import pytest

from schemas import runtime as wire
from schemas.decider import Awaited
from schemas.human import OpenTask
from schemas.messages import Command, JsonObject
from tests.specs.flow import RUN, Flow, answer, cancel, complete, fail, set_node, task_of

GRAPH = "ask:approval yes:answer no:answer"
EDGES = "ask>yes:approved ask>no:rejected"


def asking(**config: object) -> Flow:
    return Flow(GRAPH, EDGES, inputs={"what": "批准退款"}, configs={"ask": {"title": "{{inputs.what}}", **config}})


def test_a_node_asks_with_what_its_templates_say_and_waits() -> None:
    flow = asking(request_payload_json={"amount": "{{inputs.amount}}"}, assigned_to="{{inputs.who}}", four_eyes=True)
    flow.inputs |= {"amount": 99, "who": "ops-1"}
    (task,) = [
        each.command
        for each in flow.handle(flow.create())
        if isinstance(each, Awaited) and isinstance(each.command, OpenTask)
    ]
    assert (task.title, task.assigned_to, task.request_payload) == ("批准退款", "ops-1", {"amount": 99})
    assert (task.task_type, task.four_eyes, task.run_id) == ("approval", True, RUN)
    assert (flow.run.status, flow.node("ask").status, flow.node("ask").wait_id) == (
        "waiting",
        "pending",
        task_of("ask"),
    )


@pytest.mark.parametrize(
    ("route", "follows"),
    [("approved", ("completed yes", "skipped no")), ("rejected", ("completed no", "skipped yes"))],
)
def test_the_verdict_takes_its_edge(route: str, follows: tuple[str, str]) -> None:
    output: JsonObject = {"status": route, "approved": route == "approved"}
    flow = asking().given()
    decided = flow.handle(answer("ask", output, task=True, route=route))
    ends = {each.node_run_id: each for each in decided if isinstance(each, wire.NodeCompleted | wire.NodeSkipped)}
    said = {("completed" if isinstance(each, wire.NodeCompleted) else "skipped") for each in ends.values()}
    assert said == {"completed", "skipped"}
    assert {flow.node(name.split()[1]).status for name in follows if name.startswith("completed")} == {"completed"}
    assert flow.node("ask").output == output


def test_a_second_answer_changes_nothing() -> None:
    flow = asking().given(answer("ask", {}, task=True, route="approved"))
    flow.when(answer("ask", {}, task=True, route="rejected")).then()


def test_a_task_nobody_answered_is_asked_again_if_the_policy_says_so() -> None:
    flow = asking(retry_policy={"max_attempts": 2}).given()
    expired = answer("ask", task=True, error="task_expired", retryable=True)
    flow.when(expired).then("retry ask:task_expired", "pending ask", "ask ask")
    assert flow.node("ask").wait_id == task_of("ask", 2)
    flow.when(answer("ask", task=True, error="task_cancelled", attempt=2)).then(
        "failed ask:task_cancelled", "run failing:task_cancelled", "run failed:task_cancelled"
    )


@pytest.mark.parametrize("command", [cancel(), cancel(compensate=True), cancel(force=True)])
def test_a_cancelled_run_withdraws_its_task_at_once(command: Command) -> None:
    asking().given().when(command).then("run cancelling", "cancelled ask", "withdraw task of ask", "run cancelled")


def test_a_failing_run_withdraws_its_task() -> None:
    flow = Flow("s:answer ask:approval x:code", "s>ask s>x").given()
    flow.when(fail("x", retryable=False)).then(
        "failed x:broken", "run failing:broken", "cancelled ask", "withdraw task of ask", "run failed:broken"
    )


def test_an_early_join_withdraws_a_task() -> None:
    early = {"j": {"join_policy": "any_completed"}}
    flow = Flow("s:answer ask:approval x:code j:join", "s>ask s>x ask>j x>j", configs=early).given()
    flow.when(complete("x")).then(
        "completed x", "completed j", "cancelled ask", "withdraw task of ask", "run completed"
    )


def test_a_result_by_hand_withdraws_the_task() -> None:
    flow = asking().given()
    flow.when(set_node("ask", "running")).rejected("node_run_waits")
    flow.when(set_node("ask", "skipped")).then(
        "skipped ask", "withdraw task of ask", "skipped yes", "skipped no", "run completed"
    )


def test_what_cannot_be_asked_fails_the_node() -> None:
    flow = asking(assigned_to="{{inputs.who}}")
    flow.when(flow.create()).then("run created", "queued ask", "pending ask", "ask ask")
    refused = answer("ask", task=True, error="invalid_task")
    flow.when(refused).then("failed ask:invalid_task", "run failing:invalid_task", "run failed:invalid_task")


def test_resuming_by_hand_is_refused_until_the_task_has_ended() -> None:
    flow = asking().given()

    def resume(task_id: str) -> Command:
        return wire.ResumeHuman(run_id=RUN, node_run_id=flow.node("ask").id, human_task_id=task_id)

    flow.when(resume(task_of("ask", 2))).rejected("task_not_awaited")
    flow.when(resume(task_of("ask"))).rejected("task_open")
    flow.handle(answer("ask", {}, task=True, route="approved"))
    flow.when(resume(task_of("ask"))).then()
