"""Runs: create one, let it go on, take in what its steps answer, cancel it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from handlers.runs import by_hand, starting
from handlers.runs.attempts import GOING
from handlers.runs.evaluate import NodeError, check_size
from handlers.runs.plans import plan_of
from handlers.runs.programs import Programs
from handlers.runs.progress import NODES_PER_MESSAGE_MAX, Progress, ended
from projections.catalog import Version
from projections.human import HumanTask
from projections.runtime import TABLES, NodeRun, Run
from projections.runtime_fold import evolve
from projections.runtime_views import node_run_view, run_view
from schemas import runtime as wire
from schemas.decider import Answer, Decision, Domain, Meta, Rows
from schemas.envelope import AnswerTo
from schemas.messages import Command, JsonObject, Rejected
from schemas.runtime import NODE_ENDED, RUN_ENDED, RUN_UNWINDING, Failure
from schemas.workflow.graph import Node

REQUEUES_MAX = 5


@dataclass(frozen=True, slots=True)
class Runtime:
    """The deciders of runs. `step_kinds`: kinds of steps that this installation can execute.

    `check_tokens` false turns the lease token off; only the test that shows its use does that.
    """

    programs: Programs
    step_kinds: frozenset[str] = frozenset({"code", "check"})
    check_tokens: bool = True
    share: int = NODES_PER_MESSAGE_MAX

    def domain(self) -> Domain:
        decide: Mapping[type[Command], Callable[..., Iterable[Decision]]] = {
            wire.CreateRun: self.create,
            wire.StartSingle: self.start_single,
            wire.StartChild: self.start_child,
            wire.CancelRun: self.cancel,
            wire.PauseRun: self.pause,
            wire.ResumeRun: self.resume,
            wire.PauseChild: self.pause_child,
            wire.ResumeChild: self.resume_child,
            wire.ExecuteRun: self.execute_run,
            wire.ExecuteNode: self.execute_node,
            wire.SetRunStatus: self.set_run_status,
            wire.SetNodeStatus: self.set_node_status,
            wire.ResumeHuman: resume_human,
            wire.CompleteNode: self.complete,
            wire.FailNode: self.fail,
            wire.ExpireLease: self.expire,
            wire.ResumeNode: self.resume_node,
            wire.ContinueRun: self.go_on,
            wire.FailRun: self.fail_run,
        }
        return Domain(
            name="runtime",
            head=Run,
            decide=decide,
            evolve=evolve,
            events=wire.EVENTS,
            tables=TABLES,
            answer=answer,
            failed=failed,
            answered=answered,
            facts={
                wire.CreateRun: starting.facts,
                wire.StartChild: starting.facts,
                wire.ResumeHuman: lambda command: [(HumanTask, command.human_task_id)],
            },
            ended=lambda run: run.status in RUN_ENDED,
        )

    # --- from outside ----------------------------------------------------------------------------------------

    def create(self, command: wire.CreateRun, rows: Rows, meta: Meta) -> Iterator[Decision]:
        if rows.get(Run, meta.aggregate_id) is not None:
            raise Rejected("run_exists", f"run {meta.aggregate_id} exists already")
        yield starting.created(command, rows, meta, self.programs)
        yield from self._begin(rows, meta)

    def start_child(self, command: wire.StartChild, rows: Rows, meta: Meta) -> Iterator[Decision]:
        if rows.get(Run, meta.aggregate_id) is not None:
            return  # A repeat: whoever awaits it is told by the run that is there.
        yield starting.child_created(command, rows, meta, self.programs)
        yield from self._begin(rows, meta)

    def start_single(self, command: wire.StartSingle, rows: Rows, meta: Meta) -> Iterator[Decision]:
        if rows.get(Run, meta.aggregate_id) is not None:
            return
        yield starting.single_created(command, meta)
        yield from self._begin(rows, meta)

    def _begin(self, rows: Rows, meta: Meta) -> Iterator[Decision]:
        progress = self._progress(rows, meta)
        yield from progress.begin(progress.run.initial_node)

    def cancel(self, command: wire.CancelRun, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run = _run(rows, meta)
        if run.status == "cancelled":
            return
        if run.status in RUN_ENDED:
            raise Rejected("run_ended", f"the run is {run.status}")
        if run.status in ("failing", "compensating") and not command.force:
            raise Rejected("run_unwinding", f"the run is {run.status}; force cancels it all the same")
        if run.status == "cancelling" and not command.force:
            return
        progress = self._progress(rows, meta)
        yield wire.RunCancelling(compensate=command.compensate)
        yield from progress.withdraw(force=command.force)
        yield from progress.unwind()

    def pause(self, command: wire.PauseRun, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run = _run(rows, meta)
        _refuse_own(run)
        if run.status in RUN_ENDED:
            raise Rejected("run_ended", f"the run is {run.status}")
        if not run.paused:
            yield from self._pause("self", run, rows, meta)

    def resume(self, command: wire.ResumeRun, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run = _run(rows, meta)
        if run.status in RUN_ENDED:
            raise Rejected("run_ended", f"the run is {run.status}")
        if run.paused:
            yield from self._unpause("self", rows, meta)

    def pause_child(self, command: wire.PauseChild, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run = rows.get(Run, meta.aggregate_id)
        if run is not None and run.status not in RUN_ENDED and not run.parent_paused:
            yield from self._pause("parent", run, rows, meta)

    def resume_child(self, command: wire.ResumeChild, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run = rows.get(Run, meta.aggregate_id)
        if run is not None and run.status not in RUN_ENDED and run.parent_paused:
            yield from self._unpause("parent", rows, meta)

    def _pause(self, by: wire.PausedBy, run: Run, rows: Rows, meta: Meta) -> Iterator[Decision]:
        yield wire.RunPaused(by=by)
        if not run.is_held:
            yield from self._progress(rows, meta).halt(children=True)

    def _unpause(self, by: wire.PausedBy, rows: Rows, meta: Meta) -> Iterator[Decision]:
        yield wire.RunResumed(by=by)
        progress = self._progress(rows, meta)
        if not progress.run.is_held:
            yield from progress.unhalt()

    def execute_run(self, command: wire.ExecuteRun, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run = _run(rows, meta)
        _refuse_paused(run)
        if run.status in GOING and run.mode == "manual":
            yield wire.StepsAllowed(allowance=command.max_steps)
            yield from self._progress(rows, meta).advance()

    def execute_node(self, command: wire.ExecuteNode, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run, row = _node_run(rows, meta, command.node_run_id)
        if row.status in NODE_ENDED:
            raise Rejected("node_run_ended", f"the node run is {row.status}")
        _refuse_paused(run)
        if run.mode == "manual" and (row.ready or row.status == "running"):
            raise Rejected("node_run_taken", "somebody executes this node run already")
        if row.status == "queued" and not row.ready and run.mode == "manual":
            progress = self._progress(rows, meta)
            yield from progress.execute(row)
            yield from progress.advance()

    def set_run_status(self, command: wire.SetRunStatus, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run = _run(rows, meta)
        if command.status != "cancelled":
            _refuse_own(run)
        if run.status == command.status:
            return
        if run.status in RUN_ENDED:
            raise Rejected("run_ended", f"the run is {run.status}")
        if run.status in RUN_UNWINDING:
            raise Rejected("run_unwinding", f"the run is {run.status}")
        progress = self._progress(rows, meta)
        match command.status:
            case "cancelled":
                yield wire.RunCancelling()
                yield from progress.withdraw()
                yield from progress.unwind()
            case "failed":
                error = Failure(code=command.error_code or by_hand.DEFAULT_CODE, message=command.error_message or "")
                yield from progress.fail_run(error, None, compensable=False)
            case "completed":
                if any(row.leased_by is not None for row in rows.live(NodeRun)):
                    raise Rejected("steps_in_flight", "steps of this run are being executed")
                yield from progress.end_now()
            case "running":
                raise Rejected("run_waits", "a run that waits runs again when what it waits for comes")

    def set_node_status(self, command: wire.SetNodeStatus, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run, row = _node_run(rows, meta, command.node_run_id)
        _refuse_own(run)
        if row.status in NODE_ENDED:
            by_hand.refuse_other_result(command, row)
            return
        progress = self._progress(rows, meta)
        by_hand.refuse_other_holder(command, row)
        report = {"worker": command.worker_key, "started_at": row.started_at}
        match command.status:
            case "running":
                if row.leased_by is None:
                    _refuse_paused(run)
                node, _ = progress.place(row)
                yield from by_hand.claim(command, run, row, node, progress.input_of(row), meta.at)
                return
            case "completed":
                output = command.output or {}
                _refuse_large(output)
                yield from progress.completed(row, output, command.output_text, report=report)
            case "failed":
                _refuse_large(command.output or {})
                error = NodeError(
                    command.error_code or by_hand.DEFAULT_CODE, command.error_message or "", retryable=False
                )
                yield from progress.failed(row, error, output=command.output, text=command.output_text, report=report)
            case "skipped":
                yield from progress.skipped(row)
        if command.status != "skipped":
            yield from progress.abandon(row)
        yield from progress.go_on()

    # --- from steps, timers and the sweeper ------------------------------------------------------------------

    def complete(self, command: wire.CompleteNode, rows: Rows, meta: Meta) -> Iterator[Decision]:
        row = self._held(rows, command.node_run_id, command.lease_token)
        if row is None:
            return
        progress = self._progress(rows, meta)
        yield from progress.completed(row, command.output, command.output_text, report=_report(command))
        yield from progress.go_on()

    def fail(self, command: wire.FailNode, rows: Rows, meta: Meta) -> Iterator[Decision]:
        row = self._held(rows, command.node_run_id, command.lease_token)
        if row is None:
            return
        progress = self._progress(rows, meta)
        error = NodeError(command.error.code, command.error.message, retryable=command.retryable)
        yield from progress.failed(row, error, output=command.output, text=command.output_text, report=_report(command))
        yield from progress.go_on()

    def expire(self, command: wire.ExpireLease, rows: Rows, meta: Meta) -> Iterator[Decision]:
        row = rows.get(NodeRun, command.node_run_id)
        if row is None or row.leased_by is None or row.lease_until > meta.at:
            return
        claimed = by_hand.is_held_by_hand(row)
        if not claimed and self._held(rows, row.id, command.lease_token) is None:
            return
        if claimed and row.lease_token != command.lease_token:
            return
        progress = self._progress(rows, meta)
        run = progress.run
        lost = NodeError("lease_lost", f"{row.requeues + 1} executors were lost with it", retryable=False)
        report = {"started_at": row.started_at, "worker": row.leased_by}
        unwinding = run.status in RUN_UNWINDING and "/" not in row.path
        if row.deadline_at and row.deadline_at <= meta.at:
            timeout = NodeError("timeout", f"no answer within {row.timeout_seconds} s")
            yield from progress.failed(row, timeout, report=report)
        elif unwinding or row.requeues + 1 >= REQUEUES_MAX:
            yield from progress.failed(row, lost, report=report)
        else:
            yield wire.StepRequeued(node_run_id=row.id, lease_token=row.lease_token + 1, requeues=row.requeues + 1)
            yield from progress.requeued(cast(NodeRun, rows.get(NodeRun, row.id)))
            if not claimed:
                return
        yield from progress.go_on()

    def resume_node(self, command: wire.ResumeNode, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run = rows.get(Run, meta.aggregate_id)
        row = rows.get(NodeRun, command.node_run_id)
        if run is None or row is None or row.status != "pending":
            return
        if row.wait_id != command.wait_id:
            return
        progress = self._progress(rows, meta)
        if row.wait_on != "timer":
            yield from progress.answered(row, command)
        elif run.status in GOING or "/" in row.path:
            yield from progress.due(row)
        yield from progress.go_on()

    def go_on(self, command: wire.ContinueRun, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run = rows.get(Run, meta.aggregate_id)
        if run is None or run.status in RUN_ENDED:
            return
        progress = self._progress(rows, meta)
        if run.is_held:
            yield from progress.halt(children=False)
        else:
            yield from progress.continued()

    def fail_run(self, command: wire.FailRun, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run = rows.get(Run, meta.aggregate_id)
        if run is None or run.status in RUN_ENDED:
            return
        if run.status not in RUN_UNWINDING:
            yield wire.RunFailing(error=command.error)
        yield from self._progress(rows, meta).cut()
        yield from ended(run, wire.RunFailed(error=command.error))

    # --- shared ----------------------------------------------------------------------------------------------

    def _progress(self, rows: Rows, meta: Meta) -> Progress:
        run = cast(Run, rows.get(Run, meta.aggregate_id))
        program = self.programs.known(run.workflow_version_id)
        if program is None:
            program = self.programs.of(cast(Version, rows.fact(Version, run.workflow_version_id)))
        plan = plan_of(cast(wire.RunKind, run.kind), rows, program, run.id)
        return Progress(rows, plan, run.id, meta, self._available, self.share)

    def _available(self, node: Node) -> bool:
        return node.kind == "effect" and node.config.step_kind in self.step_kinds

    def _held(self, rows: Rows, node_run_id: str, token: int) -> NodeRun | None:
        """The node run, if the token is that of its latest lease."""
        row = rows.get(NodeRun, node_run_id)
        if row is None or row.status != "queued" or not row.ready:
            return None
        return row if row.lease_token == token or not self.check_tokens else None


def resume_human(command: wire.ResumeHuman, rows: Rows, meta: Meta) -> Iterator[Decision]:
    """The task's end resumes the node run; this only says whether it does, or has."""
    _, row = _node_run(rows, meta, command.node_run_id)
    if row.wait_on != "task" or row.wait_id != command.human_task_id:
        raise Rejected("task_not_awaited", "the node run does not wait for this human task")
    if row.status in NODE_ENDED:
        return
    task = rows.fact(HumanTask, command.human_task_id)
    if task is None or not task.ended_at:
        raise Rejected("task_open", "the human task has not ended")
    yield from ()


def answer(command: Command, rows: Rows, meta: Meta) -> Mapping[str, Any]:
    """What a sender from outside is told: the run or the node run as it is now."""
    if isinstance(command, wire.SetNodeStatus | wire.ExecuteNode | wire.ResumeHuman):
        row = rows.get(NodeRun, command.node_run_id)
        return node_run_view(row) if row else {}
    run = rows.get(Run, meta.aggregate_id)
    return run_view(run) if run else {}


def failed(command: Command, code: str, detail: str) -> Command | None:
    """What tells a run that one of its internal commands is a dead letter."""
    if isinstance(command, wire.FailRun) or not isinstance(command, wire.RunCommand):
        return None
    return wire.FailRun(run_id=command.run_id, error=Failure(code=code, message=f"{command.type}: {detail}"[:2_000]))


def _run(rows: Rows, meta: Meta) -> Run:
    run = rows.get(Run, meta.aggregate_id)
    if run is None:
        raise Rejected("run_not_found", "there is no such run", status=404)
    return run


def _refuse_own(run: Run) -> None:
    """What the platform does for itself nobody outside answers for; it may be cancelled."""
    if run.kind == "single":
        raise Rejected("run_of_platform", "the platform's own runs go on by themselves")


def _refuse_paused(run: Run) -> None:
    if run.is_held and run.status not in RUN_ENDED:
        raise Rejected("run_paused", "the run is paused: nothing of it starts")


def _node_run(rows: Rows, meta: Meta, node_run_id: str) -> tuple[Run, NodeRun]:
    """A node run of a run that goes on, or one that has ended itself."""
    run = _run(rows, meta)
    row = rows.get(NodeRun, node_run_id)
    if row is None or row.run_id != run.id:
        raise Rejected("node_run_not_found", "there is no such node run", status=404)
    if run.status in RUN_ENDED and row.status not in NODE_ENDED:
        raise Rejected("run_ended", f"the run is {run.status}")
    return run, row


def answered(answer_to: AnswerTo, answer: Answer) -> Command:
    """What tells a node run that what it awaits has ended: its task or its child run, or that there never was one.

    A task or a run that ends badly has a result as well; what is refused has none.
    """
    known: JsonObject = answer.result or {}
    names = {"run_id": answer_to.aggregate_id, "node_run_id": answer_to.subject, "wait_id": answer_to.wait_id}
    if answer.failed:
        error = Failure(code=answer.code, message=answer.detail[:2_000])
        retryable = known.get("retryable", False)
        return wire.ResumeNode(**names, error=error, retryable=retryable, refused=answer.result is None)
    return wire.ResumeNode(
        **names, output=known["output"], output_text=known.get("output_text"), route=known.get("route")
    )


def _report(command: wire.CompleteNode | wire.FailNode) -> JsonObject:
    return {"started_at": command.started_at, "ended_at": command.ended_at, "worker": command.worker}


def _refuse_large(output: JsonObject) -> None:
    try:
        check_size(output)
    except NodeError as error:
        raise Rejected(error.code, error.message, status=422) from None
