"""Wire contract of runs and node runs. These names are stored; renaming one is a migration."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from schemas.examples import Example
from schemas.messages import (
    PLATFORM_NAMESPACE,
    ChosenId,
    Code,
    Command,
    Event,
    ForeignId,
    Id,
    JsonObject,
    Text,
    derive,
    derive_near,
)

RunStatus = Literal[
    "queued",
    "running",
    "waiting",
    "paused",
    "failing",
    "compensating",
    "cancelling",
    "completed",
    "failed",
    "cancelled",
    "compensated",
]
RunMode = Literal["auto", "manual"]
NodeStatus = Literal["queued", "running", "pending", "completed", "failed", "skipped", "cancelled"]
PausedBy = Literal["self", "parent"]
RunKind = Literal["graph", "single"]
"""`single`: one step that the platform has done for itself."""
RUN_ENDED = frozenset({"completed", "failed", "cancelled", "compensated"})
RUN_UNWINDING = frozenset({"failing", "compensating", "cancelling"})
NODE_ENDED = frozenset({"completed", "failed", "skipped", "cancelled"})
WaitOn = Literal["timer", "task", "run", "event"]
DEPTH_MAX = 8
"""So many runs may be above a run."""
CHILDREN_MAX = 1_000
"""So many child runs may one run start."""
VALUE_BYTES_MAX = 64 * 1024
"""An output or the variables of a run, as JSON. What is larger must be an artifact."""

PLATFORM_VERSION_ID = derive(PLATFORM_NAMESPACE, "the version of single steps")
PLATFORM_WORKFLOW_ID = derive(PLATFORM_NAMESPACE, "the workflow of single steps")

Worker = Annotated[str, Field(max_length=128), Example("runtime-worker-1")]


def node_run_id(run_id: str, path: str, iteration: str) -> str:
    """A node run is (path, iteration) in its run: the same for all attempts, so also its idempotency key."""
    return derive_near(run_id, f"{path}:{iteration}")


class InitialNode(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    node_id: Code
    node_type: str | None = None


class Failure(BaseModel):
    """Why a node or a run failed. `code` is for programs, `message` for people; `run_id`: the child run that failed."""

    model_config = ConfigDict(frozen=True)
    code: str
    message: str = ""
    node_id: str | None = None
    run_id: str | None = None

    def stored(self) -> JsonObject:
        """As rows keep it."""
        return self.model_dump(exclude={"run_id"} if self.run_id is None else None)


class Origin(BaseModel):
    """Where a run comes from. `answer_to`: who awaits its end (`schemas.envelope.AnswerTo`).

    A child run names the node run that started it; `depth`: how many runs are above it, up to the root.
    """

    model_config = ConfigDict(frozen=True)
    answer_to: str = ""
    parent_run_id: str | None = None
    parent_node_run_id: str | None = None
    root_run_id: str | None = None
    depth: int = 0


class RunCommand(Command):
    """A command for one run; the run is its aggregate."""

    run_id: Id

    def aggregate_id(self, tenant_id: str, command_id: str) -> str:
        return self.run_id


class CreateRun(Command):
    """Start a run of a workflow version (the latest published one if none is named).

    The run's id is `run_id`, which is not of version 5, or the command's id if that is left out.
    """

    type: Literal["runtime.create_run"] = "runtime.create_run"
    creates: ClassVar[bool] = True
    public: ClassVar[bool] = True
    run_id: ChosenId | None = None
    workflow_id: Annotated[Id | None, Example("c0a8012e-7b1d-5c11-8f60-2f7d5a1e9b42")] = None
    workflow_version_id: Id | None = None
    app_id: ForeignId | None = None
    app_version_id: ForeignId | None = None
    session_id: ForeignId | None = None
    inputs: Annotated[JsonObject, Example({"name": "Ada"})] = Field(default_factory=dict)
    mode: RunMode = "auto"
    initial_node: InitialNode | None = None

    def aggregate_id(self, tenant_id: str, command_id: str) -> str:
        return self.run_id or command_id


class StartSingle(RunCommand):
    """Have the platform do one step of its own, as a run; whoever awaits this is told what came of it."""

    type: Literal["runtime.start_single"] = "runtime.start_single"
    creates: ClassVar[bool] = True
    step: Literal["check"]
    inputs: JsonObject = Field(default_factory=dict)


class StartChild(RunCommand):
    """A node of another run has a workflow run in its stead; whoever awaits this is told what came of it."""

    type: Literal["runtime.start_child"] = "runtime.start_child"
    creates: ClassVar[bool] = True
    workflow_id: Id | None = None
    workflow_version_id: Id | None = None
    app_id: ForeignId | None = None
    app_version_id: ForeignId | None = None
    session_id: ForeignId | None = None
    inputs: JsonObject = Field(default_factory=dict)
    parent_run_id: Id
    parent_node_run_id: Id
    root_run_id: Id
    depth: int


class PauseRun(RunCommand):
    """Nothing of the run or of its child runs starts until it is resumed; what is being executed ends."""

    type: Literal["runtime.pause_run"] = "runtime.pause_run"
    public: ClassVar[bool] = True


class ResumeRun(RunCommand):
    type: Literal["runtime.resume_run"] = "runtime.resume_run"
    public: ClassVar[bool] = True


class PauseChild(RunCommand):
    """The run that awaits this one is paused."""

    type: Literal["runtime.pause_child"] = "runtime.pause_child"


class ResumeChild(RunCommand):
    """The run that awaits this one goes on; a pause of its own stays."""

    type: Literal["runtime.resume_child"] = "runtime.resume_child"


class CancelRun(RunCommand):
    type: Literal["runtime.cancel_run"] = "runtime.cancel_run"
    public: ClassVar[bool] = True
    compensate: Annotated[bool, Example(False)] = False
    force: bool = False


class ExecuteRun(RunCommand):
    """Let a manual run take up to `max_steps` further steps, one after the other."""

    type: Literal["runtime.execute_run"] = "runtime.execute_run"
    public: ClassVar[bool] = True
    max_steps: int = Field(default=1, ge=1, le=10_000)
    worker_key: Worker = ""


class ExecuteNode(RunCommand):
    """Execute one queued node run of a manual run."""

    type: Literal["runtime.execute_node"] = "runtime.execute_node"
    public: ClassVar[bool] = True
    node_run_id: Id
    worker_key: Worker = ""


class SetRunStatus(RunCommand):
    type: Literal["runtime.set_run_status"] = "runtime.set_run_status"
    public: ClassVar[bool] = True
    status: Annotated[Literal["running", "completed", "failed", "cancelled"], Example("completed")]
    error_code: Code | None = None
    error_message: Text | None = None


LEASE_SECONDS_DEFAULT = 300
LEASE_SECONDS_MAX = 86_400
"""Of a claim by hand."""

LeaseSeconds = Annotated[int, Field(ge=1, le=LEASE_SECONDS_MAX)]


class SetNodeStatus(RunCommand):
    """What an external worker says of a node run. Refused while somebody else holds its lease.

    `running` leases it for `lease_seconds`, or renews that lease; the other states are results.
    """

    type: Literal["runtime.set_node_status"] = "runtime.set_node_status"
    public: ClassVar[bool] = True
    node_run_id: Id
    status: Literal["running", "completed", "failed", "skipped"]
    worker_key: Worker = ""
    lease_seconds: LeaseSeconds = LEASE_SECONDS_DEFAULT
    output: JsonObject | None = None
    output_text: Text | None = None
    error_code: Code | None = None
    error_message: Text | None = None


class ResumeHuman(RunCommand):
    """Go on after a human task of this node run has ended, which it does by itself: refused until then."""

    type: Literal["runtime.resume_human"] = "runtime.resume_human"
    public: ClassVar[bool] = True
    node_run_id: Id
    human_task_id: Id
    worker_key: Worker = ""


class CompleteNode(RunCommand):
    """The result of a step. Accepted from the holder of the latest lease token only."""

    type: Literal["runtime.complete_node"] = "runtime.complete_node"
    compare_and_set: ClassVar[bool] = True
    node_run_id: Id
    lease_token: int
    output: JsonObject = Field(default_factory=dict)
    output_text: str | None = None
    started_at: float = 0.0
    ended_at: float = 0.0
    worker: str = ""


class FailNode(RunCommand):
    """A step that failed. `retryable` false ends the attempts at once."""

    type: Literal["runtime.fail_node"] = "runtime.fail_node"
    compare_and_set: ClassVar[bool] = True
    node_run_id: Id
    lease_token: int
    error: Failure
    retryable: bool = True
    output: JsonObject | None = None
    output_text: str | None = None
    started_at: float = 0.0
    ended_at: float = 0.0
    worker: str = ""


class ExpireLease(RunCommand):
    """The sweeper saw a lease run out: the attempt is repeated under the next token, or fails."""

    type: Literal["runtime.expire_lease"] = "runtime.expire_lease"
    compare_and_set: ClassVar[bool] = True
    node_run_id: Id
    lease_token: int
    timed_out: bool = False


class ResumeNode(RunCommand):
    """What a node run waits for has come, or has come to nothing. Nothing happens if it waits for that no more.

    `timed_out`: the node run waits no longer; what it waited for goes on by itself, and is to be ended. `refused`:
    there never was what it waited for.
    """

    type: Literal["runtime.resume_node"] = "runtime.resume_node"
    compare_and_set: ClassVar[bool] = True
    node_run_id: Id
    wait_id: Id
    output: JsonObject | None = None
    output_text: str | None = None
    route: str | None = None
    error: Failure | None = None
    retryable: bool = False
    timed_out: bool = False
    refused: bool = False


class ContinueRun(RunCommand):
    """Go on with the pure nodes that one message's share (256) left queued."""

    type: Literal["runtime.continue_run"] = "runtime.continue_run"


class FailRun(RunCommand):
    """An internal command of this run is a dead letter: the run must not wait for it for ever."""

    type: Literal["runtime.fail_run"] = "runtime.fail_run"
    error: Failure


class MarkSet(BaseModel):
    """A counter of a run as it stands after the event: edges arrived at a node, a loop's exits, a node's last run."""

    model_config = ConfigDict(frozen=True)
    id: str
    resolved: int = 0
    taken: int = 0
    note: str = ""


class NodeEvent(Event):
    node_run_id: str
    marks: tuple[MarkSet, ...] = ()


class RunCreated(Event):
    type: Literal["runtime.run_created"] = "runtime.run_created"
    workflow_id: str
    workflow_version_id: str
    app_id: str | None = None
    app_version_id: str | None = None
    session_id: str | None = None
    inputs: JsonObject = Field(default_factory=dict)
    mode: RunMode = "auto"
    initial_node: str | None = None
    kind: RunKind = "graph"
    origin: Origin | None = None


class StepsAllowed(Event):
    """A manual run may take `allowance` further steps."""

    type: Literal["runtime.steps_allowed"] = "runtime.steps_allowed"
    allowance: int


class NodeScheduled(NodeEvent):
    """A node run exists. `ready`: its step may be claimed; else it is queued for its turn."""

    type: Literal["runtime.node_scheduled"] = "runtime.node_scheduled"
    node_id: str
    path: str
    iteration: str = "1"
    node_type: str
    kind: str = ""
    input: JsonObject | None = None
    ready: bool = False
    timeout_seconds: float = 0.0


class NodeWaiting(NodeEvent):
    """A node run is `pending` until `runtime.resume_node` with this `wait_id` comes.

    `wait_id`: the human task, the child run, the event, or a name for the timer. `due_at`: when the wait ends at the
    latest (seconds since 1970, 0: never); `input`: what the person or the child run was given.
    """

    type: Literal["runtime.node_waiting"] = "runtime.node_waiting"
    on: WaitOn
    wait_id: str
    due_at: float = 0.0
    input: JsonObject | None = None


class NodeDispatched(NodeEvent):
    """A queued or pending node run may be claimed now. `lease_token` is the token its holder will have."""

    type: Literal["runtime.node_dispatched"] = "runtime.node_dispatched"
    input: JsonObject | None = None
    attempt: int = 1
    lease_token: int = 1
    kind: str = ""
    timeout_seconds: float = 0.0


class NodeQueued(NodeEvent):
    """A node run waits for its turn: it is due, or its run was paused before an executor had claimed it."""

    type: Literal["runtime.node_queued"] = "runtime.node_queued"
    attempt: int = 1


class NodeStarted(NodeEvent):
    """An external worker leased a node run: for so long, and with that time for the attempt (0: no limit)."""

    type: Literal["runtime.node_started"] = "runtime.node_started"
    worker: str = ""
    lease_token: int
    lease_seconds: int
    timeout_seconds: float = 0.0
    input: JsonObject | None = None


class LeaseRenewed(NodeEvent):
    """The external worker that holds a node run does so for so long from now."""

    type: Literal["runtime.lease_renewed"] = "runtime.lease_renewed"
    lease_seconds: int


class NodeCompleted(NodeEvent):
    """A node run ended well. A pure node that ran at once has no earlier event: this one also creates it."""

    type: Literal["runtime.node_completed"] = "runtime.node_completed"
    node_id: str = ""
    path: str = ""
    iteration: str = "1"
    node_type: str = ""
    output: JsonObject = Field(default_factory=dict)
    output_text: str | None = None
    state_updates: JsonObject | None = None
    route: str | None = None
    sink: bool = False
    compensable: bool = False
    error: Failure | None = None
    attempt: int = 1
    lease_token: int = 0
    started_at: float = 0.0
    ended_at: float = 0.0
    worker: str = ""


class NodeFailed(NodeEvent):
    """A node run ended badly. `handled`: an edge labelled `failed` takes over; else the run fails."""

    type: Literal["runtime.node_failed"] = "runtime.node_failed"
    node_id: str = ""
    path: str = ""
    iteration: str = "1"
    node_type: str = ""
    error: Failure
    handled: bool = False
    compensable: bool = False
    output: JsonObject | None = None
    output_text: str | None = None
    attempt: int = 1
    lease_token: int = 0
    started_at: float = 0.0
    ended_at: float = 0.0
    worker: str = ""


class NodeRetryScheduled(NodeEvent):
    """Attempt `attempt` failed, and there will be another one."""

    type: Literal["runtime.node_retry_scheduled"] = "runtime.node_retry_scheduled"
    attempt: int
    error: Failure
    worker: str = ""


class StepRequeued(NodeEvent):
    """A lease ran out: the same attempt may be claimed again under the next token, at once or when it is due."""

    type: Literal["runtime.step_requeued"] = "runtime.step_requeued"
    lease_token: int
    requeues: int


class NodeSkipped(NodeEvent):
    type: Literal["runtime.node_skipped"] = "runtime.node_skipped"
    node_id: str = ""
    path: str = ""
    iteration: str = "1"
    node_type: str = ""


class NodeCancelled(NodeEvent):
    type: Literal["runtime.node_cancelled"] = "runtime.node_cancelled"


class RunPaused(Event):
    """Nothing starts any more. `by`: somebody paused this run, or the run that awaits it was paused."""

    type: Literal["runtime.run_paused"] = "runtime.run_paused"
    by: PausedBy


class RunResumed(Event):
    """That pause is over; the run goes on unless the other one holds."""

    type: Literal["runtime.run_resumed"] = "runtime.run_resumed"
    by: PausedBy


class RunFailing(Event):
    """A failure nobody handled: what is in flight is withdrawn or awaited, then compensated."""

    type: Literal["runtime.run_failing"] = "runtime.run_failing"
    error: Failure
    node_run_id: str | None = None
    compensable: bool = False


class RunCancelling(Event):
    type: Literal["runtime.run_cancelling"] = "runtime.run_cancelling"
    compensate: bool = False


class RunCompensating(Event):
    """The next compensation begins: node run `node_run_id` makes up for node run `of`."""

    type: Literal["runtime.run_compensating"] = "runtime.run_compensating"
    of: str
    node_run_id: str


class RunCompleted(Event):
    type: Literal["runtime.run_completed"] = "runtime.run_completed"
    output: Any = None
    output_text: str | None = None


class RunFailed(Event):
    type: Literal["runtime.run_failed"] = "runtime.run_failed"
    error: Failure


class RunCancelled(Event):
    type: Literal["runtime.run_cancelled"] = "runtime.run_cancelled"


class RunCompensated(Event):
    type: Literal["runtime.run_compensated"] = "runtime.run_compensated"
    error: Failure


RuntimeCommand = (
    CreateRun
    | StartSingle
    | StartChild
    | PauseRun
    | ResumeRun
    | PauseChild
    | ResumeChild
    | CancelRun
    | ExecuteRun
    | ExecuteNode
    | SetRunStatus
    | SetNodeStatus
    | ResumeHuman
    | CompleteNode
    | FailNode
    | ExpireLease
    | ResumeNode
    | ContinueRun
    | FailRun
)
RunEvent = (
    RunCreated
    | StepsAllowed
    | RunPaused
    | RunResumed
    | RunFailing
    | RunCancelling
    | RunCompensating
    | RunCompleted
    | RunFailed
    | RunCancelled
    | RunCompensated
)
NodeRunEvent = (
    NodeScheduled
    | NodeWaiting
    | NodeDispatched
    | NodeQueued
    | NodeStarted
    | LeaseRenewed
    | NodeCompleted
    | NodeFailed
    | NodeRetryScheduled
    | StepRequeued
    | NodeSkipped
    | NodeCancelled
)
RuntimeEvent = RunEvent | NodeRunEvent
COMMANDS: tuple[type[Command], ...] = get_args(RuntimeCommand)
EVENTS: tuple[type[Event], ...] = get_args(RuntimeEvent)
TERMINAL_EVENTS: tuple[type[Event], ...] = (RunCompleted, RunFailed, RunCancelled, RunCompensated)
