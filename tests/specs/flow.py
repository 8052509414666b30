"""given(what happened).when(command).then(what follows) for runs: workflows and events as short texts.

A workflow: `Flow("a:code b:answer", "a>b a>c:failed", configs={"a": {"on_error": "continue"}})`. What follows, in
order: `ready a` (its step may be claimed), `queued a`, `pending a`, `completed a`, `failed a:code`, `skipped a`,
`run completed` and so on; an iteration other than "1" as `a@2.1`, a lease token as `a#2`; `wake a in 2.0` and
`continue` are messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from handlers.runs.programs import Programs
from handlers.runtime import Runtime
from projections.catalog import Definition, Version
from projections.runtime import TABLES, NodeRun, Run
from schemas import runtime as wire
from schemas.decider import After, Awaited, Decision, Domain, Meta, Recorded
from schemas.human import OpenTask, WithdrawTask
from schemas.messages import Command, Event, JsonObject, Rejected, derive, derive_near
from schemas.runtime import Failure, node_run_id

RUN = "00000000-0000-4000-8000-000000000001"
WORKFLOW = "00000000-0000-4000-8000-000000000002"
VERSION = "00000000-0000-4000-8000-000000000003"
TENANT = "t1"


class Tables:
    """The rows of one run, and the facts of the catalog."""

    def __init__(self, facts: Iterable[Any]) -> None:
        self.rows: dict[tuple[type[Any], str], Any] = {}
        self.facts = {(type(fact), fact.id): fact for fact in facts}
        self.tenant_id = TENANT

    def get(self, kind: type[Any], id: str) -> Any:
        return self._own(self.rows.get((kind, id)))

    def _own(self, row: Any) -> Any:
        """As the kernel shows rows: another tenant's are not there."""
        return row if row is not None and row.tenant_id == self.tenant_id else None

    def want(self, kind: type[Any], ids: Iterable[str]) -> None:
        return None

    def live(self, kind: type[Any]) -> list[Any]:
        (spec,) = [spec for spec in TABLES if spec.row is kind]
        return [row for (each, _), row in self.rows.items() if each is kind and spec.live(row)]

    def fact(self, kind: type[Any], id: str) -> Any:
        return self._own(self.facts.get((kind, id)))


@dataclass(frozen=True)
class Leased:
    """An executor claimed a step."""

    path: str
    by: str = "executor"
    until: float = 8.0
    deadline: float = 0.0


@dataclass(frozen=True)
class Later:
    """Time has gone on to `at`."""

    at: float


Happened = Command | Leased | Later


def definition(**changes: Any) -> Definition:
    known = Definition(
        id=WORKFLOW, tenant_id=TENANT, seq=1, kind="workflow", code="w", name="W", description="", app_id=None,
        status="active", versions=1, latest_published=VERSION, created_at=0.0, updated_at=0.0,
    )  # fmt: skip
    return replace(known, **changes)


@dataclass
class Flow:
    """A workflow, and what has happened to a run of it."""

    nodes: str
    edges: str = ""
    share: int = 256
    inputs: JsonObject = field(default_factory=dict)
    configs: dict[str, Any] = field(default_factory=dict)
    answer_to: str = ""

    def __post_init__(self) -> None:
        self.version = Version(
            id=VERSION, definition_id=WORKFLOW, tenant_id=TENANT, kind="workflow", number=1, status="published",
            spec=self._dsl(), problems=[], checks={}, description="", created_at=0.0, published_at=0.0,
        )  # fmt: skip
        self.facts: list[Any] = [definition(), self.version]
        programs = Programs()
        programs.keep(VERSION, programs.compile(self.version))
        self.domain: Domain = Runtime(programs, share=self.share).domain()
        self.tables = Tables(self.facts)
        self.at = 0.0
        self.messages = 0

    def _dsl(self) -> JsonObject:
        arrows = [one.replace(">", ":").split(":") for one in self.edges.split()]
        nodes = [one.split(":") for one in self.nodes.split()]
        return {
            "nodes": [{"id": name, "type": kind, "config": self._config(name, kind)} for name, kind in nodes],
            "edges": [
                {"source": source, "target": target} | ({"condition": label[0]} if label else {})
                for source, target, *label in arrows
            ],
        }

    def _config(self, name: str, kind: str) -> JsonObject:
        least: dict[str, JsonObject] = {
            "code": {"code": "result = payload"},
            "answer": {"text": name},
            "if-else": {"expression": "true"},
            "workflow": {"workflow_id": WORKFLOW},
            "approval": {"title": "{{inputs.what}}"},
        }
        config: JsonObject = self.configs.get(name, {})
        return least.get(kind, {}) | config

    def given(self, *happened: Happened) -> Flow:
        """The run is created, then this happens."""
        self.handle(self.create())
        for each in happened:
            match each:
                case Leased():
                    self.lease(each)
                case Later():
                    self.at = each.at
                case _:
                    self.handle(each)
        return self

    def lease(self, leased: Leased) -> None:
        row = self.node(leased.path)
        assert row.ready, f"{leased.path} cannot be claimed"
        self.tables.rows[NodeRun, row.id] = replace(
            row, leased_by=leased.by, lease_until=leased.until, deadline_at=leased.deadline, started_at=self.at
        )

    def handle(self, command: Command, tenant_id: str = TENANT) -> list[Decision]:
        self.messages += 1
        self.tables.tenant_id = tenant_id
        meta = Meta(derive(RUN, f"message {self.messages}"), tenant_id, RUN, self.at, answer_to=self.answer_to)
        decided = []
        for decision in self.domain.decide[type(command)](command, self.tables, meta):
            decided.append(decision)
            if isinstance(decision, Event):
                self._fold(decision, meta)
        return decided

    def _fold(self, event: Event, meta: Meta) -> None:
        head = self.tables.get(Run, RUN)
        recorded = Recorded(event, RUN, head.seq + 1 if head else 1, self.at, meta.tenant_id, lane=0)
        for row in self.domain.evolve(self.tables, recorded):
            self.tables.rows[type(row), row.id] = row

    def when(self, command: Command, *, tenant_id: str = TENANT) -> When:
        return When(self, command, tenant_id)

    # What may be sent, by the names of nodes.

    def create(self, **changes: Any) -> wire.CreateRun:
        body = {"run_id": RUN, "workflow_id": WORKFLOW, "inputs": self.inputs} | changes
        return wire.CreateRun.model_validate(body)

    def node(self, path: str) -> NodeRun:
        row = self.tables.get(NodeRun, id_of(path))
        assert isinstance(row, NodeRun), f"there is no node run {path}"
        return row

    @property
    def run(self) -> Run:
        run = self.tables.get(Run, RUN)
        assert isinstance(run, Run)
        return run


def id_of(path: str) -> str:
    """The id of the node run `a` or `a@2.1`."""
    name, _, iteration = path.partition("@")
    return node_run_id(RUN, name, iteration or "1")


def complete(path: str, output: JsonObject | None = None, *, token: int = 1, text: str | None = None) -> Command:
    return wire.CompleteNode(
        run_id=RUN, node_run_id=id_of(path), lease_token=token, output=output or {}, output_text=text
    )


def fail(path: str, code: str = "broken", *, token: int = 1, retryable: bool = True) -> Command:
    error = Failure(code=code)
    return wire.FailNode(run_id=RUN, node_run_id=id_of(path), lease_token=token, error=error, retryable=retryable)


def expire(path: str, *, token: int = 1) -> Command:
    return wire.ExpireLease(run_id=RUN, node_run_id=id_of(path), lease_token=token)


def wake(path: str, *, attempt: int = 1) -> Command:
    id = id_of(path)
    return wire.ResumeNode(run_id=RUN, node_run_id=id, wait_id=derive_near(id, f"timer:{attempt}"))


def child_of(path: str, attempt: int = 1) -> str:
    """The run that this attempt of a node awaits."""
    return derive_near(id_of(path), f"run:{attempt}")


def task_of(path: str, attempt: int = 1) -> str:
    """The human task that this attempt of a node awaits."""
    return derive_near(id_of(path), f"task:{attempt}")


def answer(
    path: str, output: JsonObject | None = None, *, attempt: int = 1, task: bool = False, **said: Any
) -> Command:
    """A node's child run, or its task, has come to an end; `error`: a code."""
    if error := said.pop("error", None):
        said["error"] = Failure(code=error, message="it broke")
    return wire.ResumeNode(
        run_id=RUN,
        node_run_id=id_of(path),
        wait_id=task_of(path, attempt) if task else child_of(path, attempt),
        output=output,
        **said,
    )


def pause() -> Command:
    return wire.PauseRun(run_id=RUN)


def resume() -> Command:
    return wire.ResumeRun(run_id=RUN)


def cancel(*, compensate: bool = False, force: bool = False) -> Command:
    return wire.CancelRun(run_id=RUN, compensate=compensate, force=force)


def set_run(status: str) -> Command:
    return wire.SetRunStatus.model_validate({"run_id": RUN, "status": status})


def set_node(path: str, status: str, **said: Any) -> Command:
    body = {"run_id": RUN, "node_run_id": id_of(path), "status": status, "worker_key": "w"} | said
    return wire.SetNodeStatus.model_validate(body)


def execute(steps: int = 1) -> Command:
    return wire.ExecuteRun(run_id=RUN, max_steps=steps)


def execute_node(path: str) -> Command:
    return wire.ExecuteNode(run_id=RUN, node_run_id=id_of(path))


@dataclass
class When:
    flow: Flow
    command: Command
    tenant_id: str

    def then(self, *expected: str) -> Run:
        """Exactly this follows; gives the run as it is then."""
        decided = self.flow.handle(self.command, self.tenant_id)
        assert list(self._said(decided)) == list(expected)
        return self.flow.run

    def rejected(self, code: str, status: int = 409) -> Rejected:
        """It is refused, and nothing changes."""
        before = dict(self.flow.tables.rows)
        with pytest.raises(Rejected) as refusal:
            self.flow.handle(self.command, self.tenant_id)
        assert (refusal.value.code, refusal.value.status) == (code, status)
        assert self.flow.tables.rows == before
        return refusal.value

    def _said(self, decided: Iterable[Decision]) -> Iterator[str]:
        for decision in decided:
            match decision:
                case After(seconds=seconds, command=wire.ResumeNode(timed_out=False) as awaited):
                    yield f"wake {self._path(awaited.node_run_id)} in {seconds}"
                case After(seconds=seconds, command=wire.ResumeNode(timed_out=True) as awaited):
                    yield f"time out {self._path(awaited.node_run_id)} in {seconds}"
                case Awaited(command=wire.StartChild() as start):
                    assert (start.run_id, start.parent_node_run_id) == (decision.wait_id, decision.subject)
                    yield f"start {self._path(start.parent_node_run_id)}"
                case Awaited(command=OpenTask() as task):
                    assert (task.task_id, task.node_run_id, task.run_id) == (decision.wait_id, decision.subject, RUN)
                    yield f"ask {self._path(decision.subject)}"
                case WithdrawTask():
                    yield f"withdraw task of {self._awaiting(decision.task_id)}"
                case wire.PauseChild() | wire.ResumeChild() | wire.CancelRun():
                    yield f"{_told(decision)} {self._awaiting(decision.run_id)}"
                case wire.ContinueRun():
                    yield "continue"
                case Event():
                    yield self._event(decision)
                case _:
                    yield repr(decision)

    def _awaiting(self, child: str) -> str:
        """The node run that waits, or waited, for a child run."""
        (row,) = [row for (kind, _), row in self.flow.tables.rows.items() if kind is NodeRun and row.wait_id == child]
        return self._path(row.id)

    def _event(self, event: Event) -> str:
        path = self._path(getattr(event, "node_run_id", "") or "")
        match event:
            case wire.NodeScheduled():
                return f"{'ready' if event.ready else 'queued'} {path}"
            case wire.NodeWaiting():
                return f"pending {path}"
            case wire.NodeDispatched():
                return f"ready {path}#{event.lease_token}"
            case wire.NodeQueued():
                return f"queued {path}"
            case wire.RunPaused() | wire.RunResumed():
                return f"{_status(event)} by {event.by}"
            case wire.NodeStarted():
                return f"running {path}#{event.lease_token}"
            case wire.LeaseRenewed():
                return f"renewed {path}"
            case wire.NodeCompleted(error=error):
                return f"completed {path}{':' + error.code if error else ''}"
            case wire.NodeFailed():
                return f"failed {path}:{event.error.code}"
            case wire.NodeRetryScheduled():
                return f"retry {path}:{event.error.code}"
            case wire.StepRequeued():
                return f"requeued {path}#{event.lease_token}"
            case wire.NodeSkipped():
                return f"skipped {path}"
            case wire.NodeCancelled():
                return f"cancelled {path}"
            case wire.StepsAllowed():
                return f"steps {event.allowance}"
            case wire.RunCompensating():
                return f"run compensating {self._path(event.of)}"
            case wire.RunFailing() | wire.RunFailed() | wire.RunCompensated():
                return f"{_status(event)}:{event.error.code}"
            case _:
                return _status(event)

    def _path(self, id: str) -> str:
        row = self.flow.tables.get(NodeRun, id)
        if row is None:
            return ""
        return str(row.path) if row.iteration == "1" else f"{row.path}@{row.iteration}"


def _status(event: Event) -> str:
    return event.type.removeprefix("runtime.").replace("_", " ")


def _told(command: Command) -> str:
    """What a child run is told."""
    match command:
        case wire.CancelRun(compensate=compensate, force=force):
            return f"cancel{' compensate' * compensate}{' force' * force} child of"
        case wire.PauseChild():
            return "pause child of"
        case _:
            return "resume child of"
