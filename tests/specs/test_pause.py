"""A paused run starts nothing: what is being executed ends, what falls due is queued, and goes on at its resumption."""

from __future__ import annotations

import pytest

from schemas import runtime as wire
from schemas.messages import Command
from tests.specs.flow import (
    RUN,
    Flow,
    Later,
    Leased,
    answer,
    cancel,
    complete,
    execute,
    execute_node,
    expire,
    fail,
    pause,
    resume,
    set_node,
    wake,
)

PAUSE_CHILD, RESUME_CHILD = wire.PauseChild(run_id=RUN), wire.ResumeChild(run_id=RUN)


def test_steps_that_nobody_executes_are_taken_back_and_given_out_again() -> None:
    flow = Flow("a:code b:answer", "a>b").given()
    run = flow.when(pause()).then("run paused by self", "queued a")
    assert (run.status, run.is_held, flow.node("a").ready) == ("running", True, False)
    flow.when(complete("a")).then()
    flow.when(resume()).then("run resumed by self", "ready a#2")
    flow.when(complete("a", token=2)).then("completed a", "completed b", "run completed")


def test_what_is_executed_ends_and_what_follows_is_queued() -> None:
    flow = Flow("a:code b:answer c:answer", "a>b b>c").given(Leased("a"))
    flow.when(pause()).then("run paused by self")
    flow.when(complete("a")).then("completed a", "queued b")
    flow.when(resume()).then("run resumed by self", "completed b", "completed c", "run completed")


def test_pausing_and_resuming_twice_is_once() -> None:
    flow = Flow("a:code").given(pause())
    flow.when(pause()).then()
    flow.handle(resume())
    flow.when(resume()).then()


def test_a_run_paused_twice_over_goes_on_when_both_have_resumed() -> None:
    flow = Flow("a:code").given(pause())
    flow.when(PAUSE_CHILD).then("run paused by parent")
    flow.when(resume()).then("run resumed by self")
    flow.when(RESUME_CHILD).then("run resumed by parent", "ready a#2")


def test_a_parents_resumption_does_not_end_ones_own_pause() -> None:
    flow = Flow("a:code").given(PAUSE_CHILD, pause())
    flow.when(RESUME_CHILD).then("run resumed by parent")
    assert flow.run.is_held


def test_children_pause_and_go_on_with_it() -> None:
    flow = Flow("a:workflow b:answer", "a>b").given()
    flow.when(pause()).then("run paused by self", "pause child of a")
    flow.when(answer("a", {})).then("completed a", "queued b")
    flow = Flow("a:workflow b:answer", "a>b").given(pause())
    flow.when(resume()).then("run resumed by self", "resume child of a")


def test_due_times_go_on_and_what_is_due_is_queued() -> None:
    flow = Flow("a:code b:answer", "a>b", configs={"b": {"delay_seconds": 3}}).given(Leased("a"), pause())
    flow.when(complete("a")).then("completed a", "queued b", "pending b", "wake b in 3.0")
    flow.when(wake("b")).then("queued b")
    flow.when(resume()).then("run resumed by self", "completed b", "run completed")


@pytest.mark.parametrize("delay", [0, 2])
def test_a_failed_attempt_is_repeated_after_the_pause(delay: int) -> None:
    policy = {"max_attempts": 2, "retry_delay_seconds": delay}
    flow = Flow("a:code", configs={"a": {"retry_policy": policy}}).given(Leased("a"), pause())
    if delay:
        flow.when(fail("a")).then("retry a:broken", "pending a", "wake a in 2.0")
        flow.when(wake("a", attempt=2)).then("queued a")
    else:
        flow.when(fail("a")).then("retry a:broken", "queued a")
    flow.when(resume()).then("run resumed by self", "ready a#2")


def test_a_lost_lease_is_queued() -> None:
    flow = Flow("a:code").given(Leased("a"), pause(), Later(10.0))
    flow.when(expire("a")).then("requeued a#2", "queued a")
    flow.when(resume()).then("run resumed by self", "ready a#3")


def test_compensations_wait() -> None:
    flow = Flow("a:answer x:code u:code", "a>x", configs={"a": {"compensation_node_id": "u"}}).given(
        Leased("x"), pause()
    )
    flow.when(fail("x", retryable=False)).then("failed x:broken", "run failing:broken")
    flow.when(resume()).then("run resumed by self", "run compensating a", "queued a/u", "ready a/u#1")


def test_a_compensation_that_nobody_executes_is_taken_back() -> None:
    flow = Flow("a:answer x:code u:code", "a>x", configs={"a": {"compensation_node_id": "u"}})
    flow.given(fail("x", retryable=False))
    flow.when(pause()).then("run paused by self", "queued a/u")
    flow.when(resume()).then("run resumed by self", "ready a/u#2")


def test_a_run_with_nothing_to_make_up_for_ends_in_its_pause() -> None:
    flow = Flow("a:code").given(Leased("a"), pause())
    flow.when(fail("a", retryable=False)).then("failed a:broken", "run failing:broken", "run failed:broken")


def test_a_paused_run_can_be_cancelled() -> None:
    Flow("a:code").given(pause()).when(cancel()).then("run cancelling", "cancelled a", "run cancelled")


def test_an_ended_run_can_be_neither_paused_nor_resumed() -> None:
    flow = Flow("a:answer").given()
    flow.when(pause()).rejected("run_ended")
    flow.when(resume()).rejected("run_ended")
    flow.when(PAUSE_CHILD).then()
    flow.when(RESUME_CHILD).then()


@pytest.mark.parametrize("command", [execute(), execute_node("a"), set_node("a", "running")])
def test_nothing_of_it_can_be_begun_by_hand(command: Command) -> None:
    flow = Flow("a:code")
    flow.handle(flow.create(mode="manual"))
    flow.handle(pause())
    flow.when(command).rejected("run_paused")


def test_a_manual_run_takes_the_steps_it_was_allowed_after_the_pause() -> None:
    flow = Flow("a:code b:answer", "a>b")
    flow.handle(flow.create(mode="manual"))
    flow.handle(execute(2))
    flow.lease(Leased("a"))
    flow.handle(pause())
    flow.when(complete("a")).then("completed a", "queued b")
    flow.when(resume()).then("run resumed by self", "steps 0", "completed b", "run completed")


def test_a_large_run_is_taken_back_in_shares() -> None:
    flow = Flow("s:answer a:code b:code c:code", "s>a s>b s>c", share=4).given()
    flow.domain = Flow("s:answer a:code b:code c:code", "s>a s>b s>c", share=2).domain
    flow.when(pause()).then("run paused by self", "queued a", "queued b", "continue")
    flow.when(wire.ContinueRun(run_id=RUN)).then("queued c")


def test_a_child_that_is_awaited_no_more_is_not_left_paused() -> None:
    """Its compensations would wait for ever for a resumption that nobody sends."""
    flow = Flow("a:workflow b:answer", "a>b").given(pause())
    flow.when(set_node("a", "completed", output={})).then(
        "completed a", "cancel child of a", "resume child of a", "queued b"
    )
    flow = Flow("a:workflow").given(pause())
    flow.when(cancel(force=True)).then(
        "run cancelling", "cancelled a", "cancel force child of a", "resume child of a", "run cancelled"
    )
    Flow("a:workflow").given(pause()).when(cancel()).then("run cancelling", "cancel child of a")
