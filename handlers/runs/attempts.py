"""The life of one node run: begun, leased, waiting, repeated, ended. It knows no graph: a plan says what follows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple, cast

from handlers.runs.edges import Enabled, iteration_text
from handlers.runs.evaluate import NodeError, check_size, evaluate
from handlers.runs.plan import Outcome, Place, Plan
from handlers.runs.waits import Waits
from projections.runtime import NodeRun, Run
from schemas import runtime as wire
from schemas.decider import Decision, Meta, Rows
from schemas.messages import JsonObject, Rejected
from schemas.runtime import Failure, node_run_id
from schemas.workflow.expressions import EvaluationError
from schemas.workflow.graph import Node
from schemas.workflow.node_types import RetryPolicy

GOING = frozenset({"queued", "running", "waiting"})
_DEFAULT_RETRY = RetryPolicy()


class Ending(NamedTuple):
    """What the end of a node run means for its run: a failure that nobody handled, or that others are superfluous."""

    failure: Failure | None = None
    node_run_id: str = ""
    compensable: bool = False
    passed_early: bool = False


Attempt = Generator[Decision, None, Ending | None]
"""Decisions about one node run; its result: what its end means for the run, if it ended."""


class Attempts:
    """The node runs of one run. Whatever their ends enable is put into `enabled`.

    `available(node)`: whether effects of that node can run here. `jitter`: 0..1, drawn from the message's id.
    """

    def __init__(
        self,
        rows: Rows,
        plan: Plan,
        run_id: str,
        meta: Meta,
        available: Callable[[Node], bool],
        enabled: deque[Enabled],
    ) -> None:
        self._rows = rows
        self._plan = plan
        self._run_id = run_id
        self._meta = meta
        self._available = available
        self._enabled = enabled
        self._waits = Waits(run_id, meta.at)
        self.begun = 0
        """Nodes taken up in this decision."""

    @property
    def _run(self) -> Run:
        return self._plan.run

    # --- begun -----------------------------------------------------------------------------------------------

    def run(self, place: Place, row: NodeRun | None) -> Attempt:
        """Take a node up: pure ones end at once, others become a step, or wait for a person or a child run.

        `row`: the node run if there is one already.
        """
        node, _ = place
        self.begun += 1
        try:
            scope = self._plan.scope(place, row)
            if node.kind == "pure":
                answer = evaluate(node, scope)
                updates = answer.output if node.type == "start" else answer.state_updates
                if updates:
                    check_size({**self._run.state, **updates})
            else:
                yield from self._hand_over(place, row, scope)
                return None
        except EvaluationError as error:
            return (yield from self.failed(place, row, NodeError("evaluation_failed", str(error))))
        except NodeError as error:
            return (yield from self.failed(place, row, error))
        return (
            yield from self.completed(
                place, row, answer.output, answer.text, state_updates=answer.state_updates, route=answer.route
            )
        )

    def _hand_over(self, place: Place, row: NodeRun | None, scope: JsonObject) -> Iterator[Decision]:
        """Give a node to whoever does it. Raises NodeError or EvaluationError before anything is decided."""
        node, _ = place
        given = node.input_value.evaluate(scope) if node.input_value is not None else {}
        check_size(given)
        if node.kind == "effect":
            if not self._available(node):
                raise NodeError("node_type_unavailable", f"{node.type} nodes cannot run here yet", retryable=False)
            yield self._step(place, row, given)
            return
        attempt = row.attempt if row is not None else 1
        wait = self._waits.of(node, self._id(place, row), attempt, given, self._run)
        if row is None:
            yield self.scheduled(place)
        yield from wait

    def _step(self, place: Place, row: NodeRun | None, given: JsonObject) -> Decision:
        """The event that makes a step claimable, with its input."""
        node, _ = place
        kind = node.config.step_kind or ""
        timeout = node.config.timeout_seconds or 0.0
        if row is None:
            return wire.NodeScheduled(**self._names(place), kind=kind, input=given, ready=True, timeout_seconds=timeout)
        return wire.NodeDispatched(
            node_run_id=row.id,
            kind=kind,
            input=given,
            attempt=row.attempt,
            lease_token=row.lease_token + 1,
            timeout_seconds=timeout,
        )

    def input_of(self, row: NodeRun) -> JsonObject | None:
        """What a step that nobody has taken up yet is to work on; None if it has that, or takes nothing.

        Raises Rejected if it cannot be filled in.
        """
        place = self._plan.place(row)
        node, _ = place
        if row.input is not None or row.leased_by is not None or node.input_value is None:
            return None
        try:
            given: JsonObject = node.input_value.evaluate(self._plan.scope(place, row))
            check_size(given)
        except EvaluationError as error:
            raise Rejected("evaluation_failed", str(error)) from None
        except NodeError as error:
            raise Rejected(error.code, error.message) from None
        return given

    def scheduled(self, place: Place) -> wire.NodeScheduled:
        """The node run exists, and is queued for its turn."""
        return wire.NodeScheduled(**self._names(place))

    def delayed(self, place: Place, row: NodeRun | None = None) -> Iterator[Decision]:
        """A node that begins after its delay."""
        if row is None:
            yield self.scheduled(place)
        yield from self._waits.timer(self._id(place, row), 1, place[0].config.delay_seconds)

    def again_due(self, row: NodeRun) -> Iterator[Decision]:
        """The timer of a node run that waits once more, for its first one may have gone off unheard."""
        yield self._waits.wake(row, max(0.0, row.due_at - self._meta.at))

    # --- ended -----------------------------------------------------------------------------------------------

    def completed(
        self,
        place: Place,
        row: NodeRun | None,
        output: JsonObject,
        text: str | None = None,
        *,
        state_updates: JsonObject | None = None,
        route: str | None = None,
        error: Failure | None = None,
        leaving: bool = False,
        report: JsonObject | None = None,
    ) -> Attempt:
        """A node run ends well."""
        names = self._names(place) if row is None else {"node_run_id": row.id}
        if row is not None and "/" in row.path:
            yield wire.NodeCompleted(
                **names, output=output, output_text=text, state_updates=state_updates, **_report(row, report)
            )
            return None
        going = self._run.status in GOING
        outcome = Outcome("completed", route, clean=error is None, counts=going, leaving=leaving)
        follows = self._plan.after(place, names["node_run_id"], outcome)
        yield wire.NodeCompleted(
            **names,
            output=output,
            output_text=text,
            state_updates=state_updates,
            route=route,
            error=error,
            sink=going and not follows.goes_on,
            compensable=place[0].compensation is not None,
            marks=follows.marks,
            **_report(row, report),
        )
        self._enabled.extend(follows.enabled)
        return Ending(passed_early=True) if follows.passed_early else None

    def failed(
        self,
        place: Place,
        row: NodeRun | None,
        error: NodeError,
        *,
        output: JsonObject | None = None,
        text: str | None = None,
        leaving: bool = False,
        report: JsonObject | None = None,
    ) -> Attempt:
        """An attempt fails: retry, else an edge labelled `failed`, else on_error, else the run fails."""
        node, _ = place
        compensation = row is not None and "/" in row.path
        going = self._run.status in GOING
        if error.retryable and (going or (compensation and self._run.compensates)):
            attempt = row.attempt if row else 1
            if attempt < (node.config.retry_policy or _DEFAULT_RETRY).max_attempts:
                return (yield from self._retry(place, row, attempt, error, report))
        failure = Failure(code=error.code, message=error.message[:2_000], node_id=node.id, run_id=error.run_id)
        names = self._names(place) if row is None else {"node_run_id": row.id}
        id = names["node_run_id"]
        ending = {**names, "error": failure, "output": output, "output_text": text, **_report(row, report)}
        if compensation or not going:
            lost = error.code == "lease_lost" and not compensation
            if not lost and node.config.on_error != "fail" and (compensation or not self._plan.handles_failure(node)):
                instead = _default_output(node)
                return (yield from self.completed(place, row, instead, text, error=failure, report=report))
            marks = () if compensation else self._plan.after(place, id, Outcome("failed", counts=False)).marks
            yield wire.NodeFailed(**ending, compensable=lost and node.compensation is not None, marks=marks)
            return None
        follows = self._plan.after(place, id, Outcome("failed", leaving=leaving))
        if follows.goes_on:
            yield wire.NodeFailed(**ending, handled=True, marks=follows.marks)
            self._enabled.extend(follows.enabled)
            return None
        if node.config.on_error != "fail":
            instead = _default_output(node)
            return (yield from self.completed(place, row, instead, text, error=failure, leaving=leaving, report=report))
        marks = self._plan.after(place, id, Outcome("failed", counts=False)).marks
        yield wire.NodeFailed(**ending, marks=marks)
        return Ending(failure, id, compensable=node.compensation is not None and _was_handed_over(row, error))

    def _retry(
        self, place: Place, row: NodeRun | None, attempt: int, error: NodeError, report: JsonObject | None
    ) -> Attempt:
        node, _ = place
        policy = node.config.retry_policy or _DEFAULT_RETRY
        delay = policy.retry_delay_seconds * (2 ** (attempt - 1) if policy.backoff == "exponential" else 1)
        if policy.jitter:
            delay *= int(self._meta.message_id[:8], 16) / 0xFFFFFFFF
        if row is None:
            yield self.scheduled(place)
        id = self._id(place, row)
        failure = Failure(code=error.code, message=error.message[:2_000], node_id=node.id, run_id=error.run_id)
        worker = (report or {}).get("worker", "")
        yield wire.NodeRetryScheduled(node_run_id=id, attempt=attempt, error=failure, worker=worker)
        if delay:
            yield from self._waits.timer(id, attempt + 1, delay)
            return None
        return (yield from self.due(cast(NodeRun, self._rows.get(NodeRun, id))))

    def due(self, row: NodeRun) -> Attempt:
        """A node run that waited for time, or is to be repeated at once, may go on."""
        if self._run.is_held or (self._run.mode == "manual" and "/" not in row.path):
            yield wire.NodeQueued(node_run_id=row.id, attempt=row.attempt)
            return None
        return (yield from self.run(self._plan.place(row), row))

    def skipped(self, row: NodeRun) -> Iterator[Decision]:
        """Somebody outside says that a node run is skipped."""
        follows = self._plan.after(self._plan.place(row), row.id, Outcome("skipped"))
        yield wire.NodeSkipped(node_run_id=row.id, marks=follows.marks)
        yield from self._waits.abandon(row, self._run)
        self._enabled.extend(follows.enabled)

    def skip(self, place: Place) -> wire.NodeSkipped:
        """A node is skipped before it exists."""
        names = self._names(place)
        follows = self._plan.after(place, names["node_run_id"], Outcome("skipped"))
        self._enabled.extend(follows.enabled)
        return wire.NodeSkipped(**names, marks=follows.marks)

    def superfluous(self, row: NodeRun) -> Iterator[Decision]:
        """Others go on without it."""
        follows = self._plan.after(self._plan.place(row), row.id, Outcome("skipped"))
        yield wire.NodeCancelled(node_run_id=row.id, marks=follows.marks)
        yield from self._waits.abandon(row, self._run)
        self._enabled.extend(follows.enabled)

    def cancelled(self, row: NodeRun, *, force: bool = False) -> Iterator[Decision]:
        """It ends at once, with whatever it waits for."""
        yield wire.NodeCancelled(node_run_id=row.id)
        yield from self._waits.abandon(row, self._run, force=force)

    def cancel_child(self, row: NodeRun) -> Decision:
        """The child run that it waits for is to end; it is awaited all the same."""
        return self._waits.cancel_child(row, self._run)

    def abandon(self, row: NodeRun, *, compensate: bool = False) -> Iterator[Decision]:
        """What it waits for is not wanted any more."""
        yield from self._waits.abandon(row, self._run, compensate=compensate)

    # --- what events say -------------------------------------------------------------------------------------

    def _id(self, place: Place, row: NodeRun | None) -> str:
        if row is not None:
            return row.id
        node, iteration = place
        return node_run_id(self._run_id, node.id, iteration_text(iteration))

    def _names(self, place: Place) -> JsonObject:
        node, iteration = place
        text = iteration_text(iteration)
        return {
            "node_run_id": node_run_id(self._run_id, node.id, text),
            "node_id": node.id,
            "path": node.id,
            "iteration": text,
            "node_type": node.type,
        }


def _was_handed_over(row: NodeRun | None, error: NodeError) -> bool:
    """Whether somebody may have begun on it: an executor, a person, a child run."""
    if row is None or (error.refused and row.attempt == 1):
        return False
    return row.lease_token > 0 or row.wait_on not in (None, "timer")


def _report(row: NodeRun | None, report: JsonObject | None) -> JsonObject:
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
