"""Human tasks: ask somebody, let one person take it on, take one answer.

Who acts is who the credential says (`Meta.actor`). A command may name the user as well: where no credential says who
calls, that counts; where one does, it must be the same. So a name in a body never weighs more than a credential.

The first to end a task wins: an answer that comes after the due time, and before it was noticed, counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pydantic

from projections import human as known
from projections.human import HumanTask
from projections.human_views import HumanTaskView, human_task_view
from schemas.decider import After, Answer, Decision, Domain, Meta, Reply, Rows
from schemas.envelope import KEY_ACTOR
from schemas.human import (
    EVENTS,
    TASK_ENDED,
    VERDICTS,
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
from schemas.messages import Command, JsonObject, Rejected
from schemas.problems import FieldError, summary
from schemas.registry import problems


def create(command: CreateTask, rows: Rows, meta: Meta) -> Iterator[Decision]:
    if rows.get(HumanTask, meta.aggregate_id) is not None:
        raise Rejected("task_exists", "this id is taken by another task")
    yield from _created(command, meta, requested_by=meta.actor)


def open_(command: OpenTask, rows: Rows, meta: Meta) -> Iterator[Decision]:
    if rows.get(HumanTask, meta.aggregate_id) is not None:
        return  # It was opened before; whoever awaits it is told when it ends.
    asked = command.model_dump(exclude={"type", "task_id", "requested_by"})
    try:
        wanted = CreateTask.model_validate(asked)
    except pydantic.ValidationError as error:
        errors = problems(error)
        raise Rejected("invalid_task", summary(errors), status=422, errors=errors) from None
    yield from _created(wanted, meta, requested_by=command.requested_by)


def _created(wanted: CreateTask, meta: Meta, *, requested_by: str) -> Iterator[Decision]:
    for choice, needed in (("default", "default_output"), ("escalate", "escalate_to")):
        if wanted.on_timeout == choice and getattr(wanted, needed) is None:
            raise _invalid("invalid_task", f"/{needed}", "missing", f"on_timeout {choice!r} needs it")
    due_at = meta.at + wanted.timeout_seconds if wanted.timeout_seconds is not None else 0.0
    yield TaskCreated(
        task_type=wanted.task_type,
        title=wanted.title,
        description=wanted.description,
        run_id=wanted.run_id,
        node_run_id=wanted.node_run_id,
        assigned_to=wanted.assigned_to,
        request_payload=wanted.request_payload,
        request_hash=request_hash(wanted.task_type, wanted.title, wanted.description, wanted.request_payload),
        require_claim=wanted.require_claim,
        require_hash=wanted.require_hash,
        four_eyes=wanted.four_eyes,
        requested_by=requested_by,
        timeout_seconds=wanted.timeout_seconds,
        due_at=due_at,
        on_timeout=wanted.on_timeout,
        default_output=wanted.default_output,
        escalate_to=wanted.escalate_to,
        answer_to=meta.answer_to,
    )
    if wanted.timeout_seconds is not None:
        yield After(wanted.timeout_seconds, ExpireTask(task_id=meta.aggregate_id, due_at=due_at))


# --- who may ------------------------------------------------------------------------------------------------------


def _user(named: str | None, meta: Meta) -> str:
    """Who acts; empty if nobody says so. Raises Rejected for a name that is not the caller's."""
    if named is not None and meta.actor and named != meta.actor:
        raise Rejected("foreign_user", "the request names another user than its credential", status=403)
    return meta.actor or named or ""


def _holds(task: HumanTask, user: str) -> None:
    """Raises Rejected if the task is with somebody else. An unknown user is believed to be whom it is with."""
    if not user:
        return
    if task.assigned_to is not None and user != task.assigned_to:
        raise Rejected("assigned_to_other", "the task is assigned to somebody else", status=403)
    if task.claimed_by is not None and user != task.claimed_by:
        raise Rejected("task_claimed", f"claimed by {task.claimed_by}")


def _may_answer(task: HumanTask, user: str) -> None:
    _holds(task, user)
    if not task.four_eyes:
        return
    if not user or user.startswith(KEY_ACTOR):
        raise Rejected("four_eyes", "it must be known which user answers this task", status=403)
    if user == task.requested_by:
        raise Rejected("four_eyes", "who asked for this cannot answer it too", status=403)


# --- one task -----------------------------------------------------------------------------------------------------


def claim(command: ClaimTask, rows: Rows, meta: Meta) -> Iterator[Decision]:
    task = _unended(rows, meta)
    user = _user(command.claimed_by, meta)
    if not user:
        raise _invalid("user_unknown", "/claimed_by", "missing", "neither a credential nor this says who claims")
    _may_answer(task, user)
    if task.claimed_by is None:
        yield TaskClaimed(claimed_by=user)


def release(command: ReleaseTask, rows: Rows, meta: Meta) -> Iterator[Decision]:
    task = _unended(rows, meta)
    user = _user(command.claimed_by, meta)
    if task.claimed_by is None:
        return
    if user and user != task.claimed_by:
        raise Rejected("task_claimed", f"claimed by {task.claimed_by}")
    yield TaskReleased()


def assign(command: AssignTask, rows: Rows, meta: Meta) -> Iterator[Decision]:
    task = _unended(rows, meta)
    _holds(task, meta.actor)  # Else whoever is not to answer would first assign the task to himself.
    if command.assigned_to != task.assigned_to:
        yield TaskAssigned(assigned_to=command.assigned_to)


def complete(command: CompleteTask, rows: Rows, meta: Meta) -> Iterator[Decision]:
    task = _known(rows, meta)
    if task.status == command.status and _same(task.response_payload, command.response_payload):
        return  # The same answer twice is a retry, not a conflict.
    _refuse_ended(task)
    if task.task_type == "approval" and command.status == "completed":
        raise _invalid("verdict_needed", "/status", "verdict_needed", "an approval is approved or rejected")
    user = _user(command.completed_by, meta) or task.claimed_by or ""
    _may_answer(task, user)
    if task.require_claim and task.claimed_by is None:
        raise Rejected("task_not_claimed", "the task must be claimed first")
    _check_shown(task, command.shown_hash)
    yield TaskCompleted(status=command.status, response_payload=command.response_payload, completed_by=user)
    yield from _told(task, Answer(result=_result(task, command, user)))


def _check_shown(task: HumanTask, shown_hash: str | None) -> None:
    if shown_hash is None and task.require_hash:
        detail = "this task needs the request_hash of what was shown"
        raise _invalid("shown_hash_missing", "/shown_hash", "missing", detail)
    if shown_hash is not None and shown_hash != task.request_hash:
        raise Rejected("shown_hash_differs", "what was shown is not what this task asks")


def cancel(command: CancelTask, rows: Rows, meta: Meta) -> Iterator[Decision]:
    task = _known(rows, meta)
    if task.status == "cancelled":
        return
    _refuse_ended(task)
    yield TaskCancelled(reason=command.reason, cancelled_by=meta.actor)
    detail = command.reason or "the task was cancelled"
    yield from _told(task, Answer({"retryable": False}, "task_cancelled", detail))


def withdraw(command: WithdrawTask, rows: Rows, meta: Meta) -> Iterator[Decision]:
    task = rows.get(HumanTask, meta.aggregate_id)
    if task is not None and task.status not in TASK_ENDED:
        yield TaskCancelled(reason=command.reason, cancelled_by=meta.actor)


def expire(command: ExpireTask, rows: Rows, meta: Meta) -> Iterator[Decision]:
    task = rows.get(HumanTask, meta.aggregate_id)
    if task is None or task.status in TASK_ENDED or task.due_at != command.due_at:
        return
    late = max(0.0, meta.at - task.due_at)
    if task.on_timeout == "escalate" and task.escalate_to is not None:
        yield TaskEscalated(late_seconds=late, assigned_to=task.escalate_to)
        return
    if task.on_timeout == "default":
        yield TaskExpired(late_seconds=late, output=task.default_output)
        yield from _told(task, Answer(result={"output": task.default_output, "output_text": None, "route": None}))
        return
    yield TaskExpired(late_seconds=late)
    detail = f"nobody answered within {task.timeout_seconds:g} s"
    yield from _told(task, Answer({"retryable": True}, "task_expired", detail))


def _told(task: HumanTask, answer: Answer) -> Iterator[Reply]:
    if task.answer_to:
        yield Reply(task.answer_to, answer)


def _result(task: HumanTask, command: CompleteTask, user: str) -> JsonObject:
    """What a node that awaits the task makes of it: its output, and the edges that it takes."""
    output = {
        "task_id": task.id,
        "status": command.status,
        "response_payload_json": command.response_payload,
        "completed_by": user,
    }
    if command.status == "completed":
        return {"output": output, "output_text": None, "route": None}
    output["approved"] = command.status == "approved"
    return {"output": output, "output_text": None, "route": command.status}


def _known(rows: Rows, meta: Meta) -> HumanTask:
    task = rows.get(HumanTask, meta.aggregate_id)
    if task is None:
        raise Rejected("human_task_not_found", "there is no such human task", status=404)
    return task


def _unended(rows: Rows, meta: Meta) -> HumanTask:
    task = _known(rows, meta)
    _refuse_ended(task)
    return task


def _refuse_ended(task: HumanTask) -> None:
    if task.status in VERDICTS:
        raise Rejected("task_already_completed", f"was {task.status}")
    if task.status in TASK_ENDED:
        raise Rejected(f"task_{task.status}", f"the task is {task.status}")


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same: Python takes true for 1."""
    return orjson.dumps(one, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS)


def _invalid(code: str, pointer: str, error_code: str, detail: str) -> Rejected:
    error: FieldError = {"pointer": pointer, "code": error_code, "detail": detail}
    return Rejected(code, f"{pointer}: {detail}", status=422, errors=(error,))


def answer(command: Command, rows: Rows, meta: Meta) -> HumanTaskView:
    """What the sender is shown: the task as it is now."""
    return human_task_view(_known(rows, meta))


def ended(task: HumanTask) -> bool:
    return task.status in TASK_ENDED


DOMAIN = Domain(
    name="human",
    head=HumanTask,
    decide={
        CreateTask: create,
        OpenTask: open_,
        ClaimTask: claim,
        ReleaseTask: release,
        AssignTask: assign,
        CompleteTask: complete,
        CancelTask: cancel,
        WithdrawTask: withdraw,
        ExpireTask: expire,
    },
    evolve=known.evolve,
    events=EVENTS,
    tables=known.TABLES,
    answer=answer,
    ended=ended,
)
