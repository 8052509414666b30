"""Claims and results of external workers: a claim is a lease with a time-out, a result counts once."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

from projections.runtime import BY_HAND, LEASED, READY, UNLISTED
from schemas import runtime as wire
from schemas.messages import Command
from tests.specs.flow import (
    Flow,
    Later,
    Leased,
    cancel,
    complete,
    execute,
    execute_node,
    expire,
    fail,
    id_of,
    set_node,
    set_run,
    wake,
)


def chain(**config: Any) -> Flow:
    return Flow("a:code b:code", "a>b", configs={"a": config})


def manual(nodes: str = "a:code b:code", edges: str = "a>b", **config: Any) -> Flow:
    flow = Flow(nodes, edges, configs={"a": config})
    flow.handle(flow.create(mode="manual"))
    return flow


def claim(path: str, key: str = "w", seconds: int = 300) -> Command:
    return set_node(path, "running", worker_key=key, lease_seconds=seconds)


# A claim is a lease.


def test_a_claim_takes_the_step_from_executors_until_it_expires() -> None:
    flow = chain().given(Later(10.0))
    flow.when(claim("a", seconds=60)).then("running a#2")
    row = flow.node("a")
    assert (row.status, row.leased_by, row.lease_until, row.listed) == ("running", "w", 70.0, LEASED)
    flow.at = 69.9
    flow.when(expire("a", token=2)).then()
    flow.at = 70.0
    flow.when(expire("a", token=1)).then()
    flow.when(expire("a", token=2)).then("requeued a#3")
    row = flow.node("a")
    assert (row.status, row.leased_by, row.listed, row.ready, row.requeues) == ("queued", None, READY, True, 1)
    flow.when(expire("a", token=2)).then()


def test_the_lease_is_five_minutes_unless_the_claim_says_otherwise() -> None:
    flow = chain().given(set_node("a", "running"))
    assert flow.node("a").lease_until == 300.0
    for seconds in (0, 86_401, 1.5):
        with pytest.raises(pydantic.ValidationError):
            claim("a", seconds=seconds)  # type: ignore[arg-type]


def test_the_same_key_renews_and_another_is_refused() -> None:
    flow = chain().given(Later(10.0), claim("a", seconds=60), Later(50.0))
    flow.when(claim("a", "v")).rejected("lease_held")
    flow.when(claim("a", seconds=30)).then("renewed a")
    row = flow.node("a")
    assert (row.lease_until, row.lease_token, row.started_at) == (80.0, 2, 10.0)
    flow.at = 70.0
    flow.when(expire("a", token=2)).then()
    flow.at = 80.0
    flow.when(expire("a", token=2)).then("requeued a#3")
    flow.when(claim("a", "v")).then("running a#4")


def test_a_claim_ends_with_the_time_out_of_its_node() -> None:
    """The attempt's time runs from its claim, however often that is renewed."""
    flow = chain(timeout_seconds=20).given(Later(10.0), claim("a"))
    assert (flow.node("a").lease_until, flow.node("a").deadline_at) == (30.0, 30.0)
    flow.at = 25.0
    flow.when(claim("a")).then("renewed a")
    assert flow.node("a").lease_until == 30.0
    flow.at = 30.0
    flow.when(claim("a")).rejected("lease_expired")
    flow.when(expire("a", token=2)).then("failed a:timeout", "run failing:timeout", "run failed:timeout")


def test_a_claim_that_times_out_is_retried_by_the_nodes_policy() -> None:
    config = {"timeout_seconds": 5, "retry_policy": {"max_attempts": 2, "retry_delay_seconds": 2}}
    flow = chain(**config).given(claim("a"), Later(5.0))
    flow.when(expire("a", token=2)).then("retry a:timeout", "pending a", "wake a in 2.0")
    assert (flow.node("a").leased_by, flow.node("a").listed, flow.node("a").ready) == (None, UNLISTED, False)


def test_claim_after_claim_expires_until_the_node_fails() -> None:
    flow = chain().given()
    for token in (2, 4, 6, 8):
        flow.when(claim("a", seconds=1)).then(f"running a#{token}")
        flow.at += 1
        flow.when(expire("a", token=token)).then(f"requeued a#{token + 1}")
    flow.handle(claim("a", seconds=1))
    flow.at += 1
    flow.when(expire("a", token=10)).then("failed a:lease_lost", "run failing:lease_lost", "run failed:lease_lost")


def test_a_step_that_an_executor_executes_cannot_be_claimed() -> None:
    flow = chain().given(Leased("a", by="executor"))
    flow.when(claim("a")).rejected("lease_held")
    flow.when(claim("a", "executor")).rejected("lease_held")
    flow.when(set_node("a", "completed", worker_key="executor")).rejected("lease_held")


def test_what_an_executor_of_a_former_lease_answers_does_not_count() -> None:
    flow = chain().given(Leased("a", until=8.0), Later(9.0), expire("a"), claim("a"))
    flow.when(complete("a", token=1)).then()
    flow.when(complete("a", token=2)).then()
    flow.when(complete("a", token=3)).then()
    assert flow.node("a").status == "running"


# What was claimed before its turn goes back to where it was.


def test_a_node_that_waits_for_a_retry_may_be_claimed_and_waits_again() -> None:
    """Its timer may have fired meanwhile, so it gets another."""
    config = {"retry_policy": {"max_attempts": 2, "retry_delay_seconds": 100}}
    flow = chain(**config).given(Leased("a"), fail("a"))
    flow.when(claim("a", seconds=30)).then("running a#2")
    flow.at = 30.0
    flow.when(expire("a", token=2)).then("requeued a#3", "wake a in 70.0")
    assert (flow.node("a").status, flow.node("a").due_at, flow.node("a").attempt) == ("pending", 100.0, 2)
    assert (flow.run.active, flow.run.pending, flow.run.status) == (0, 1, "waiting")
    flow.at = 100.0
    flow.when(wake("a", attempt=2)).then("ready a#4")


def test_a_retry_that_fell_due_while_it_was_claimed_follows_the_claims_end() -> None:
    config = {"retry_policy": {"max_attempts": 2, "retry_delay_seconds": 10}}
    flow = chain(**config).given(Leased("a"), fail("a"), claim("a", seconds=30), Later(10.0))
    flow.when(wake("a", attempt=2)).then()
    flow.at = 30.0
    flow.when(expire("a", token=2)).then("requeued a#3", "ready a#4")


def test_a_delayed_node_may_be_claimed() -> None:
    flow = chain(delay_seconds=10).given(claim("a", seconds=3), Later(3.0))
    flow.when(expire("a", token=1)).then("requeued a#2", "wake a in 7.0")
    flow.handle(claim("a"))
    flow.when(set_node("a", "completed")).then("completed a", "ready b")


def test_a_node_of_a_manual_run_is_queued_again() -> None:
    flow = manual()
    flow.when(claim("a", seconds=3)).then("running a#1")
    flow.when(execute_node("a")).rejected("node_run_taken")
    flow.when(execute()).then("steps 1")
    flow.at = 3.0
    flow.when(expire("a", token=1)).then("requeued a#2", "steps 0", "ready a#3")
    flow = manual()
    flow.handle(claim("a", seconds=3))
    flow.at = 3.0
    flow.when(expire("a", token=1)).then("requeued a#2")
    assert (flow.node("a").status, flow.node("a").ready, flow.node("a").listed) == ("queued", False, BY_HAND)
    flow.when(execute()).then("steps 1", "steps 0", "ready a#3")


def test_a_pure_node_of_a_manual_run_may_be_claimed() -> None:
    flow = manual("a:answer b:code")
    flow.handle(claim("a", seconds=3))
    flow.at = 3.0
    flow.when(expire("a", token=1)).then("requeued a#2")
    flow.when(execute_node("a")).then("completed a", "queued b")


def test_a_node_that_waited_for_its_messages_share_is_begun_after_the_claim() -> None:
    flow = Flow("a:code b:answer c:answer", "a>b b>c", share=1).given(Leased("a"))
    flow.when(complete("a")).then("completed a", "completed b", "queued c", "continue")
    flow.handle(claim("c", seconds=3))
    flow.when(wire.ContinueRun(run_id=flow.run.id)).then()
    flow.at = 3.0
    flow.when(expire("c", token=1)).then("requeued c#2", "completed c", "continue", "run completed")


# The end of a run waits for claims as for any lease.


def test_a_cancelled_run_waits_for_a_claim_and_what_it_answers_counts() -> None:
    flow = chain().given(claim("a"))
    flow.when(set_run("completed")).rejected("steps_in_flight")
    flow.when(cancel()).then("run cancelling")
    flow.when(claim("a")).rejected("run_unwinding")
    flow.when(set_node("a", "completed", output={"n": 1})).then("completed a", "run cancelled")
    flow = chain().given(claim("a", seconds=5), cancel(), Later(5.0))
    flow.when(expire("a", token=2)).then("failed a:lease_lost", "run cancelled")


def test_force_does_not_wait_for_claims() -> None:
    flow = chain().given(claim("a"), cancel())
    flow.when(cancel(force=True)).then("run cancelling", "cancelled a", "run cancelled")
    flow.when(set_node("a", "completed")).rejected("node_run_ended")


def test_a_claim_lost_while_the_run_fails_may_have_had_its_effect() -> None:
    flow = Flow("a:code undo:code b:code", configs={"a": {"compensation_node_id": "undo"}})
    flow.given(claim("a", seconds=5), Leased("b"))
    flow.when(fail("b")).then("failed b:broken", "run failing:broken")
    flow.at = 5.0
    flow.when(expire("a", token=2)).then("failed a:lease_lost", "run compensating a", "queued a/undo", "ready a/undo#1")


def test_a_compensation_may_be_claimed_and_is_given_back() -> None:
    flow = Flow("a:code undo:code", configs={"a": {"compensation_node_id": "undo"}})
    flow.given(Leased("a"), fail("a"))
    flow.handle(claim("a/undo", seconds=5))
    flow.at = 5.0
    flow.when(expire("a/undo", token=2)).then("requeued a/undo#3")
    flow.when(set_node("a/undo", "completed")).then("completed a/undo", "run compensated:broken")


@pytest.mark.parametrize("node", ["join", "code"])
def test_callers_find_what_waits_for_its_turn_and_nothing_else(node: str) -> None:
    auto = Flow(f"a:{node} b:code", "a>b")
    auto.given()
    assert auto.node("a" if node == "code" else "b").listed == READY
    flow = manual(f"a:{node} b:code")
    assert flow.node("a").listed == BY_HAND
    flow.handle(execute_node("a"))
    assert flow.node("a").listed == (READY if node == "code" else UNLISTED)
    if node == "code":
        flow.handle(complete("a"))
    assert (flow.node("a").listed, flow.node("b").listed) == (UNLISTED, BY_HAND)
    flow.handle(cancel())
    assert flow.node("b").listed == UNLISTED


def test_callers_find_a_retry_once_it_is_due() -> None:
    flow = manual(retry_policy={"max_attempts": 2, "retry_delay_seconds": 5})
    flow.handle(execute_node("a"))
    flow.handle(fail("a"))
    assert (flow.node("a").status, flow.node("a").listed) == ("pending", UNLISTED)
    flow.at = 5.0
    flow.handle(wake("a", attempt=2))
    assert (flow.node("a").status, flow.node("a").listed) == ("queued", BY_HAND)


# Results.


@pytest.mark.parametrize("status", ["completed", "failed", "skipped"])
def test_a_result_needs_no_lease_unless_somebody_else_holds_one(status: str) -> None:
    chain().given().handle(set_node("a", status))
    flow = chain().given(claim("a", "v"))
    flow.when(set_node("a", status, worker_key="w")).rejected("lease_held")
    flow.handle(set_node("a", status, worker_key="v"))
    row = flow.node("a")
    assert (row.status, row.leased_by, row.listed, row.ready) == (status, None, UNLISTED, False)


def test_a_result_that_names_no_worker_is_the_holders() -> None:
    chain().given(claim("a", "v")).when(set_node("a", "skipped", worker_key="")).then(
        "skipped a", "skipped b", "run completed"
    )
    flow = chain().given(claim("a", ""))
    flow.when(claim("a", "")).then("renewed a")
    flow.when(set_node("a", "skipped", worker_key="w")).rejected("lease_held")
    chain().given(Leased("a", by="")).when(set_node("a", "skipped", worker_key="")).rejected("lease_held")


def test_a_result_after_its_lease_counts_if_nobody_has_taken_the_step() -> None:
    flow = chain().given(claim("a", "v", 5), Later(5.0), expire("a", token=2))
    flow.when(set_node("a", "completed", worker_key="v")).then("completed a", "ready b")
    flow = chain().given(claim("a", "v", 5), Later(5.0), expire("a", token=2), Leased("a", until=20.0))
    flow.when(set_node("a", "completed", worker_key="v")).rejected("lease_held")


SAME = {
    "completed": {"output": {"n": 1, "m": [True]}, "output_text": "x"},
    "failed": {"output": {"n": 1}, "error_code": "mine", "error_message": "why"},
    "skipped": {},
}
OTHER: list[tuple[str, dict[str, Any]]] = [
    ("completed", {"output": {"n": 2, "m": [True]}}),
    ("completed", {"output": {"n": 1, "m": [1]}}),
    ("completed", {"output_text": "y"}),
    ("failed", {"error_code": "other"}),
    ("failed", {"error_message": "other"}),
    ("failed", {"output": {}}),
]


@pytest.mark.parametrize("status", SAME)
def test_the_same_result_again_is_no_conflict_and_another_status_is(status: str) -> None:
    flow = chain().given(set_node("a", status, worker_key="v", **SAME[status]))
    flow.when(set_node("a", status, worker_key="v", **SAME[status])).then()
    flow.when(set_node("a", status, worker_key="w", **SAME[status])).then()
    flow.when(set_node("a", status)).then()
    for other in {"running", *SAME} - {status}:
        flow.when(set_node("a", other)).rejected("node_run_ended")


@pytest.mark.parametrize(("status", "result"), OTHER)
def test_a_different_result_is_refused_whoever_sends_it(status: str, result: dict[str, Any]) -> None:
    flow = chain().given(set_node("a", status, worker_key="v", **SAME[status]))
    for key in ("v", "w"):
        flow.when(set_node("a", status, worker_key=key, **(SAME[status] | result))).rejected("result_differs")


def test_a_failure_that_on_error_made_good_is_the_same_failure_again() -> None:
    flow = chain(on_error="continue").given()
    flow.when(set_node("a", "failed", error_code="mine")).then("completed a:mine", "ready b")
    flow.when(set_node("a", "failed", error_code="mine")).then()
    flow.when(set_node("a", "failed", error_code="other")).rejected("result_differs")


def test_what_an_executor_answered_is_a_result_as_well() -> None:
    flow = chain().given(Leased("a"), complete("a", {"n": 1}, text="x"))
    flow.when(set_node("a", "completed", output={"n": 1}, output_text="x")).then()
    flow.when(set_node("a", "completed", output={"n": 2})).rejected("result_differs")


def test_a_claim_names_its_worker_in_history() -> None:
    flow = chain().given(claim("a", "v"), set_node("a", "completed", worker_key="v"))
    assert (flow.node("a").worker, flow.node("a").lease_token, id_of("a")) == ("v", 2, flow.node("a").id)


def test_whoever_claims_a_node_run_gets_what_it_is_to_work_on() -> None:
    flow = Flow("s:start a:code", "s>a", configs={"a": {"input_json": "{{inputs.n}}"}}, inputs={"n": 7})
    flow.handle(flow.create(mode="manual"))
    flow.handle(execute_node("s"))
    assert flow.node("a").input is None
    flow.handle(claim("a"))
    assert flow.node("a").input == {"input_json": 7}


def test_the_time_of_a_result_begins_with_the_claim() -> None:
    flow = manual()
    flow.at = 5.0
    flow.handle(claim("a"))
    flow.at = 9.0
    flow.handle(set_node("a", "completed"))
    assert (flow.node("a").started_at, flow.node("a").ended_at) == (5.0, 9.0)
