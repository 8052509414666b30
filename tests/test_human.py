"""Human tasks: who may answer, which answer counts, what follows when nobody answers."""

from __future__ import annotations

import asyncio
import hashlib
from itertools import permutations
from typing import Any

import orjson
import pytest

from handlers.human import DOMAIN
from projections.human import HumanTask
from schemas.decider import After, Answer, Decision, Reply
from schemas.envelope import AnswerTo
from schemas.human import (
    RESPONSE_BYTES_MAX,
    AssignTask,
    CancelTask,
    ClaimTask,
    CompleteTask,
    CreateTask,
    ExpireTask,
    OpenTask,
    ReleaseTask,
    TaskAssigned,
    TaskCancelled,
    TaskClaimed,
    TaskCompleted,
    TaskCreated,
    TaskEscalated,
    TaskExpired,
    TaskReleased,
    WithdrawTask,
    request_hash,
)
from schemas.messages import Command, Event, Rejected
from schemas.runtime import VALUE_BYTES_MAX
from tests.domains.platform import Platform, message_id, record
from tests.gateway.spec import AGGREGATE, Given, Spec

human = Spec(DOMAIN)
RUN = "runtime/run/node/wait"
HASH = request_hash("approval", "批准退款", "", {"金额": 99})
KEY = "api-key:6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e"


def created(**fields: Any) -> TaskCreated:
    return TaskCreated(
        **{
            "task_type": "approval",
            "title": "批准退款",
            "request_payload": {"金额": 99},
            "request_hash": HASH,
            "requested_by": "ada",
            **fields,
        }
    )


def due(on_timeout: str = "fail", **fields: Any) -> TaskCreated:
    """A task that somebody awaits until 60."""
    return created(timeout_seconds=60.0, due_at=60.0, on_timeout=on_timeout, answer_to=RUN, **fields)


CREATED = created()
ASSIGNED = created(assigned_to="ops-1")
CLAIMED = TaskClaimed(claimed_by="ops-1")
APPROVED = TaskCompleted(status="approved", response_payload={"approved": True}, completed_by="ops-1")
CANCELLED = TaskCancelled(reason="no")
EXPIRED = TaskExpired()
APPROVE = CompleteTask(task_id=AGGREGATE, status="approved", response_payload={"approved": True})
REJECT = CompleteTask(task_id=AGGREGATE, status="rejected")
CANCEL = CancelTask(task_id=AGGREGATE, reason="no")
RELEASE = ReleaseTask(task_id=AGGREGATE)
EXPIRE = ExpireTask(task_id=AGGREGATE, due_at=60.0)
ENDS = (APPROVED, CANCELLED, EXPIRED)


def create(**fields: Any) -> CreateTask:
    return CreateTask(**{"task_type": "approval", "title": "批准退款", "request_payload": {"金额": 99}, **fields})


def open_task(**fields: Any) -> OpenTask:
    return OpenTask(
        **{
            "task_id": AGGREGATE,
            "task_type": "approval",
            "title": "批准退款",
            "request_payload": {"金额": 99},
            "requested_by": "ada",
            **fields,
        }
    )


def claim(user: str | None = "ops-1") -> ClaimTask:
    return ClaimTask(task_id=AGGREGATE, claimed_by=user)


def assign(user: str) -> AssignTask:
    return AssignTask(task_id=AGGREGATE, assigned_to=user)


def approved(by: str = "") -> TaskCompleted:
    return TaskCompleted(status="approved", response_payload={"approved": True}, completed_by=by)


def told(decisions: list[Decision]) -> list[Answer]:
    """What whoever awaits the task is told."""
    replies = [each for each in decisions if isinstance(each, Reply)]
    assert all(each.answer_to == RUN for each in replies)
    return [each.answer for each in replies]


# --- asking -------------------------------------------------------------------------------------------------------


def test_a_task_is_made_by_its_caller_and_shown() -> None:
    shown = human.given().when(create(), actor="ada").then(CREATED)
    assert (shown["id"], shown["status"], shown["title"]) == (AGGREGATE, "open", "批准退款")
    assert (shown["requested_by"], shown["due_at"], shown["late_seconds"]) == ("ada", None, 0.0)
    assert "answer_to" not in shown


def test_the_hash_of_what_is_shown_is_that_of_canonical_json() -> None:
    text = '{"description":"说明","request_payload_json":{"a":1,"金额":99},"task_type":"input","title":"标题"}'
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert request_hash("input", "标题", "说明", {"金额": 99, "a": 1}) == digest
    others = [("input", "标题", "说明", {}), ("input", "x", "说明", {"金额": 99, "a": 1})]
    assert digest not in [request_hash(*other) for other in others]


def test_an_id_is_used_once() -> None:
    for history in ([CREATED], [CREATED, APPROVED]):
        human.given(*history).when(create()).rejected("task_exists")


def test_a_run_opens_a_task_once_and_is_the_one_that_is_told() -> None:
    expected = created(run_id="r", node_run_id="n", answer_to=RUN)
    command = open_task(run_id="r", node_run_id="n")
    human.given().when(command, answer_to=RUN, actor="somebody else").then(expected)
    for history in ([], [APPROVED], [CANCELLED]):
        human.given(expected, *history).when(command, answer_to=RUN).then()


def test_a_task_wakes_itself_when_it_is_due() -> None:
    event, timer = human.given().when(create(timeout_seconds=60.0), actor="ada").run()
    assert event == created(timeout_seconds=60.0, due_at=160.0)
    assert timer == After(60.0, ExpireTask(task_id=AGGREGATE, due_at=160.0))
    assert len(human.given().when(create()).run()) == 1


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"on_timeout": "default"}, "/default_output"),
        ({"on_timeout": "escalate"}, "/escalate_to"),
        ({"title": ""}, "/title"),
        ({"title": "x" * 513}, "/title"),
        ({"assigned_to": ""}, "/assigned_to"),
        ({"request_payload": {"text": "x" * VALUE_BYTES_MAX}}, "/request_payload"),
        ({"timeout_seconds": 0.0}, "/timeout_seconds"),
    ],
)
def test_a_run_is_told_what_is_wrong_with_what_it_asks(fields: dict[str, Any], pointer: str) -> None:
    refusal = human.given().when(open_task(**fields), answer_to=RUN).rejected("invalid_task", 422)
    assert [error["pointer"] for error in refusal.errors] == [pointer]


# --- claiming, handing on -----------------------------------------------------------------------------------------


def test_a_claim_is_shown_until_it_is_released() -> None:
    shown = human.given(CREATED).when(claim()).then(CLAIMED)
    assert (shown["status"], shown["claimed_by"]) == ("claimed", "ops-1")
    assert shown["claimed_at"] is not None
    shown = human.given(CREATED, CLAIMED).when(RELEASE, actor="ops-1").then(TaskReleased())
    assert (shown["status"], shown["claimed_by"], shown["claimed_at"]) == ("open", None, None)


def test_claiming_and_releasing_twice_is_once() -> None:
    human.given(CREATED, CLAIMED).when(claim()).then()
    human.given(CREATED).when(RELEASE).then()


def test_the_credential_says_who_claims_and_a_name_must_agree() -> None:
    for named in (None, "ops-1"):
        human.given(CREATED).when(claim(named), actor="ops-1").then(CLAIMED)
    human.given(CREATED).when(claim("ops-1"), actor="ops-2").rejected("foreign_user", 403)
    human.given(CREATED).when(claim("ops-1"), actor=KEY).rejected("foreign_user", 403)
    refusal = human.given(CREATED).when(claim(None)).rejected("user_unknown", 422)
    assert refusal.errors[0]["pointer"] == "/claimed_by"


def test_what_somebody_has_claimed_is_his() -> None:
    given = human.given(CREATED, CLAIMED)
    for command in (claim(None), APPROVE, RELEASE, assign("ops-2")):
        given.when(command, actor="ops-2").rejected("task_claimed")
    given.when(claim("ops-2")).rejected("task_claimed")


def test_what_is_assigned_is_for_that_user_only() -> None:
    given = human.given(ASSIGNED)
    for command in (claim(None), APPROVE, assign("ops-2")):
        given.when(command, actor="ops-2").rejected("assigned_to_other", 403)
    given.when(claim("ops-2")).rejected("assigned_to_other", 403)
    human.given(ASSIGNED).when(claim(None), actor="ops-1").then(CLAIMED)
    human.given(ASSIGNED).when(APPROVE, actor="ops-1").then(APPROVED)


def test_a_task_is_handed_on_by_whom_it_is_with() -> None:
    for history in ([ASSIGNED], [CREATED, CLAIMED], [CREATED]):
        human.given(*history).when(assign("ops-2"), actor="ops-1").then(TaskAssigned(assigned_to="ops-2"))
    human.given(ASSIGNED).when(assign("ops-1"), actor="ops-1").then()
    human.given(ASSIGNED).when(assign("ops-2")).then(TaskAssigned(assigned_to="ops-2"))


def test_handing_on_ends_another_ones_claim() -> None:
    shown = human.given(ASSIGNED, CLAIMED).when(assign("ops-2"), actor="ops-1").then(TaskAssigned(assigned_to="ops-2"))
    assert (shown["status"], shown["claimed_by"], shown["assigned_to"]) == ("open", None, "ops-2")
    shown = human.given(CREATED, CLAIMED).when(assign("ops-1"), actor="ops-1").then(TaskAssigned(assigned_to="ops-1"))
    assert (shown["status"], shown["claimed_by"]) == ("claimed", "ops-1")


# --- answering ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "verdict"), [("approved", True), ("rejected", False)])
def test_a_verdict_is_told_with_the_payload_unchanged(status: Any, verdict: bool) -> None:
    payload = {"理由": "金额太大", "z": 1, "a": [1.0, None]}
    command = CompleteTask(task_id=AGGREGATE, status=status, response_payload=payload)
    when = human.given(created(answer_to=RUN)).when(command, actor="ops-1")
    event, reply = when.run()
    assert event == TaskCompleted(status=status, response_payload=payload, completed_by="ops-1")
    assert isinstance(reply, Reply)
    output = {
        "task_id": AGGREGATE,
        "status": status,
        "approved": verdict,
        "response_payload_json": payload,
        "completed_by": "ops-1",
    }
    assert reply == Reply(RUN, Answer(result={"output": output, "output_text": None, "route": status}))
    shown = when.answer()
    assert (shown["status"], shown["completed_by"], shown["response_payload_json"]) == (status, "ops-1", payload)
    assert shown["ended_at"] is not None


def test_what_is_completed_without_a_verdict_takes_no_route() -> None:
    command = CompleteTask(task_id=AGGREGATE, status="completed", response_payload={"name": "Ada"})
    decisions = human.given(created(task_type="input", answer_to=RUN)).when(command).run()
    (answer,) = told(decisions)
    assert answer.result["route"] is None
    assert "approved" not in answer.result["output"]


def test_an_approval_needs_a_verdict_and_other_kinds_may_have_one() -> None:
    completed = CompleteTask(task_id=AGGREGATE, status="completed")
    refusal = human.given(CREATED).when(completed).rejected("verdict_needed", 422)
    assert refusal.errors[0]["pointer"] == "/status"
    for kind in ("input", "takeover", "pause", "resume"):
        human.given(created(task_type=kind)).when(completed).then(TaskCompleted(status="completed"))
        human.given(created(task_type=kind)).when(REJECT).then(TaskCompleted(status="rejected"))


def test_who_completes_is_the_caller_else_who_is_named_else_who_claimed() -> None:
    named = APPROVE.model_copy(update={"completed_by": "ops-1"})
    human.given(CREATED).when(APPROVE, actor="ops-1").then(APPROVED)
    human.given(CREATED).when(named).then(APPROVED)
    human.given(CREATED).when(named, actor="ops-2").rejected("foreign_user", 403)
    human.given(CREATED, CLAIMED).when(APPROVE).then(APPROVED)
    human.given(CREATED).when(APPROVE).then(approved())
    human.given(ASSIGNED).when(APPROVE).then(approved())


def test_a_claim_is_needed_only_where_the_task_says_so() -> None:
    human.given(created(require_claim=True)).when(APPROVE, actor="ops-1").rejected("task_not_claimed")
    human.given(created(require_claim=True), CLAIMED).when(APPROVE, actor="ops-1").then(APPROVED)


def test_the_same_verdict_again_is_a_retry_and_another_one_a_conflict() -> None:
    given = human.given(created(answer_to=RUN), APPROVED)
    for actor in ("", "ops-1", "ops-2"):
        assert given.when(APPROVE, actor=actor).run() == []
    other = APPROVE.model_copy(update={"response_payload": {"approved": 1}})
    for command in (REJECT, other, CANCEL, claim(), RELEASE, assign("x")):
        given.when(command).rejected("task_already_completed")


@pytest.mark.parametrize(("end", "code"), [(CANCELLED, "task_cancelled"), (EXPIRED, "task_expired")])
def test_a_late_answer_is_a_conflict(end: Event, code: str) -> None:
    for command in (APPROVE, claim(), RELEASE, assign("x")):
        human.given(CREATED, end).when(command).rejected(code)


# --- four eyes, and what was shown --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [APPROVE, REJECT, claim(None)])
def test_who_asked_does_not_answer_where_four_eyes_are_needed(command: Command) -> None:
    given = human.given(created(four_eyes=True))
    given.when(command, actor="ada").rejected("four_eyes", 403)
    given.when(command, actor=KEY).rejected("four_eyes", 403)
    assert given.when(command, actor="ops-1").run() != []


def test_four_eyes_need_somebody_who_is_known() -> None:
    human.given(created(four_eyes=True)).when(APPROVE).rejected("four_eyes", 403)
    human.given(created(four_eyes=True), CLAIMED).when(APPROVE).then(APPROVED)
    human.given(CREATED).when(APPROVE, actor="ada").then(approved("ada"))


def test_an_answer_is_bound_to_what_was_shown() -> None:
    shown = APPROVE.model_copy(update={"shown_hash": HASH})
    other = APPROVE.model_copy(update={"shown_hash": "0" * 64})
    for fields in ({}, {"require_hash": True}):
        human.given(created(**fields)).when(shown, actor="ops-1").then(APPROVED)
        human.given(created(**fields)).when(other, actor="ops-1").rejected("shown_hash_differs")
    refusal = human.given(created(require_hash=True)).when(APPROVE).rejected("shown_hash_missing", 422)
    assert refusal.errors[0]["pointer"] == "/shown_hash"


# --- ends without an answer ---------------------------------------------------------------------------------------


def test_a_cancelled_task_is_told_as_a_failure_and_cancelling_twice_is_once() -> None:
    decisions = human.given(created(answer_to=RUN), CLAIMED).when(CANCEL, actor="ada").run()
    assert decisions[0] == TaskCancelled(reason="no", cancelled_by="ada")
    assert told(decisions) == [Answer({"retryable": False}, "task_cancelled", "no")]
    human.given(created(answer_to=RUN), CANCELLED).when(CANCEL).then()
    human.given(CREATED, EXPIRED).when(CANCEL).rejected("task_expired")


def test_what_nobody_awaits_any_more_is_withdrawn_without_a_word() -> None:
    withdraw = WithdrawTask(task_id=AGGREGATE, reason="the run was cancelled")
    expected = TaskCancelled(reason="the run was cancelled")
    assert human.given(created(answer_to=RUN)).when(withdraw).run() == [expected]
    for history in ([], [CREATED, APPROVED], [CREATED, CANCELLED], [CREATED, EXPIRED]):
        assert human.given(*history).when(withdraw).run() == []


@pytest.mark.parametrize(("at", "late"), [(60.0, 0.0), (59.9, 0.0), (3_660.0, 3_600.0)])
def test_a_task_that_is_due_fails_and_says_how_late_it_was_noticed(at: float, late: float) -> None:
    when = human.given(due(), CLAIMED).when(EXPIRE, at=at)
    decisions = when.run()
    assert decisions[0] == TaskExpired(late_seconds=late)
    assert told(decisions) == [Answer({"retryable": True}, "task_expired", "nobody answered within 60 s")]
    shown = when.answer()
    assert (shown["status"], shown["late_seconds"], shown["claimed_by"]) == ("expired", late, "ops-1")


def test_a_task_that_is_due_may_have_an_answer_of_its_own() -> None:
    output = {"approved": False}
    decisions = human.given(due("default", default_output=output)).when(EXPIRE, at=61.0).run()
    assert decisions[0] == TaskExpired(late_seconds=1.0, output=output)
    assert told(decisions) == [Answer(result={"output": output, "output_text": None, "route": None})]


def test_a_task_that_is_due_may_go_to_somebody_else_once() -> None:
    given = human.given(due("escalate", escalate_to="boss", assigned_to="ops-1"), CLAIMED)
    when = given.when(EXPIRE, at=61.0)
    shown = when.then(TaskEscalated(late_seconds=1.0, assigned_to="boss"))
    assert (shown["status"], shown["claimed_by"], shown["due_at"]) == ("open", None, None)
    assert (shown["assigned_to"], shown["escalated_from"], shown["late_seconds"]) == ("boss", "ops-1", 1.0)
    assert shown["escalated_at"] is not None
    assert given.when(EXPIRE, at=62.0).run() == []
    given.when(APPROVE, actor="ops-1").rejected("assigned_to_other", 403)
    assert given.when(APPROVE, actor="boss").run()[0] == approved("boss")


def test_another_due_time_and_a_task_that_has_ended_expire_nothing() -> None:
    earlier = ExpireTask(task_id=AGGREGATE, due_at=59.0)
    never = ExpireTask(task_id=AGGREGATE, due_at=160.0)
    for command in (earlier, never):
        assert human.given(due()).when(command).run() == []
    assert human.given().when(EXPIRE).run() == []
    for end in ENDS:
        assert human.given(due(), end).when(EXPIRE).run() == []


def test_an_answer_after_the_due_time_counts_until_that_is_noticed() -> None:
    assert human.given(due()).when(APPROVE, at=1_000.0, actor="ops-1").run()[0] == APPROVED


async def test_a_due_time_that_all_were_down_for_is_noticed_once_and_late() -> None:
    platform = Platform()
    await platform.claim()
    await platform.feed(record(create(task_id=AGGREGATE, timeout_seconds=60.0), message_id(1), reply=True))
    platform.at += 3_600.0
    await platform.claim()  # By another owner.
    for _ in range(2):
        await platform.kernel.fire_timers()
        await asyncio.sleep(0)
        while platform.made:
            await platform.feed(platform.made.popleft())
    (task,) = platform.rows()["human_task"].values()
    assert (task.status, task.seq, task.late_seconds) == ("expired", 2, 3_540.0)
    assert not platform.database.timers


@pytest.mark.parametrize(
    ("title", "end", "code"),
    [("批准退款", CANCEL, "task_cancelled"), ("批准退款", EXPIRE, "task_expired"), ("", None, "invalid_task")],
)
async def test_an_aggregate_that_awaits_a_task_hears_of_it(title: str, end: Command | None, code: str) -> None:
    """Any one will do: what awaits here is a definition, whose check is a task."""
    platform = Platform()
    await platform.claim()
    asked = record(open_task(title=title, timeout_seconds=60.0), message_id(1), reply=False)
    waits = AnswerTo("catalog", message_id(2), message_id(3), message_id(4))
    await platform.feed(asked._replace(headers=[*asked.headers, ("ce_answerto", str(waits).encode())]))
    if isinstance(end, ExpireTask):
        end = ExpireTask(task_id=AGGREGATE, due_at=platform.at + 60.0)
    if end is not None:
        await platform.feed(record(end, message_id(5), reply=isinstance(end, CancelTask)))
    (told,) = platform.made
    assert (told.key, orjson.loads(told.body)["code"]) == (message_id(2), code)


@pytest.mark.parametrize(("history", "over"), [((), False), ((CLAIMED,), False), *(((end,), True) for end in ENDS)])
def test_nothing_changes_a_task_that_has_ended(history: tuple[Event, ...], over: bool) -> None:
    task = human.given(CREATED, *history).tables.get(HumanTask, AGGREGATE)
    assert DOMAIN.ended(task) is over


# --- races --------------------------------------------------------------------------------------------------------

RIVALS: tuple[Command, ...] = (APPROVE, REJECT, CANCEL, EXPIRE, WithdrawTask(task_id=AGGREGATE))
WINS = {"human.complete_task": 1, "human.cancel_task": 1, "human.expire_task": 1, "human.withdraw_task": 0}


@pytest.mark.parametrize(
    "order", list(permutations(RIVALS)), ids=lambda order: "-".join(one.type[6:9] for one in order)
)
def test_whoever_comes_first_ends_the_task_and_nobody_else(order: tuple[Command, ...]) -> None:
    given = human.given(due())
    made: list[Decision] = []
    for command in order:
        made += decided(given, command)
    assert made[0] == decided(human.given(due()), order[0])[0]
    assert sum(isinstance(each, Event) for each in made) == 1
    assert len(told(made)) == WINS[order[0].type]


def decided(given: Given, command: Command) -> list[Decision]:
    """What a command leads to; a refusal leads to nothing."""
    try:
        return given.when(command, at=61.0).run()
    except Rejected:
        return []


# --- strangers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [claim(), RELEASE, assign("x"), APPROVE, CANCEL])
def test_an_unknown_task_and_another_tenants_are_refused_alike(command: Command) -> None:
    unknown = human.given().when(command, tenant_id="t2").rejected("human_task_not_found", 404)
    foreign = human.given(CREATED).when(command, tenant_id="t2").rejected("human_task_not_found", 404)
    assert unknown.problem() == foreign.problem()


def test_a_full_response_leaves_room_in_a_nodes_output() -> None:
    """What is accepted of a user must not be refused by the node that awaits it."""
    payload = "早" + "x" * (RESPONSE_BYTES_MAX - len('"早"'.encode()))
    command = CompleteTask(task_id=AGGREGATE, status="approved", response_payload=payload)
    (answer,) = told(human.given(created(answer_to=RUN)).when(command, actor="\x01" * 128).run())
    assert len(orjson.dumps(answer.result["output"])) <= VALUE_BYTES_MAX
    with pytest.raises(ValueError, match="response_payload"):
        CompleteTask(task_id=AGGREGATE, status="approved", response_payload=payload + "x")
