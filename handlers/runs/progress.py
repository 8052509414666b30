"""How a run goes on: starts what is enabled, pauses, ends, unwinds what failed; pure, one decision long."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import assert_never, cast

import orjson

from handlers.runs.attempts import GOING, Attempt, Attempts, Ending
from handlers.runs.by_hand import is_held_by_hand
from handlers.runs.edges import Enabled
from handlers.runs.evaluate import NodeError, check_size
from handlers.runs.plan import Place, Plan
from projections.runtime import NodeRun, Run
from schemas import runtime as wire
from schemas.decider import Answer, Decision, Meta, Reply, Rows
from schemas.messages import JsonObject
from schemas.runtime import RUN_UNWINDING, VALUE_BYTES_MAX, Failure, node_run_id
from schemas.workflow.graph import Node

NODES_PER_MESSAGE_MAX = 256

Ended = wire.RunCompleted | wire.RunFailed | wire.RunCancelled | wire.RunCompensated


def ended(run: Run, event: Ended) -> Iterator[Decision]:
    """A run ends; whoever awaits it is told how. What has failed may be tried again, what was cancelled not."""
    yield event
    answer_to = (run.origin or {}).get("answer_to")
    if not answer_to:
        return
    match event:
        case wire.RunCompleted():
            yield Reply(answer_to, Answer({"output": event.output, "output_text": event.output_text}))
        case wire.RunCancelled():
            yield Reply(answer_to, Answer({"retryable": False}, "run_cancelled", "it was cancelled"))
        case wire.RunFailed() | wire.RunCompensated():
            yield Reply(answer_to, Answer({"retryable": True}, event.error.code, event.error.message))
        case _:
            assert_never(event)


class Progress:
    """One decision about one run. Every generator here yields decisions; what it reads next is the state after.

    `share`: so many nodes it may begin; a follow-up goes on with the rest.
    """

    def __init__(
        self,
        rows: Rows,
        plan: Plan,
        run_id: str,
        meta: Meta,
        available: Callable[[Node], bool],
        share: int,
    ) -> None:
        self._rows = rows
        self._plan = plan
        self._run_id = run_id
        self._meta = meta
        self._share = share
        self._queue: deque[Enabled] = deque()
        self._attempts = Attempts(rows, plan, run_id, meta, available, self._queue)

    @property
    def run(self) -> Run:
        return self._plan.run

    @property
    def _is_spent(self) -> bool:
        """Whether this message has begun its share of nodes."""
        return self._attempts.begun >= self._share

    # --- going on --------------------------------------------------------------------------------------------

    def begin(self, initial_node: str | None) -> Iterator[Decision]:
        """Start a fresh run."""
        self._queue.extend(self._plan.first(initial_node))
        yield from self.advance()

    def go_on(self) -> Iterator[Decision]:
        """What follows whatever has just happened."""
        if self.run.status in GOING:
            yield from self.advance()
        elif self.run.status in RUN_UNWINDING:
            yield from self.unwind()

    def advance(self) -> Iterator[Decision]:
        """Begin what is enabled until nothing is, then see whether the run has ended."""
        while enabled := self._next():
            if self.run.status not in GOING:
                self._queue.clear()
                break
            if (self._is_spent or self.run.is_held) and enabled.why == "run" and not enabled.delay:
                yield self._attempts.scheduled(enabled.place)
            else:
                yield from self._begin(enabled)
        if self.run.mode == "manual":
            yield from self._step_on()
        elif self._is_spent and self.run.status in GOING and not self.run.is_held:
            yield wire.ContinueRun(run_id=self._run_id)
        yield from self._end_if_done()

    def resume_queued(self) -> Iterator[Decision]:
        """Go on with what an earlier message's share, or a pause, left queued, in its order."""
        queued = [node for node in self._rows.live(NodeRun) if node.status == "queued" and not node.ready]
        for row in sorted(queued, key=lambda node: node.seq):
            if self._is_spent or self.run.status not in GOING:
                break
            row = cast(NodeRun, self._rows.get(NodeRun, row.id))
            if row.status == "queued":  # An early join before it may have cancelled it.
                yield from self.execute(row)
        yield from self.advance()

    def execute(self, row: NodeRun) -> Iterator[Decision]:
        """Run a node run that exists and is not ready."""
        yield from self._follow(self._attempts.run(self._plan.place(row), row))

    def _next(self) -> Enabled | None:
        """What is enabled next; an early join may have skipped it meanwhile, or have it skipped now."""
        while self._queue:
            enabled = self._plan.in_time(self._queue.popleft())
            if enabled is not None:
                return enabled
        return None

    def _begin(self, enabled: Enabled) -> Iterator[Decision]:
        place = enabled.place
        if enabled.why == "skip":
            self._share -= 1
            yield self._attempts.skip(place)
        elif enabled.why != "run":
            message = {
                "max_iterations_exceeded": "the loop wanted more iterations than max_iterations",
                "join_unreachable": "fewer edges than n can still be taken",
            }[enabled.why]
            error = NodeError(enabled.why, message, retryable=False)
            leaving = enabled.why == "max_iterations_exceeded"
            yield from self._follow(self._attempts.failed(place, None, error, leaving=leaving))
        elif enabled.delay:
            yield from self._attempts.delayed(place)
        elif self.run.mode == "manual":
            yield self._attempts.scheduled(place)
        else:
            yield from self._follow(self._attempts.run(place, None))

    def _follow(self, attempt: Attempt) -> Iterator[Decision]:
        """Take an attempt further, and draw what its end means for the run."""
        ending: Ending | None = yield from attempt
        if ending is None:
            return
        if ending.passed_early:
            yield from self._drop_superfluous()
        if ending.failure is not None:
            yield from self.fail_run(ending.failure, ending.node_run_id, compensable=ending.compensable)

    def _drop_superfluous(self) -> Iterator[Decision]:
        for each in self._plan.superfluous(tuple(self._queue)):
            if isinstance(each, NodeRun):
                yield from self._attempts.superfluous(each)
            else:
                yield self._attempts.skip(each)

    def _end_if_done(self) -> Iterator[Decision]:
        run = self.run
        if run.status not in GOING or run.active or run.pending or self._queue:
            return
        output = self._plan.output()
        size = len(orjson.dumps(output))
        if size > VALUE_BYTES_MAX:
            error = Failure(code="output_too_large", message=f"{size} bytes of output, at most {VALUE_BYTES_MAX}")
            yield from self.fail_run(error, None, compensable=False)
        else:
            yield from ended(run, wire.RunCompleted(output=output, output_text=run.output_text))

    # --- what is said of a node run --------------------------------------------------------------------------

    def place(self, row: NodeRun) -> Place:
        return self._plan.place(row)

    def input_of(self, row: NodeRun) -> JsonObject | None:
        return self._attempts.input_of(row)

    def completed(
        self,
        row: NodeRun,
        output: JsonObject,
        text: str | None = None,
        *,
        route: str | None = None,
        report: JsonObject | None = None,
    ) -> Iterator[Decision]:
        """Its result has come; one that is too large is a failure."""
        try:
            check_size(output)
        except NodeError as error:
            yield from self.failed(row, error, report=report)
            return
        attempt = self._attempts.completed(self.place(row), row, output, text, route=route, report=report)
        yield from self._follow(attempt)

    def failed(
        self,
        row: NodeRun,
        error: NodeError,
        *,
        output: JsonObject | None = None,
        text: str | None = None,
        report: JsonObject | None = None,
    ) -> Iterator[Decision]:
        """Its attempt has come to nothing."""
        attempt = self._attempts.failed(self.place(row), row, error, output=output, text=text, report=report)
        yield from self._follow(attempt)

    def skipped(self, row: NodeRun) -> Iterator[Decision]:
        yield from self._attempts.skipped(row)

    def abandon(self, row: NodeRun) -> Iterator[Decision]:
        """It has a result: nobody needs what it waited for."""
        yield from self._attempts.abandon(row)

    def due(self, row: NodeRun) -> Iterator[Decision]:
        """Its time has come."""
        yield from self._follow(self._attempts.due(row))

    def answered(self, row: NodeRun, answer: wire.ResumeNode) -> Iterator[Decision]:
        """What it waited for has come to an end, or has not in time."""
        if answer.timed_out:
            yield from self._attempts.abandon(row, compensate=True)
        if answer.error is None:
            yield from self.completed(row, answer.output or {}, answer.output_text, route=answer.route)
            return
        child = row.wait_id if row.wait_on == "run" else None
        message = f"run {child}: {answer.error.message}" if child else answer.error.message
        retryable, refused = answer.retryable, answer.refused
        error = NodeError(answer.error.code, message, retryable=retryable, run_id=child, refused=refused)
        yield from self.failed(row, error, output=answer.output, text=answer.output_text)

    def requeued(self, row: NodeRun) -> Iterator[Decision]:
        """Its lease ran out, and it goes on where it was when it was claimed. `row`: as it is now."""
        if row.status == "pending" and row.due_at > self._meta.at:
            yield from self._attempts.again_due(row)
        elif row.status == "pending":
            yield from self.due(row)
        elif self.run.is_held:
            if row.ready:
                yield wire.NodeQueued(node_run_id=row.id, attempt=row.attempt)
        elif not row.ready and (self.run.mode == "auto" or "/" in row.path):
            yield from self.execute(row)

    # --- pause -----------------------------------------------------------------------------------------------

    def halt(self, *, children: bool) -> Iterator[Decision]:
        """Nothing starts any more: what may be claimed is taken back. `children`: pause those it waits for."""
        rows = sorted(self._rows.live(NodeRun), key=lambda row: row.seq)
        if children:
            for row in rows:
                if is_waiting_for_run(row):
                    yield wire.PauseChild(run_id=cast(str, row.wait_id))
        claimable = [row for row in rows if row.ready and row.status == "queued" and row.leased_by is None]
        for row in claimable[: self._share]:
            yield wire.NodeQueued(node_run_id=row.id, attempt=row.attempt)
        if len(claimable) > self._share:
            yield wire.ContinueRun(run_id=self._run_id)

    def unhalt(self) -> Iterator[Decision]:
        """The pause is over: children go on, and what was queued meanwhile."""
        for row in sorted(self._rows.live(NodeRun), key=lambda row: row.seq):
            if is_waiting_for_run(row):
                yield wire.ResumeChild(run_id=cast(str, row.wait_id))
        yield from self.continued()

    def continued(self) -> Iterator[Decision]:
        """Go on with what is queued, as a run of this mode and status does."""
        if self.run.status in RUN_UNWINDING:
            queued = [row for row in self._rows.live(NodeRun) if row.status == "queued" and not row.ready]
            for row in sorted((row for row in queued if "/" in row.path), key=lambda row: row.seq):
                yield from self.execute(row)
            yield from self.unwind()
        elif self.run.mode == "auto":
            yield from self.resume_queued()
        else:
            yield from self.advance()

    # --- ends of runs ----------------------------------------------------------------------------------------

    def fail_run(self, error: Failure, node_run_id: str | None, *, compensable: bool) -> Iterator[Decision]:
        """A failure nobody handled: withdraw what has not begun, wait for the rest, then compensate."""
        self._queue.clear()
        yield wire.RunFailing(error=error, node_run_id=node_run_id, compensable=compensable)
        yield from self.withdraw()
        yield from self.unwind()

    def withdraw(self, *, force: bool = False) -> Iterator[Decision]:
        """Cancel every node run that nobody executes right now, but no compensation that is still wanted.

        A child run is told to end, and awaited like an executor. `force`: neither children nor external workers are
        awaited; what they answer does not count any more.
        """
        for row in sorted(self._rows.live(NodeRun), key=lambda row: row.seq):
            if "/" in row.path and self.run.compensates:
                continue
            if is_waiting_for_run(row) and not force:
                yield self._attempts.cancel_child(row)
            elif row.leased_by is None or (force and is_held_by_hand(row)):
                yield from self._attempts.cancelled(row, force=force)

    def cut(self) -> Iterator[Decision]:
        """Cancel every node run, whoever executes it and whatever it waits for."""
        for row in sorted(self._rows.live(NodeRun), key=lambda row: row.seq):
            yield from self._attempts.cancelled(row, force=True)

    def unwind(self) -> Iterator[Decision]:
        """Start the next compensation once nothing is in flight; end the run after the last one."""
        while self.run.active == 0 and self.run.pending == 0:
            run = self.run
            of = run.compensate_first or run.lost or run.compensable
            if of is None or not run.compensates:
                yield from ended(run, _unwound(run))
                return
            if run.is_held:
                return
            if self._is_spent:
                yield wire.ContinueRun(run_id=self._run_id)
                return
            yield from self._compensate(cast(NodeRun, self._rows.get(NodeRun, of)))

    def _compensate(self, of: NodeRun) -> Iterator[Decision]:
        node = self._plan.compensation_of(of)
        path = f"{of.node_id}/{node.id}"
        id = node_run_id(self._run_id, path, of.iteration)
        yield wire.RunCompensating(of=of.id, node_run_id=id)
        yield wire.NodeScheduled(
            node_run_id=id, node_id=node.id, path=path, iteration=of.iteration, node_type=node.type
        )
        row = cast(NodeRun, self._rows.get(NodeRun, id))
        if node.config.delay_seconds:
            yield from self._attempts.delayed(self._plan.place(row), row)
        else:
            yield from self.execute(row)

    def end_now(self) -> Iterator[Decision]:
        """Somebody says that the run is completed: what it has come to so far is its output."""
        yield from self.withdraw(force=True)
        yield from ended(self.run, wire.RunCompleted(output=self._plan.output(), output_text=self.run.output_text))

    # --- manual runs -----------------------------------------------------------------------------------------

    def _step_on(self) -> Iterator[Decision]:
        """A manual run takes its next step if it may and nothing is being executed."""
        while self.run.status in GOING and self.run.allowance > 0 and not self._queue and not self.run.is_held:
            live = self._rows.live(NodeRun)
            if any(row.ready or row.status == "running" for row in live):
                return
            queued = [row for row in live if row.status == "queued"]
            if not queued:
                return
            yield wire.StepsAllowed(allowance=self.run.allowance - 1)
            yield from self.execute(min(queued, key=lambda row: row.seq))
            while enabled := self._next():
                yield from self._begin(enabled)


def is_waiting_for_run(row: NodeRun) -> bool:
    return row.status == "pending" and row.wait_on == "run"


def _unwound(run: Run) -> Ended:
    error = Failure.model_validate(run.error or {"code": "cancelled"})
    if run.compensation_failed:
        message = f"a compensation failed after {error.code}: {error.message}"
        return wire.RunFailed(error=Failure(code="compensation_failed", message=message, node_id=error.node_id))
    if run.status == "cancelling":
        return wire.RunCancelled()
    return wire.RunCompensated(error=error) if run.compensations else wire.RunFailed(error=error)
