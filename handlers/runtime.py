"""Runs: create one, let it go on, take in what its steps answer, cancel it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from handlers.runs import by_hand
from handlers.runs.evaluate import NodeError, check_size, input_problems, with_defaults
from handlers.runs.programs import Programs
from handlers.runs.progress import GOING, NODES_PER_MESSAGE_MAX, UNWINDING, Progress, ended
from projections.catalog import Definition, Version
from projections.runtime import TABLES, NodeRun, Run
from projections.runtime_fold import evolve
from projections.runtime_views import node_run_view, run_view
from schemas import runtime as wire
from schemas.decider import Decision, Domain, Key, Meta, Rows
from schemas.messages import Command, JsonObject, Rejected
from schemas.problems import summary
from schemas.runtime import NODE_ENDED, RUN_ENDED, Failure
from schemas.workflow.graph import Node
from schemas.workflow.node_types import Start, canonical_type

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
            wire.CancelRun: self.cancel,
            wire.ExecuteRun: self.execute_run,
            wire.ExecuteNode: self.execute_node,
            wire.SetRunStatus: self.set_run_status,
            wire.SetNodeStatus: self.set_node_status,
            wire.CompleteNode: self.complete,
            wire.FailNode: self.fail,
            wire.ExpireLease: self.expire,
            wire.WakeNode: self.wake,
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
            facts={wire.CreateRun: _facts},
            ended=lambda run: run.status in RUN_ENDED,
        )

    # --- from outside ----------------------------------------------------------------------------------------

    def create(self, command: wire.CreateRun, rows: Rows, meta: Meta) -> Iterator[Decision]:
        if rows.get(Run, meta.aggregate_id) is not None:
            raise Rejected("run_exists", f"run {meta.aggregate_id} exists already")
        version = _version(command, rows, meta)
        program = self.programs.of(version)
        initial = command.initial_node
        begun = program.starts
        if initial is not None:
            _check_initial(initial, program.by_id, program.nodes)
            begun = (program.by_id[initial.node_id],)
        configs = (program.nodes[index].config for index in begun)
        starts = [config for config in configs if isinstance(config, Start)]
        problems = input_problems(starts, command.inputs)
        if problems:
            raise Rejected("invalid_inputs", summary(problems), status=422, errors=tuple(problems))
        yield wire.RunCreated(
            workflow_id=version.definition_id,
            workflow_version_id=version.id,
            app_id=command.app_id,
            app_version_id=command.app_version_id,
            session_id=command.session_id,
            inputs=with_defaults(starts, command.inputs),
            mode=command.mode,
            initial_node=initial.node_id if initial else None,
        )
        yield from self._progress(rows, meta).begin(initial.node_id if initial else None)

    def start_single(self, command: wire.StartSingle, rows: Rows, meta: Meta) -> Iterator[Decision]:
        if rows.get(Run, meta.aggregate_id) is not None:
            return  # A repeat: whoever awaits it is told by the run that is there.
        yield wire.RunCreated(
            workflow_id=wire.PLATFORM_WORKFLOW_ID,
            workflow_version_id=wire.PLATFORM_VERSION_ID,
            inputs=command.inputs,
            initial_node=command.step,
            kind="single",
            origin=wire.Origin(answer_to=meta.answer_to) if meta.answer_to else None,
        )
        yield from self._progress(rows, meta).begin(command.step)

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
        yield from progress.withdraw()
        if command.force:
            yield from progress.withdraw_claimed()
        yield from progress.unwind()

    def execute_run(self, command: wire.ExecuteRun, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run = _run(rows, meta)
        if run.status in GOING and run.mode == "manual":
            yield wire.StepsAllowed(allowance=command.max_steps)
            yield from self._progress(rows, meta).advance()

    def execute_node(self, command: wire.ExecuteNode, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run, row = _node_run(rows, meta, command.node_run_id)
        if row.status in NODE_ENDED:
            raise Rejected("node_run_ended", f"the node run is {row.status}")
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
        if run.status in UNWINDING:
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
                yield from progress.withdraw()
                yield from ended(run, wire.RunCompleted(output=progress.output(), output_text=run.output_text))
            case "running":
                raise Rejected("run_waits", "a run that waits runs again when what it waits for comes")

    def set_node_status(self, command: wire.SetNodeStatus, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run, row = _node_run(rows, meta, command.node_run_id)
        _refuse_own(run)
        if row.status in NODE_ENDED:
            by_hand.refuse_other_result(command, row)
            return
        progress = self._progress(rows, meta)
        node, iteration = progress.place(row)
        by_hand.refuse_other_holder(command, row)
        report = {"worker": command.worker_key, "started_at": row.started_at}
        match command.status:
            case "running":
                yield from by_hand.claim(command, run, row, node, progress.input_of(row), meta.at)
                return
            case "completed":
                output = command.output or {}
                _refuse_large(output)
                yield from progress.completed(node, iteration, row, output, command.output_text, report=report)
            case "failed":
                _refuse_large(command.output or {})
                error = NodeError(
                    command.error_code or by_hand.DEFAULT_CODE, command.error_message or "", retryable=False
                )
                yield from progress.failed(
                    node, iteration, row, error, output=command.output, text=command.output_text, report=report
                )
            case "skipped":
                yield from progress.skipped(row)
        yield from self._after(progress)

    # --- from steps, timers and the sweeper ------------------------------------------------------------------

    def complete(self, command: wire.CompleteNode, rows: Rows, meta: Meta) -> Iterator[Decision]:
        row = self._held(rows, command.node_run_id, command.lease_token)
        if row is None:
            return
        progress = self._progress(rows, meta)
        node, iteration = progress.place(row)
        report = _report(command)
        try:
            check_size(command.output)
        except NodeError as error:
            yield from progress.failed(node, iteration, row, error, report=report)
        else:
            yield from progress.completed(node, iteration, row, command.output, command.output_text, report=report)
        yield from self._after(progress)

    def fail(self, command: wire.FailNode, rows: Rows, meta: Meta) -> Iterator[Decision]:
        row = self._held(rows, command.node_run_id, command.lease_token)
        if row is None:
            return
        progress = self._progress(rows, meta)
        node, iteration = progress.place(row)
        error = NodeError(command.error.code, command.error.message, retryable=command.retryable)
        yield from progress.failed(
            node, iteration, row, error, output=command.output, text=command.output_text, report=_report(command)
        )
        yield from self._after(progress)

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
        node, iteration = progress.place(row)
        unwinding = run.status in UNWINDING and "/" not in row.path
        if row.deadline_at and row.deadline_at <= meta.at:
            timeout = NodeError("timeout", f"no answer within {row.timeout_seconds} s")
            yield from progress.failed(node, iteration, row, timeout, report=report)
        elif unwinding or row.requeues + 1 >= REQUEUES_MAX:
            yield from progress.failed(node, iteration, row, lost, report=report)
        else:
            yield wire.StepRequeued(node_run_id=row.id, lease_token=row.lease_token + 1, requeues=row.requeues + 1)
            if not claimed:
                return
            yield from progress.released(row.id)
        yield from self._after(progress)

    def wake(self, command: wire.WakeNode, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run = rows.get(Run, meta.aggregate_id)
        row = rows.get(NodeRun, command.node_run_id)
        if run is None or row is None or row.status != "pending" or row.attempt != command.attempt:
            return
        progress = self._progress(rows, meta)
        if run.status in GOING or "/" in row.path:
            yield from progress.due(row)
            yield from self._after(progress)

    def go_on(self, command: wire.ContinueRun, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run = rows.get(Run, meta.aggregate_id)
        if run is None or run.status in RUN_ENDED:
            return
        progress = self._progress(rows, meta)
        if run.status in UNWINDING:
            yield from progress.unwind()
        else:
            yield from progress.resume_queued()

    def fail_run(self, command: wire.FailRun, rows: Rows, meta: Meta) -> Iterator[Decision]:
        run = rows.get(Run, meta.aggregate_id)
        if run is None or run.status in RUN_ENDED:
            return
        if run.status not in UNWINDING:
            yield wire.RunFailing(error=command.error)
        for row in sorted(rows.live(NodeRun), key=lambda row: row.seq):
            yield wire.NodeCancelled(node_run_id=row.id)
        yield from ended(run, wire.RunFailed(error=command.error))

    # --- shared ----------------------------------------------------------------------------------------------

    def _progress(self, rows: Rows, meta: Meta) -> Progress:
        run = cast(Run, rows.get(Run, meta.aggregate_id))
        program = self.programs.known(run.workflow_version_id)
        if program is None:
            program = self.programs.of(cast(Version, rows.fact(Version, run.workflow_version_id)))
        return Progress(rows, program, meta.aggregate_id, meta, self._available, self.share)

    def _available(self, node: Node) -> bool:
        return node.kind == "effect" and node.config.step_kind in self.step_kinds

    def _held(self, rows: Rows, node_run_id: str, token: int) -> NodeRun | None:
        """The node run, if the token is that of its latest lease."""
        row = rows.get(NodeRun, node_run_id)
        if row is None or row.status != "queued" or not row.ready:
            return None
        return row if row.lease_token == token or not self.check_tokens else None

    def _after(self, progress: Progress) -> Iterator[Decision]:
        status = progress.run.status
        if status in GOING:
            yield from progress.advance()
        elif status in UNWINDING:
            yield from progress.unwind()


def answer(command: Command, rows: Rows, meta: Meta) -> Mapping[str, Any]:
    """What a sender from outside is told: the run or the node run as it is now."""
    if isinstance(command, wire.SetNodeStatus | wire.ExecuteNode):
        row = rows.get(NodeRun, command.node_run_id)
        return node_run_view(row) if row else {}
    run = rows.get(Run, meta.aggregate_id)
    return run_view(run) if run else {}


def failed(command: Command, code: str, detail: str) -> Command | None:
    """What tells a run that one of its internal commands is a dead letter."""
    if isinstance(command, wire.FailRun) or not isinstance(command, wire.RunCommand):
        return None
    return wire.FailRun(run_id=command.run_id, error=Failure(code=code, message=f"{command.type}: {detail}"[:2_000]))


def _facts(command: wire.CreateRun) -> list[Key]:
    """The workflow whose latest version is wanted; a version by its id is in memory mostly."""
    latest = command.workflow_version_id is None and command.workflow_id is not None
    return [(Definition, cast(str, command.workflow_id))] if latest else []


def _version(command: wire.CreateRun, rows: Rows, meta: Meta) -> Version:
    """The version to run. "Latest" is resolved here, once; the event records what it was."""
    version_id = command.workflow_version_id
    if version_id is None:
        if command.workflow_id is None:
            raise _invalid("/workflow_version_id", "workflow_id or workflow_version_id is required")
        head = rows.fact(Definition, command.workflow_id)
        if head is None or head.kind != "workflow":
            raise _invalid("/workflow_id", "there is no such workflow")
        if head.latest_published is None:
            raise Rejected("no_published_version", f"workflow {head.code!r} has no published version")
        version_id = head.latest_published
    version = rows.fact(Version, version_id)
    if version is None or version.kind != "workflow":
        raise _invalid("/workflow_version_id", "there is no such workflow version")
    if command.workflow_id not in (None, version.definition_id):
        raise _invalid("/workflow_id", "the version belongs to another workflow")
    return version


def _check_initial(initial: wire.InitialNode, by_id: Mapping[str, int], nodes: tuple[Node, ...]) -> None:
    index = by_id.get(initial.node_id)
    if index is None:
        raise _invalid("/initial_node/node_id", "the workflow has no such node")
    if nodes[index].is_compensation_only:
        raise _invalid("/initial_node/node_id", "a compensation cannot be the first node")
    if initial.node_type is not None and canonical_type(initial.node_type) != nodes[index].type:
        raise _invalid("/initial_node/node_type", f"the node is of type {nodes[index].type}")


def _invalid(pointer: str, detail: str) -> Rejected:
    return Rejected(
        "invalid_request",
        detail,
        status=422,
        errors=({"pointer": pointer, "code": "invalid", "detail": detail},),
    )


def _run(rows: Rows, meta: Meta) -> Run:
    run = rows.get(Run, meta.aggregate_id)
    if run is None:
        raise Rejected("run_not_found", "there is no such run", status=404)
    return run


def _refuse_own(run: Run) -> None:
    """What the platform does for itself nobody outside answers for; it may be cancelled."""
    if run.kind == "single":
        raise Rejected("run_of_platform", "the platform's own runs go on by themselves")


def _node_run(rows: Rows, meta: Meta, node_run_id: str) -> tuple[Run, NodeRun]:
    """A node run of a run that goes on, or one that has ended itself."""
    run = _run(rows, meta)
    row = rows.get(NodeRun, node_run_id)
    if row is None or row.run_id != run.id:
        raise Rejected("node_run_not_found", "there is no such node run", status=404)
    if run.status in RUN_ENDED and row.status not in NODE_ENDED:
        raise Rejected("run_ended", f"the run is {run.status}")
    return run, row


def _report(command: wire.CompleteNode | wire.FailNode) -> JsonObject:
    return {"started_at": command.started_at, "ended_at": command.ended_at, "worker": command.worker}


def _refuse_large(output: JsonObject) -> None:
    try:
        check_size(output)
    except NodeError as error:
        raise Rejected(error.code, error.message, status=422) from None
