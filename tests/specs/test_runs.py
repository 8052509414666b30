"""What each command does to a run, decision by decision."""

from __future__ import annotations

from typing import Any

import pytest

from projections.runtime import LEASED, READY, UNLISTED
from schemas import runtime as wire
from schemas.decider import Meta
from schemas.messages import derive
from schemas.runtime import VALUE_BYTES_MAX, Failure
from tests.specs.flow import (
    RUN,
    TENANT,
    VERSION,
    WORKFLOW,
    Flow,
    Later,
    Leased,
    cancel,
    complete,
    definition,
    execute,
    execute_node,
    expire,
    fail,
    id_of,
    set_node,
    set_run,
    wake,
)

OTHER = derive(RUN, "other")
MANUAL: dict[str, Any] = {"mode": "manual"}


def chain(**configs: Any) -> Flow:
    return Flow("a:code b:code", "a>b", configs=configs)


class Manual(Flow):
    def create(self, **changes: Any) -> wire.CreateRun:
        return super().create(**(MANUAL | changes))


# Create.


def test_a_run_begins_at_its_start_nodes_and_runs_pure_ones_at_once() -> None:
    flow = Flow("start:start say:answer work:code", "start>say say>work", inputs={"x": 1})
    run = flow.when(flow.create()).then("run created", "completed start", "completed say", "ready work")
    assert (run.status, run.state, run.output_text) == ("running", {"x": 1}, "say")


def test_a_run_without_effects_ends_in_the_same_decision() -> None:
    flow = Flow("a:answer end:end", "a>end", configs={"end": {"outputs": {"said": "{{nodes.a.text}}"}}})
    run = flow.when(flow.create()).then("run created", "completed a", "completed end", "run completed")
    assert run.output == {"said": "a"}


def test_a_run_is_created_once() -> None:
    flow = chain().given()
    flow.when(flow.create()).rejected("run_exists")


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"workflow_id": None}, "/workflow_version_id"),
        ({"workflow_id": OTHER}, "/workflow_id"),
        ({"workflow_version_id": OTHER}, "/workflow_version_id"),
        ({"workflow_version_id": VERSION, "workflow_id": OTHER}, "/workflow_id"),
        ({"initial_node": {"node_id": "z"}}, "/initial_node/node_id"),
        ({"initial_node": {"node_id": "undo"}}, "/initial_node/node_id"),
        ({"initial_node": {"node_id": "b", "node_type": "answer"}}, "/initial_node/node_type"),
    ],
)
def test_a_run_of_what_does_not_exist_names_the_field(changes: dict[str, Any], pointer: str) -> None:
    flow = Flow("a:code b:code undo:code", "a>b", configs={"a": {"compensation_node_id": "undo"}})
    refusal = flow.when(flow.create(**changes)).rejected("invalid_request", 422)
    assert [each["pointer"] for each in refusal.errors] == [pointer]


def test_another_tenants_workflow_is_as_unknown_as_none() -> None:
    flow = chain()
    for body in ({}, {"workflow_id": None, "workflow_version_id": VERSION}):
        flow.when(flow.create(**body), tenant_id="t2").rejected("invalid_request", 422)


def test_latest_means_latest_published() -> None:
    flow = chain()
    flow.tables.facts[type(definition()), WORKFLOW] = definition(latest_published=None)
    flow.when(flow.create()).rejected("no_published_version")
    flow.when(flow.create(workflow_version_id=VERSION)).then("run created", "ready a")


def test_inputs_are_checked_before_a_run_exists() -> None:
    inputs = {"n": {"type": "integer", "required": True}, "m": {"type": "string", "default": "x"}}
    flow = Flow("start:start", configs={"start": {"inputs": inputs}})
    refusal = flow.when(flow.create(inputs={"m": 3})).rejected("invalid_inputs", 422)
    assert [(each["pointer"], each["code"]) for each in refusal.errors] == [
        ("/inputs/n", "missing"),
        ("/inputs/m", "wrong_type"),
    ]
    run = flow.when(flow.create(inputs={"n": 3})).then("run created", "completed start", "run completed")
    assert run.output == {"n": 3, "m": "x"}


def test_templates_read_the_defaults_of_inputs_that_were_not_given() -> None:
    inputs = {"plan": {"type": "string", "default": "免费"}, "n": {"default": 1}, "m": {}}
    say = {"text": "{{inputs.plan}} {{inputs.n}} {{inputs.m}}"}
    flow = Flow("s:start a:answer", "s>a", configs={"s": {"inputs": inputs}, "a": say})
    run = flow.when(flow.create(inputs={"n": 2, "plan": None})).then(
        "run created", "completed s", "completed a", "run completed"
    )
    assert (run.output_text, run.inputs) == ("免费 2 ", {"n": 2, "plan": "免费"})


def test_a_run_that_begins_in_the_middle_has_the_defaults_of_the_start_it_begins_at_only() -> None:
    inputs = {"plan": {"type": "string", "default": "free"}}
    say = {"text": "[{{inputs.plan}}]"}
    flow = Flow("s:start a:answer", "s>a", configs={"s": {"inputs": inputs}, "a": say})
    run = flow.when(flow.create(initial_node={"node_id": "a"})).then("run created", "completed a", "run completed")
    assert run.output_text == "[]"
    begun = Flow("s:start a:answer", "s>a", configs={"s": {"inputs": inputs}, "a": say})
    run = begun.when(begun.create(initial_node={"node_id": "s"})).then(
        "run created", "completed s", "completed a", "run completed"
    )
    assert run.output_text == "[free]"


@pytest.mark.parametrize("initial", [None, {"node_id": "b"}])
def test_inputs_that_are_too_large_are_refused(initial: Any) -> None:
    flow = Flow("start:start b:code", "start>b")
    text = "早" + "x" * (VALUE_BYTES_MAX - len('{"t":"早"}'.encode()))
    refusal = flow.when(flow.create(inputs={"t": text + "x"}, initial_node=initial)).rejected("invalid_inputs", 422)
    detail = f"{VALUE_BYTES_MAX + 1} bytes as JSON with their defaults, at most {VALUE_BYTES_MAX}"
    assert refusal.errors == ({"pointer": "/inputs", "code": "too_large", "detail": detail},)
    began = ("ready b",) if initial else ("completed start", "ready b")
    flow.when(flow.create(inputs={"t": text}, initial_node=initial)).then("run created", *began)


def test_inputs_that_are_too_large_with_their_defaults_are_refused() -> None:
    inputs = {"n": {"type": "string", "default": "x" * (VALUE_BYTES_MAX // 2)}}
    flow = Flow("start:start b:code", "start>b", configs={"start": {"inputs": inputs}})
    large = {"t": "x" * (VALUE_BYTES_MAX // 2)}
    refusal = flow.when(flow.create(inputs=large)).rejected("invalid_inputs", 422)
    assert [(each["pointer"], each["code"]) for each in refusal.errors] == [("/inputs", "too_large")]
    flow.when(flow.create(inputs=large | {"n": "small"})).then("run created", "completed start", "ready b")


def test_inputs_that_are_too_large_with_the_defaults_of_two_starts_are_refused() -> None:
    half = "x" * (VALUE_BYTES_MAX // 2)
    declared = {name: {"inputs": {name: {"default": half}}} for name in ("a", "b")}
    flow = Flow("a:start b:start", configs=declared)
    refusal = flow.when(flow.create()).rejected("invalid_inputs", 422)
    assert [(each["pointer"], each["code"]) for each in refusal.errors] == [("/inputs", "too_large")]


def test_a_run_may_begin_in_the_middle() -> None:
    flow = Flow("a:code b:answer c:answer join:join", "a>b a>c b>join c>join")
    command = flow.create(initial_node={"node_id": "b", "node_type": "answer"})
    flow.when(command).then("run created", "completed b", "completed join", "run completed")


# Steps answer.


def test_a_result_resumes_the_run() -> None:
    flow = chain().given()
    flow.when(complete("a", {"n": 1})).then("completed a", "ready b")
    run = flow.when(complete("b", {"n": 2}, text="done")).then("completed b", "run completed")
    assert (run.status, run.output, run.output_text) == ("completed", {"n": 2}, None)


@pytest.mark.parametrize("answer", [complete("a", token=2), complete("a", token=0), complete("z"), fail("a", token=2)])
def test_a_result_without_the_latest_token_changes_nothing(answer: Any) -> None:
    chain().given().when(answer).then()


@pytest.mark.parametrize("answer", [complete("a"), fail("a"), expire("a"), wake("a")])
def test_what_is_said_twice_counts_once(answer: Any) -> None:
    flow = chain(a={"on_error": "continue"}).given(Leased("a"), Later(9), answer)
    flow.when(answer).then()


def test_an_output_that_is_too_large_fails_its_node() -> None:
    flow = chain().given()
    large = {"text": "x" * VALUE_BYTES_MAX}
    flow.when(complete("a", large)).then(
        "failed a:output_too_large", "run failing:output_too_large", "run failed:output_too_large"
    )


def test_a_failure_is_retried_after_its_delay() -> None:
    policy = {"max_attempts": 3, "retry_delay_seconds": 2, "backoff": "exponential"}
    flow = chain(a={"retry_policy": policy}).given()
    run = flow.when(fail("a")).then("retry a:broken", "pending a", "wake a in 2.0")
    assert run.status == "waiting"
    flow.when(wake("a", attempt=1)).then()
    flow.when(wake("a", attempt=2)).then("ready a#2")
    flow.when(fail("a", token=2)).then("retry a:broken", "pending a", "wake a in 4.0")
    flow.when(wake("a", attempt=3)).then("ready a#3")
    flow.when(fail("a", token=3)).then("failed a:broken", "run failing:broken", "run failed:broken")


def test_without_a_delay_the_next_attempt_is_ready_at_once() -> None:
    flow = chain(a={"retry_policy": {"max_attempts": 2}}).given()
    flow.when(fail("a")).then("retry a:broken", "ready a#2")


def test_what_cannot_succeed_is_not_retried() -> None:
    flow = chain(a={"retry_policy": {"max_attempts": 2}}).given()
    flow.when(fail("a", retryable=False)).then("failed a:broken", "run failing:broken", "run failed:broken")


def test_a_failed_edge_handles_a_failure() -> None:
    flow = Flow("a:code good:answer bad:answer", "a>good a>bad:failed").given()
    run = flow.when(fail("a")).then("failed a:broken", "completed bad", "skipped good", "run completed")
    assert run.output_text == "bad"


@pytest.mark.parametrize(
    ("config", "output"),
    [({"on_error": "continue"}, {}), ({"on_error": "default", "default_output": {"n": 0}}, {"n": 0})],
)
def test_on_error_completes_the_node_and_keeps_its_error(config: dict[str, Any], output: dict[str, Any]) -> None:
    flow = Flow("a:code", configs={"a": config}).given()
    run = flow.when(fail("a")).then("completed a:broken", "run completed")
    assert run.output == output
    assert (flow.node("a").error or {})["code"] == "broken"


# Leases.


def test_a_lease_that_runs_out_repeats_the_attempt_under_the_next_token() -> None:
    flow = chain().given(Leased("a", until=8))
    flow.when(expire("a")).then()
    flow.at = 9
    flow.when(expire("a")).then("requeued a#2")
    flow.when(complete("a", token=1)).then()
    flow.when(complete("a", token=2)).then("completed a", "ready b")
    assert flow.node("a").attempt == 1


def test_the_fifth_lost_lease_fails_the_node() -> None:
    flow = chain().given(Later(9))
    for token in range(1, 5):
        flow.lease(Leased("a"))
        flow.when(expire("a", token=token)).then(f"requeued a#{token + 1}")
    flow.lease(Leased("a"))
    flow.when(expire("a", token=5)).then("failed a:lease_lost", "run failing:lease_lost", "run failed:lease_lost")


def test_a_step_past_its_deadline_has_timed_out_and_may_be_retried() -> None:
    flow = chain(a={"retry_policy": {"max_attempts": 2}}).given(Leased("a", deadline=5), Later(9))
    flow.when(expire("a")).then("retry a:timeout", "ready a#2")


def test_a_step_nobody_holds_does_not_expire() -> None:
    chain().given(Later(9)).when(expire("a")).then()


# Waiting.


def test_a_delayed_node_waits_for_its_time() -> None:
    flow = Flow("a:code", configs={"a": {"delay_seconds": 3}})
    run = flow.when(flow.create()).then("run created", "queued a", "pending a", "wake a in 3.0")
    assert run.status == "waiting"
    run = flow.when(wake("a")).then("ready a#1")
    assert run.status == "running"


# One message's share.


def test_a_message_runs_its_share_and_the_next_one_goes_on() -> None:
    flow = Flow("a:answer b:answer c:answer", "a>b b>c", share=2)
    flow.when(flow.create()).then("run created", "completed a", "completed b", "queued c", "continue")
    flow.when(wire.ContinueRun(run_id=RUN)).then("completed c", "run completed")
    flow.when(wire.ContinueRun(run_id=RUN)).then()


# Unwinding.

UNDO = {"compensation_node_id": "undo"}


def saga() -> Flow:
    return Flow("a:code b:code undo:code", "a>b", configs={"a": UNDO, "b": UNDO})


def test_a_failure_is_compensated_the_failed_node_first() -> None:
    flow = saga().given(complete("a"))
    run = flow.when(fail("b")).then(
        "failed b:broken", "run failing:broken", "run compensating b", "queued b/undo", "ready b/undo#1"
    )
    assert run.status == "compensating"
    flow.when(complete("b/undo")).then("completed b/undo", "run compensating a", "queued a/undo", "ready a/undo#1")
    run = flow.when(complete("a/undo")).then("completed a/undo", "run compensated:broken")
    assert run.status == "compensated"


def test_an_assigner_that_compensates_changes_the_state() -> None:
    configs = {"a": UNDO, "undo": {"assignments": {"booked": False}}}
    flow = Flow("a:code undo:assigner", configs=configs).given()
    run = flow.when(fail("a")).then(
        "failed a:broken", "run failing:broken", "run compensating a", "queued a/undo", "completed a/undo",
        "run compensated:broken",
    )  # fmt: skip
    assert run.state == {"booked": False}


def test_a_compensation_that_fails_does_not_stop_the_others() -> None:
    flow = saga().given(complete("a"), fail("b"))
    flow.when(fail("b/undo")).then("failed b/undo:broken", "run compensating a", "queued a/undo", "ready a/undo#1")
    flow.when(complete("a/undo")).then("completed a/undo", "run failed:compensation_failed")


def test_a_failing_run_waits_for_leased_steps_and_what_they_answer_counts() -> None:
    flow = Flow("a:code b:code c:code undo:code", configs={"a": UNDO}).given(Leased("a"))
    run = flow.when(fail("b")).then("failed b:broken", "run failing:broken", "cancelled c")
    assert run.status == "failing"
    flow.when(complete("c")).then()
    flow.when(complete("a")).then("completed a", "run compensating a", "queued a/undo", "ready a/undo#1")


def test_a_failing_run_retries_nothing_but_on_error_holds() -> None:
    policy = {"retry_policy": {"max_attempts": 2}, "on_error": "continue"}
    flow = Flow("a:code b:code", configs={"a": policy}).given(Leased("a"), fail("b"))
    flow.when(fail("a")).then("completed a:broken", "run failed:broken")


def test_a_step_lost_while_the_run_fails_may_have_happened_and_is_compensated() -> None:
    flow = Flow("a:code b:code undo:code", configs={"a": UNDO}).given(Leased("a"), fail("b"), Later(9))
    flow.when(expire("a")).then("failed a:lease_lost", "run compensating a", "queued a/undo", "ready a/undo#1")


# Cancel.


def test_cancel_withdraws_what_nobody_executes() -> None:
    flow = Flow("a:code b:code").given(Leased("a"))
    run = flow.when(cancel()).then("run cancelling", "cancelled b")
    assert run.status == "cancelling"
    flow.when(cancel()).then()
    run = flow.when(complete("a")).then("completed a", "run cancelled")
    flow.when(cancel()).then()


def test_cancel_compensates_if_it_is_told_to() -> None:
    flow = saga().given(complete("a"))
    flow.when(cancel(compensate=True)).then(
        "run cancelling", "cancelled b", "run compensating a", "queued a/undo", "ready a/undo#1"
    )
    flow.when(complete("a/undo")).then("completed a/undo", "run cancelled")


def test_a_run_that_unwinds_is_cancelled_by_force_only() -> None:
    flow = saga().given(complete("a"), fail("b"))
    flow.when(cancel()).rejected("run_unwinding")
    flow.when(cancel(force=True)).then("run cancelling", "cancelled b/undo", "run cancelled")


def test_force_may_keep_the_compensations() -> None:
    flow = saga().given(complete("a"), fail("b"))
    flow.when(cancel(force=True, compensate=True)).then("run cancelling")
    flow.when(complete("b/undo")).then("completed b/undo", "run compensating a", "queued a/undo", "ready a/undo#1")


@pytest.mark.parametrize("command", [cancel(), set_run("failed"), set_run("cancelled")])
def test_an_ended_run_stays_as_it_ended(command: Any) -> None:
    Flow("a:answer").given().when(command).rejected("run_ended")


@pytest.mark.parametrize(
    "command", [cancel(), execute(), set_run("failed"), execute_node("a"), set_node("a", "failed")]
)
def test_a_run_that_does_not_exist_and_another_tenants_are_refused_alike(command: Any) -> None:
    unknown = chain().when(command).rejected("run_not_found", 404)
    foreign = chain().given().when(command, tenant_id="t2").rejected("run_not_found", 404)
    assert unknown.problem() == foreign.problem()
    assert TENANT not in str(foreign)


# Manual runs.


def test_a_manual_run_takes_as_many_steps_as_it_is_allowed() -> None:
    flow = Manual("a:answer b:answer c:answer", "a>b b>c")
    flow.when(flow.create()).then("run created", "queued a")
    flow.when(execute(2)).then("steps 2", "steps 1", "completed a", "queued b", "steps 0", "completed b", "queued c")
    run = flow.when(execute()).then("steps 1", "steps 0", "completed c", "run completed")
    assert run.status == "completed"
    flow.when(execute()).then()


def test_a_manual_run_waits_for_a_step_before_the_next() -> None:
    flow = Manual("a:code b:answer", "a>b").given()
    flow.when(execute(2)).then("steps 2", "steps 1", "ready a#1")
    flow.when(complete("a")).then("completed a", "queued b", "steps 0", "completed b", "run completed")


def test_one_node_of_a_manual_run_can_be_executed() -> None:
    flow = Manual("a:answer b:answer").given()
    flow.when(execute_node("b")).then("completed b")
    flow.when(execute_node("z")).rejected("node_run_not_found", 404)
    flow.when(execute_node("b")).rejected("node_run_ended")


def test_executing_an_auto_run_changes_nothing() -> None:
    chain().given().when(execute()).then()
    chain().given().when(execute_node("a")).then()


# What an external worker says.


def test_an_external_worker_takes_up_and_completes_a_node() -> None:
    flow = Manual("a:code b:answer", "a>b").given()
    flow.when(set_node("a", "running")).then("running a#1")
    flow.when(set_node("a", "running")).then("renewed a")
    flow.when(set_node("a", "completed", output={"n": 1})).then("completed a", "queued b")
    flow.when(set_node("a", "completed")).then()
    flow.when(set_node("a", "failed")).rejected("node_run_ended")
    assert (flow.node("a").output, flow.node("a").worker) == ({"n": 1}, "w")


def test_an_external_worker_may_fail_or_skip_a_node() -> None:
    flow = chain().given()
    flow.when(set_node("a", "skipped")).then("skipped a", "skipped b", "run completed")
    flow = chain().given()
    flow.when(set_node("a", "failed", error_code="mine")).then("failed a:mine", "run failing:mine", "run failed:mine")


def test_a_leased_step_belongs_to_its_executor() -> None:
    flow = chain().given(Leased("a"))
    flow.when(set_node("a", "completed")).rejected("lease_held")
    flow.when(set_run("completed")).rejected("steps_in_flight")


def test_an_external_worker_cannot_store_what_is_too_large() -> None:
    large = {"text": "x" * VALUE_BYTES_MAX}
    chain().given().when(set_node("a", "completed", output=large)).rejected("output_too_large", 422)
    chain().given().when(set_node("a", "failed", output=large)).rejected("output_too_large", 422)


# A run's status by hand.


@pytest.mark.parametrize("status", ["running", "skipped", "completed", "failed"])
def test_a_step_whose_status_is_set_by_hand_is_no_executors_any_more(status: str) -> None:
    flow = chain()
    assert flow.given().node("a").listed == READY
    flow.handle(set_node("a", status))
    assert flow.node("a").listed == (LEASED if status == "running" else UNLISTED)


def test_a_run_can_be_ended_by_hand() -> None:
    chain().given().when(set_run("cancelled")).then("run cancelling", "cancelled a", "run cancelled")
    chain().given().when(set_run("failed")).then("run failing:set_by_hand", "cancelled a", "run failed:set_by_hand")
    flow = chain().given(complete("a", {"n": 1}))
    assert flow.when(set_run("completed")).then("cancelled b", "run completed").status == "completed"
    flow.when(set_run("completed")).then()


def test_a_run_does_not_go_on_because_somebody_says_so() -> None:
    chain().given().when(set_run("running")).then()
    waiting = Flow("a:code", configs={"a": {"delay_seconds": 3}})
    waiting.given().when(set_run("running")).rejected("run_waits")
    saga().given(complete("a"), fail("b")).when(set_run("completed")).rejected("run_unwinding")


# Dead letters.


def lost_message() -> wire.FailRun:
    return wire.FailRun(run_id=RUN, error=Failure(code="internal_error", message="a bug"))


def test_a_run_whose_message_died_fails_and_leaves_nothing_open() -> None:
    flow = Flow("a:code b:code").given()
    flow.when(lost_message()).then(
        "run failing:internal_error", "cancelled a", "cancelled b", "run failed:internal_error"
    )
    flow.when(lost_message()).then()


def test_a_message_that_dies_while_the_run_unwinds_ends_it() -> None:
    flow = saga().given(complete("a"), fail("b"))
    flow.when(lost_message()).then("cancelled b/undo", "run failed:internal_error")


def test_a_message_for_a_run_tells_the_run_when_it_dies() -> None:
    domain = chain().domain
    told = domain.failed(complete("a"), "internal_error", "why")
    assert isinstance(told, wire.FailRun)
    assert (told.run_id, told.error.code) == (RUN, "internal_error")
    assert domain.failed(lost_message(), "internal_error", "why") is None


def test_a_sender_is_answered_with_the_run_or_the_node_run() -> None:
    flow = chain().given()
    domain = flow.domain
    meta = Meta(OTHER, TENANT, RUN, 0.0)
    assert domain.answer(cancel(), flow.tables, meta)["id"] == RUN
    assert domain.answer(execute_node("a"), flow.tables, meta)["id"] == id_of("a")


def test_a_node_that_waited_for_time_only_was_never_handed_over() -> None:
    configs = {"a": {"compensation_node_id": "u", "delay_seconds": 5, "prompt": "hi"}}
    flow = Flow("a:llm u:answer", configs=configs).given()
    flow.when(wake("a")).then(
        "failed a:node_type_unavailable", "run failing:node_type_unavailable", "run failed:node_type_unavailable"
    )


def test_a_node_is_seen_as_its_last_run_left_it_also_if_that_failed() -> None:
    configs = {"a": {"allow_loop": True}, "b": {"text": "{{nodes.a.output.result_json.n}} {{nodes.a.error.code}}"}}
    flow = Flow("s:answer a:code b:answer", "s>a a>a a>b:failed", configs=configs)
    flow.given(complete("a", {"result_json": {"n": 1}}), fail("a@2", retryable=False))
    assert flow.node("b").output_text == " broken"
