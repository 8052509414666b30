"""How a run goes on: starts what is enabled, ends what is done, unwinds what failed; pure, one decision long."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, assert_never, cast

import orjson

from handlers.runs.by_hand import is_held_by_hand
from handlers.runs.edges import Enabled, Iteration, iteration_text
from handlers.runs.evaluate import NodeError, check_size, evaluate
from handlers.runs.run_reader import RunReader, shared_loops
from projections.runtime import NodeRun, Run
from schemas import runtime as wire
from schemas.decider import After, Answer, Decision, Meta, Reply, Rows
from schemas.messages import JsonObject, Rejected
from schemas.runtime import RUN_ENDED, VALUE_BYTES_MAX, Failure, node_run_id
from schemas.workflow.expressions import EvaluationError
from schemas.workflow.graph import Node, Program
from schemas.workflow.node_types import RetryPolicy

NODES_PER_MESSAGE_MAX = 256
GOING = frozenset({"queued", "running", "waiting"})
UNWINDING = frozenset({"failing", "compensating", "cancelling"})
_DEFAULT_RETRY = RetryPolicy()


Ended = wire.RunCompleted | wire.RunFailed | wire.RunCancelled | wire.RunCompensated


def ended(run: Run, event: Ended) -> Iterator[Decision]:
    """A run ends; whoever awaits it is told how."""
    yield event
    answer_to = (run.origin or {}).get("answer_to")
    if not answer_to:
        return
    match event:
        case wire.RunCompleted():
            yield Reply(answer_to, Answer(result=event.output))
        case wire.RunCancelled():
            yield Reply(answer_to, Answer(code="run_cancelled", detail=f"run {run.id} was cancelled"))
        case wire.RunFailed() | wire.RunCompensated():
            yield Reply(answer_to, Answer(code=event.error.code, detail=event.error.message))
        case _:
            assert_never(event)


class Progress(RunReader):
    """One decision about one run. Every generator here yields decisions; what it reads next is the state after.

    `available(node)`: whether effects of that node can run here. `jitter`: 0..1, drawn from the message's id.
    """

    def __init__(
        self,
        rows: Rows,
        program: Program,
        run_id: str,
        meta: Meta,
        available: Callable[[Node], bool],
        share: int,
    ) -> None:
        super().__init__(rows, program, run_id)
        self._meta = meta
        self._available = available
        self._share = share
        self._queue: deque[Enabled] = deque()
        self._superfluous: frozenset[int] | None = None

    # --- going on --------------------------------------------------------------------------------------------

    def begin(self, initial_node: str | None) -> Iterator[Decision]:
        """Start a fresh run at its start nodes, or at `initial_node` with nothing before it."""
        for index in (self._program.by_id[initial_node],) if initial_node else self._program.starts:
            node = self._program.nodes[index]
            self._queue.append(Enabled(node, (1,) * len(node.loops)))
        yield from self.advance()

    def advance(self) -> Iterator[Decision]:
        """Begin what is enabled until nothing is, then see whether the run has ended."""
        while enabled := self._next():
            if self.run.status not in GOING:
                self._queue.clear()
                break
            if self._share <= 0 and enabled.why == "run" and not enabled.node.config.delay_seconds:
                yield self._scheduled(enabled, ready=False)
            else:
                yield from self._begin(enabled)
        if self._share <= 0 and self.run.mode == "auto" and self.run.status in GOING:
            yield wire.ContinueRun(run_id=self._run_id)
        elif self.run.mode == "manual":
            yield from self._step_on()
        yield from self._end_if_done()

    def resume_queued(self) -> Iterator[Decision]:
        """Go on with what an earlier message's share left queued, in its order."""
        waiting = [node for node in self._rows.live(NodeRun) if node.status == "queued" and not node.ready]
        for row in sorted(waiting, key=lambda node: node.seq):
            if self._share <= 0 or self.run.status not in GOING:
                break
            row = cast(NodeRun, self._rows.get(NodeRun, row.id))
            if row.status == "queued":  # An early join before it may have cancelled it.
                yield from self.execute(row)
        yield from self.advance()

    def execute(self, row: NodeRun) -> Iterator[Decision]:
        """Run a node run that exists and is not ready: pure ones at once, others as a step."""
        yield from self._run(*self.place(row), row)

    def input_of(self, row: NodeRun) -> JsonObject | None:
        """What a step that nobody has taken up yet is to work on; None if it has that, or takes nothing.

        Raises Rejected if it cannot be filled in.
        """
        node, iteration = self.place(row)
        if row.input is not None or row.leased_by is not None or node.input_value is None:
            return None
        try:
            given: JsonObject = node.input_value.evaluate(self._scope(node, iteration, row))
            check_size(given)
        except EvaluationError as error:
            raise Rejected("evaluation_failed", str(error)) from None
        except NodeError as error:
            raise Rejected(error.code, error.message) from None
        return given

    def _next(self) -> Enabled | None:
        """What is enabled next; an early join may have skipped it meanwhile, or have it skipped now."""
        while self._queue:
            enabled = self._queue.popleft()
            node, iteration = enabled.node, enabled.iteration
            if node.index not in self._coverable():
                return enabled
            if self._row(node, iteration) is None:
                return enabled._replace(why="skip") if self._resolution().covered(node, iteration) else enabled
        return None

    def _begin(self, enabled: Enabled) -> Iterator[Decision]:
        node, iteration = enabled.node, enabled.iteration
        if enabled.why == "skip":
            self._share -= 1
            yield self._skip(node, iteration)
        elif enabled.why != "run":
            message = {
                "max_iterations_exceeded": "the loop wanted more iterations than max_iterations",
                "join_unreachable": "fewer edges than n can still be taken",
            }[enabled.why]
            error = NodeError(enabled.why, message, retryable=False)
            yield from self.failed(node, iteration, None, error, leaving=enabled.why == "max_iterations_exceeded")
        elif node.config.delay_seconds:
            due_at = self._meta.at + node.config.delay_seconds
            yield self._scheduled(enabled, ready=False, due_at=due_at)
            yield self._wake(
                node_run_id(self._run_id, node.id, iteration_text(iteration)), 1, node.config.delay_seconds
            )
        elif self.run.mode == "manual":
            yield self._scheduled(enabled, ready=False)
        else:
            yield from self._run(node, iteration, None)

    def _run(self, node: Node, iteration: Iteration, row: NodeRun | None) -> Iterator[Decision]:
        self._share -= 1
        try:
            scope = self._scope(node, iteration, row)
            if node.kind == "pure":
                answer = evaluate(node, scope)
                updates = answer.output if node.type == "start" else answer.state_updates
                if updates:
                    check_size({**self.run.state, **updates})
            elif not self._available(node):
                raise NodeError("node_type_unavailable", f"{node.type} nodes cannot run here yet", retryable=False)
            else:
                yield self._step(node, iteration, row, scope)
                return
        except EvaluationError as error:
            yield from self.failed(node, iteration, row, NodeError("evaluation_failed", str(error)))
            return
        except NodeError as error:
            yield from self.failed(node, iteration, row, error)
            return
        yield from self.completed(
            node,
            iteration,
            row,
            answer.output,
            answer.text,
            state_updates=answer.state_updates,
            route=answer.route,
        )

    def _step(self, node: Node, iteration: Iteration, row: NodeRun | None, scope: JsonObject) -> Decision:
        """The event that makes a step claimable, with its input filled in."""
        given = node.input_value.evaluate(scope) if node.input_value is not None else {}
        check_size(given)
        kind = node.config.step_kind or ""
        timeout = node.config.timeout_seconds or 0.0
        if row is None:
            return wire.NodeScheduled(
                **self._names(node, iteration), kind=kind, input=given, ready=True, timeout_seconds=timeout
            )
        return wire.NodeDispatched(
            node_run_id=row.id,
            kind=kind,
            input=given,
            attempt=row.attempt,
            lease_token=row.lease_token + 1,
            timeout_seconds=timeout,
        )

    # --- ends of nodes ---------------------------------------------------------------------------------------

    def completed(
        self,
        node: Node,
        iteration: Iteration,
        row: NodeRun | None,
        output: JsonObject,
        text: str | None = None,
        *,
        state_updates: JsonObject | None = None,
        route: str | None = None,
        error: Failure | None = None,
        leaving: bool = False,
        report: JsonObject | None = None,
    ) -> Iterator[Decision]:
        """A node run ends well: its edges resolve, what they enable is queued."""
        going = self.run.status in GOING
        names = self._names(node, iteration) if row is None else {"node_run_id": row.id}
        if row is not None and "/" in row.path:
            yield wire.NodeCompleted(
                **names, output=output, output_text=text, state_updates=state_updates, **self._report(row, report)
            )
            return
        early = False
        taken: list[int] = []
        if going:

            def takes(label: str | None) -> bool:
                return label is None or (route is not None and label == route)

            resolution = self._resolve(node, iteration, takes, leaving=leaving, taken=taken)
            if node.index in self._program.early_joins and error is None:
                early = resolution.pass_early(node, iteration)
        else:
            resolution = self._resolution()  # Its edges lead nowhere now; compensations may read its output.
        if node.id in self._program.latest:
            resolution.remember(node, iteration, names["node_run_id"])
        yield wire.NodeCompleted(
            **names,
            output=output,
            output_text=text,
            state_updates=state_updates,
            route=route,
            error=error,
            sink=going and not taken,
            compensable=node.compensation is not None,
            marks=resolution.marks,
            **self._report(row, report),
        )
        self._queue.extend(resolution.enabled)
        if early:
            yield from self._cover()

    def failed(
        self,
        node: Node,
        iteration: Iteration,
        row: NodeRun | None,
        error: NodeError,
        *,
        output: JsonObject | None = None,
        text: str | None = None,
        leaving: bool = False,
        report: JsonObject | None = None,
    ) -> Iterator[Decision]:
        """An attempt fails: retry, else an edge labelled `failed`, else on_error, else the run fails."""
        compensation = row is not None and "/" in row.path
        going = self.run.status in GOING
        if error.retryable and (going or (compensation and self.run.compensates)):
            attempt = row.attempt if row else 1
            if attempt < (node.config.retry_policy or _DEFAULT_RETRY).max_attempts:
                yield from self._retry(node, iteration, row, attempt, error, report)
                return
        failure = Failure(code=error.code, message=error.message[:2_000], node_id=node.id)
        names = self._names(node, iteration) if row is None else {"node_run_id": row.id}
        ending = {**names, "error": failure, "output": output, "output_text": text, **self._report(row, report)}
        if compensation or not going:
            lost = error.code == "lease_lost" and not compensation
            if lost or node.config.on_error == "fail" or (self._handles(node) and not compensation):
                compensable = lost and node.compensation is not None
                yield wire.NodeFailed(**ending, compensable=compensable)
            else:
                yield from self.completed(
                    node, iteration, row, _default_output(node), text, error=failure, report=report
                )
            return
        taken: list[int] = []
        resolution = self._resolve(node, iteration, lambda label: label == "failed", leaving=leaving, taken=taken)
        if taken:
            yield wire.NodeFailed(**ending, handled=True, marks=resolution.marks)
            self._queue.extend(resolution.enabled)
        elif node.config.on_error != "fail":
            output = _default_output(node)
            yield from self.completed(node, iteration, row, output, text, error=failure, leaving=leaving, report=report)
        else:
            yield wire.NodeFailed(**ending)
            yield from self.fail_run(failure, names["node_run_id"], compensable=node.compensation is not None)

    def _handles(self, node: Node) -> bool:
        return any(self._program.edges[index].label == "failed" for index in node.outgoing)

    def _retry(
        self,
        node: Node,
        iteration: Iteration,
        row: NodeRun | None,
        attempt: int,
        error: NodeError,
        report: JsonObject | None,
    ) -> Iterator[Decision]:
        policy = node.config.retry_policy or _DEFAULT_RETRY
        delay = policy.retry_delay_seconds * (2 ** (attempt - 1) if policy.backoff == "exponential" else 1)
        if policy.jitter:
            delay *= int(self._meta.message_id[:8], 16) / 0xFFFFFFFF
        if row is None:
            yield self._scheduled(Enabled(node, iteration), ready=False)
        id = row.id if row else node_run_id(self._run_id, node.id, iteration_text(iteration))
        failure = Failure(code=error.code, message=error.message[:2_000], node_id=node.id)
        worker = (report or {}).get("worker", "")
        yield wire.NodeRetryScheduled(
            node_run_id=id, attempt=attempt, error=failure, due_at=self._meta.at + delay, worker=worker
        )
        if delay:
            yield self._wake(id, attempt + 1, delay)
        else:
            yield from self.due(cast(NodeRun, self._rows.get(NodeRun, id)))

    def due(self, row: NodeRun) -> Iterator[Decision]:
        """A pending node run may go on: its delay or retry pause is over."""
        if self.run.mode == "manual" and "/" not in row.path:
            yield wire.NodeQueued(node_run_id=row.id, attempt=row.attempt)
        else:
            yield from self.execute(row)

    def released(self, id: str) -> Iterator[Decision]:
        """An external worker's lease ran out: the node run goes on where it was when it was claimed."""
        row = cast(NodeRun, self._rows.get(NodeRun, id))
        if row.status == "pending" and row.due_at > self._meta.at:
            yield self._wake(row.id, row.attempt, row.due_at - self._meta.at)  # The first may have gone meanwhile.
        elif row.status == "pending":
            yield from self.due(row)
        elif not row.ready and (self.run.mode == "auto" or "/" in row.path):
            yield from self.execute(row)

    def skipped(self, row: NodeRun) -> Iterator[Decision]:
        """Somebody outside says that a node run is skipped."""
        resolution = self._resolve(self._node(row), self._iteration(row), lambda label: False)
        yield wire.NodeSkipped(node_run_id=row.id, marks=resolution.marks)
        self._queue.extend(resolution.enabled)

    def _cover(self) -> Iterator[Decision]:
        """A join passed early: all that leads to such joins only ends now, whether it has begun or not."""
        rows = [row for row in sorted(self._rows.live(NodeRun), key=lambda row: row.seq) if "/" not in row.path]
        in_flight = [self.place(row) for row in rows] + [(each.node, each.iteration) for each in self._queue]
        for row in rows:
            node, iteration = self.place(row)
            if self._resolution().covered(node, iteration):
                resolution = self._resolve(node, iteration, lambda label: False)
                yield wire.NodeCancelled(node_run_id=row.id, marks=resolution.marks)
                self._queue.extend(resolution.enabled)
        now = self._resolution()
        waiting = [
            (node, iteration)
            for node in (self._program.nodes[index] for index in sorted(self._coverable()))
            for iteration in _open_iterations(node, in_flight)
            if self._reaches(node.index) and now.covered(node, iteration)
        ]
        self._rows.want(NodeRun, [self._names(*place)["node_run_id"] for place in waiting])
        for node, iteration in waiting:
            if self._row(node, iteration) is None:
                yield self._skip(node, iteration)

    def _skip(self, node: Node, iteration: Iteration) -> wire.NodeSkipped:
        resolution = self._resolve(node, iteration, lambda label: False)
        self._queue.extend(resolution.enabled)
        return wire.NodeSkipped(**self._names(node, iteration), marks=resolution.marks)

    def _coverable(self) -> frozenset[int]:
        """The nodes that an early join could ever make superfluous."""
        if self._superfluous is None:
            early = frozenset(self._program.early_joins)
            self._superfluous = self._program.covered(early) | early if early else early
        return self._superfluous

    # --- ends of runs ----------------------------------------------------------------------------------------

    def fail_run(self, error: Failure, node_run_id: str | None, *, compensable: bool) -> Iterator[Decision]:
        """A failure nobody handled: withdraw what has not begun, wait for the rest, then compensate."""
        self._queue.clear()
        yield wire.RunFailing(error=error, node_run_id=node_run_id, compensable=compensable)
        yield from self.withdraw()
        yield from self.unwind()

    def withdraw(self) -> Iterator[Decision]:
        """Cancel every node run that nobody executes right now, but no compensation that is still wanted."""
        yield from self._withdraw(lambda row: row.leased_by is None)

    def withdraw_claimed(self) -> Iterator[Decision]:
        """The same for what external workers hold: what they answer does not count any more."""
        yield from self._withdraw(is_held_by_hand)

    def _withdraw(self, chosen: Callable[[NodeRun], bool]) -> Iterator[Decision]:
        for row in sorted(self._rows.live(NodeRun), key=lambda row: row.seq):
            if chosen(row) and not ("/" in row.path and self.run.compensates):
                yield wire.NodeCancelled(node_run_id=row.id)

    def unwind(self) -> Iterator[Decision]:
        """Start the next compensation once nothing is in flight; end the run after the last one."""
        while self.run.active == 0 and self.run.pending == 0:
            run = self.run
            of = run.compensate_first or run.lost or run.compensable
            if of is None or not run.compensates:
                yield from ended(run, self._unwound(run))
                return
            if self._share <= 0:
                yield wire.ContinueRun(run_id=self._run_id)
                return
            yield from self._compensate(cast(NodeRun, self._rows.get(NodeRun, of)))

    def _compensate(self, of: NodeRun) -> Iterator[Decision]:
        made_up = self._node(of)
        node = self._program.nodes[cast(int, made_up.compensation)]
        path = f"{made_up.id}/{node.id}"
        id = node_run_id(self._run_id, path, of.iteration)
        yield wire.RunCompensating(of=of.id, node_run_id=id)
        delay = node.config.delay_seconds
        yield wire.NodeScheduled(
            node_run_id=id,
            node_id=node.id,
            path=path,
            iteration=of.iteration,
            node_type=node.type,
            due_at=self._meta.at + delay if delay else 0.0,
        )
        if delay:
            yield self._wake(id, 1, delay)
        else:
            yield from self.execute(cast(NodeRun, self._rows.get(NodeRun, id)))

    def _unwound(self, run: Run) -> Ended:
        error = Failure.model_validate(run.error or {"code": "cancelled"})
        if run.compensation_failed:
            message = f"a compensation failed after {error.code}: {error.message}"
            return wire.RunFailed(error=Failure(code="compensation_failed", message=message, node_id=error.node_id))
        if run.status == "cancelling":
            return wire.RunCancelled()
        return wire.RunCompensated(error=error) if run.compensations else wire.RunFailed(error=error)

    def _end_if_done(self) -> Iterator[Decision]:
        run = self.run
        if run.status not in GOING or run.active or run.pending or self._queue:
            return
        output = self.output()
        size = len(orjson.dumps(output))
        if size > VALUE_BYTES_MAX:
            error = Failure(code="output_too_large", message=f"{size} bytes of output, at most {VALUE_BYTES_MAX}")
            yield from self.fail_run(error, None, compensable=False)
        else:
            yield from ended(run, wire.RunCompleted(output=output, output_text=run.output_text))

    def output(self) -> Any:
        """The `end` nodes' outputs; without them that of the last node, or of several by node id."""
        run = self.run
        if run.end_output is not None:
            return run.end_output
        sinks: list[NodeRun] = []
        at = run.sink
        while at is not None:
            row = cast(NodeRun, self._rows.get(NodeRun, at))
            sinks.append(row)
            at = row.below_sink
        outputs = {row.node_id: row.output for row in reversed(sinks)}
        return sinks[0].output if len(outputs) == 1 else outputs

    # --- manual runs -----------------------------------------------------------------------------------------

    def _step_on(self) -> Iterator[Decision]:
        """A manual run takes its next step if it may and nothing is being executed."""
        while self.run.status in GOING and self.run.allowance > 0 and not self._queue:
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

    # --- what events say ---------------------------------------------------------------------------------------

    def _scheduled(self, enabled: Enabled, *, ready: bool, due_at: float = 0.0) -> wire.NodeScheduled:
        return wire.NodeScheduled(**self._names(enabled.node, enabled.iteration), ready=ready, due_at=due_at)

    def _wake(self, id: str, attempt: int, seconds: float) -> After:
        return After(seconds, wire.WakeNode(run_id=self._run_id, node_run_id=id, attempt=attempt))

    def _report(self, row: NodeRun | None, report: JsonObject | None) -> JsonObject:
        """Attempt, token, times and worker of an ended node run."""
        if row is None:
            return {}
        ending: JsonObject = {"attempt": row.attempt, "lease_token": row.lease_token}
        if report:
            ending.update(report)
        elif row.started_at:
            ending["started_at"] = row.started_at
        return ending


def _default_output(node: Node) -> JsonObject:
    return (node.config.default_output or {}) if node.config.on_error == "default" else {}


def _open_iterations(node: Node, in_flight: list[tuple[Node, Iteration]]) -> list[Iteration]:
    """The iterations in which a node may be still to come: the first of each loop inside what is in flight."""
    depth = len(node.loops)
    found = {(1,) * depth}
    for other, iteration in in_flight:
        shared = shared_loops(node.loops, other.loops)
        found.add((*iteration[:shared], *(1,) * (depth - shared)))
    return sorted(found)


__all__ = ["GOING", "NODES_PER_MESSAGE_MAX", "RUN_ENDED", "UNWINDING", "Progress"]
