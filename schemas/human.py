"""Wire contract of human tasks. These names are stored; renaming one is a migration."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, ClassVar, Final, Literal, get_args

import orjson
from pydantic import AfterValidator, Field, StringConstraints

from schemas.examples import Example
from schemas.messages import ChosenId, Command, Event, ForeignId, Id, JsonObject, Text, storable
from schemas.runtime import VALUE_BYTES_MAX

TaskType = Literal["approval", "input", "takeover", "pause", "resume"]
Verdict = Literal["approved", "rejected", "completed"]
"""How a task is completed. An approval needs one of the first two; any other kind may have any of them."""
TaskStatus = Literal["open", "claimed", "approved", "rejected", "completed", "cancelled", "expired"]
OnTimeout = Literal["fail", "default", "escalate"]
VERDICTS: Final[frozenset[str]] = frozenset(get_args(Verdict))
TASK_ENDED: Final = VERDICTS | {"cancelled", "expired"}
TIMEOUT_SECONDS_MAX: Final = 31_536_000  # One year.
RESPONSE_BYTES_MAX: Final = VALUE_BYTES_MAX - 1024
"""Of a response as JSON: it becomes part of a node's output, with who gave it."""


def _within(value: Any, bytes_max: int) -> Any:
    size = len(orjson.dumps(value))
    if size > bytes_max:
        raise ValueError(f"{size} bytes as JSON, at most {bytes_max}")
    return value


Title = Annotated[
    str, StringConstraints(min_length=1, max_length=512), AfterValidator(storable), Example("Approve refund")
]
User = Annotated[ForeignId, Example("ops-1")]
Shown = Annotated[Any, AfterValidator(lambda value: _within(value, VALUE_BYTES_MAX)), Example({"amount": 99})]
Response = Annotated[Any, AfterValidator(lambda value: _within(value, RESPONSE_BYTES_MAX)), Example({"approved": True})]
Output = Annotated[JsonObject, AfterValidator(lambda value: _within(value, VALUE_BYTES_MAX))]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def request_hash(task_type: str, title: str, description: str, request_payload: Any) -> str:
    """What is shown, as a hash: SHA-256 in hex of a JSON object's UTF-8 text, keys sorted, without blanks.

    Its keys are `description`, `request_payload_json`, `task_type` and `title`. Nobody needs to compute it: a task
    shows it, and whoever answers sends it back.
    """
    shown = {
        "task_type": task_type,
        "title": title,
        "description": description,
        "request_payload_json": request_payload,
    }
    return hashlib.sha256(orjson.dumps(shown, option=orjson.OPT_SORT_KEYS)).hexdigest()


class CreateTask(Command):
    """Ask somebody for something. The task's id is `task_id`, or the command's if that is left out.

    `run_id` and `node_run_id` are for people to read: a task that was made like this resumes nothing.
    """

    type: Literal["human.create_task"] = "human.create_task"
    creates: ClassVar[bool] = True
    public: ClassVar[bool] = True
    task_id: ChosenId | None = None
    task_type: TaskType
    title: Title
    description: Text = ""
    run_id: Annotated[ForeignId | None, Example("run-id")] = None
    node_run_id: Annotated[ForeignId | None, Example("node-run-id")] = None
    assigned_to: Annotated[User | None, Example("ops-1")] = None
    request_payload: Annotated[Shown, Example({"amount": 99})] = Field(default_factory=dict)
    require_claim: bool = False
    require_hash: bool = False
    four_eyes: bool = False
    timeout_seconds: Annotated[float | None, Field(gt=0, le=TIMEOUT_SECONDS_MAX)] = None
    on_timeout: OnTimeout = "fail"
    default_output: Output | None = None
    escalate_to: User | None = None

    def aggregate_id(self, tenant_id: str, command_id: str) -> str:
        return self.task_id or command_id


class TaskCommand(Command):
    """A command for one task; the task is its aggregate."""

    task_id: Id

    def aggregate_id(self, tenant_id: str, command_id: str) -> str:
        return self.task_id


class OpenTask(TaskCommand):
    """What CreateTask does, asked by a run that awaits the end. Its values come of templates, so they are checked
    where it is decided: whoever awaits it is told what is wrong. `requested_by`: who started the run.
    """

    type: Literal["human.open_task"] = "human.open_task"
    creates: ClassVar[bool] = True
    task_type: TaskType
    title: str
    description: str = ""
    run_id: str | None = None
    node_run_id: str | None = None
    assigned_to: str | None = None
    request_payload: Any = Field(default_factory=dict)
    require_claim: bool = False
    require_hash: bool = False
    four_eyes: bool = False
    timeout_seconds: float | None = None
    on_timeout: OnTimeout = "fail"
    default_output: JsonObject | None = None
    escalate_to: str | None = None
    requested_by: str = ""


class ClaimTask(TaskCommand):
    """`claimed_by` is needed where no credential says who calls; if one does, it must say the same."""

    type: Literal["human.claim_task"] = "human.claim_task"
    public: ClassVar[bool] = True
    claimed_by: Annotated[User | None, Example("ops-1")] = None


class ReleaseTask(TaskCommand):
    type: Literal["human.release_task"] = "human.release_task"
    public: ClassVar[bool] = True
    claimed_by: Annotated[User | None, Example("ops-1")] = None


class AssignTask(TaskCommand):
    """Hand a task on. One that is assigned, or claimed, is handed on by whom it is with."""

    type: Literal["human.assign_task"] = "human.assign_task"
    public: ClassVar[bool] = True
    assigned_to: User


class CompleteTask(TaskCommand):
    """`shown_hash`: the `request_hash` of what the user saw. `completed_by` as `claimed_by` of ClaimTask."""

    type: Literal["human.complete_task"] = "human.complete_task"
    public: ClassVar[bool] = True
    status: Verdict
    response_payload: Annotated[Response, Example({"approved": True})] = Field(default_factory=dict)
    shown_hash: Hash | None = None
    completed_by: User | None = None


class CancelTask(TaskCommand):
    """Whoever awaits the task is told that it failed."""

    type: Literal["human.cancel_task"] = "human.cancel_task"
    public: ClassVar[bool] = True
    reason: Annotated[Text, Example("not needed any more")] = ""


class WithdrawTask(TaskCommand):
    """Who awaits a task does so no more: it is cancelled and nobody is told. Nothing if it has ended, or never was."""

    type: Literal["human.withdraw_task"] = "human.withdraw_task"
    reason: str = ""


class ExpireTask(TaskCommand):
    """A task is due. `due_at`: the due time that this is about."""

    type: Literal["human.expire_task"] = "human.expire_task"
    compare_and_set: ClassVar[bool] = True
    due_at: float


class TaskCreated(Event):
    """`answer_to`: who awaits the end of the task (`schemas.envelope.AnswerTo`). `due_at` 0: never."""

    type: Literal["human.task_created"] = "human.task_created"
    task_type: TaskType
    title: str
    description: str = ""
    run_id: str | None = None
    node_run_id: str | None = None
    assigned_to: str | None = None
    request_payload: Any = Field(default_factory=dict)
    request_hash: str
    require_claim: bool = False
    require_hash: bool = False
    four_eyes: bool = False
    requested_by: str = ""
    timeout_seconds: float | None = None
    due_at: float = 0.0
    on_timeout: OnTimeout = "fail"
    default_output: JsonObject | None = None
    escalate_to: str | None = None
    answer_to: str = ""


class TaskClaimed(Event):
    type: Literal["human.task_claimed"] = "human.task_claimed"
    claimed_by: str


class TaskReleased(Event):
    type: Literal["human.task_released"] = "human.task_released"


class TaskAssigned(Event):
    """Somebody else's claim ends with it."""

    type: Literal["human.task_assigned"] = "human.task_assigned"
    assigned_to: str


class TaskCompleted(Event):
    """`completed_by` is empty if nobody said who it was, which only an installation without authentication allows."""

    type: Literal["human.task_completed"] = "human.task_completed"
    status: Verdict
    response_payload: Any = Field(default_factory=dict)
    completed_by: str = ""


class TaskCancelled(Event):
    type: Literal["human.task_cancelled"] = "human.task_cancelled"
    reason: str = ""
    cancelled_by: str = ""


class TaskExpired(Event):
    """Nobody answered in time. `late_seconds`: so long after the due time this was noticed. `output`: what counts
    as the answer, if the task says so.
    """

    type: Literal["human.task_expired"] = "human.task_expired"
    late_seconds: float = 0.0
    output: JsonObject | None = None


class TaskEscalated(Event):
    """Nobody answered in time: somebody else has the task now, without a claim and without a due time."""

    type: Literal["human.task_escalated"] = "human.task_escalated"
    late_seconds: float = 0.0
    assigned_to: str


HumanCommand = (
    CreateTask | OpenTask | ClaimTask | ReleaseTask | AssignTask | CompleteTask | CancelTask | WithdrawTask | ExpireTask
)
HumanEvent = (
    TaskCreated
    | TaskClaimed
    | TaskReleased
    | TaskAssigned
    | TaskCompleted
    | TaskCancelled
    | TaskExpired
    | TaskEscalated
)
TERMINAL_EVENTS: Final = (TaskCompleted, TaskCancelled, TaskExpired)
COMMANDS: tuple[type[Command], ...] = get_args(HumanCommand)
EVENTS: tuple[type[Event], ...] = get_args(HumanEvent)
