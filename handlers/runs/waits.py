"""What a node run may wait for: a time, a person's task, a child run. All of them end in `runtime.resume_node`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import pydantic_core

from handlers.runs.evaluate import NodeError
from projections.runtime import NodeRun, Run
from schemas import runtime as wire
from schemas.decider import After, Awaited, Decision
from schemas.human import OpenTask, WithdrawTask
from schemas.messages import Command, JsonObject, derive_near
from schemas.problems import summary
from schemas.registry import problems
from schemas.workflow.graph import Node
from schemas.workflow.node_types import Human, Workflow

C = TypeVar("C", bound=Command)


class Waits:
    """Begins and ends the waits of one run's node runs, as of `at`.

    The id of a wait is that of the task or the child run, derived from the node run and its attempt: a decision made
    again names the same one.
    """

    def __init__(self, run_id: str, at: float) -> None:
        self._run_id = run_id
        self._at = at

    def of(self, node: Node, id: str, attempt: int, given: JsonObject, run: Run) -> Iterator[Decision]:
        """The wait of node run `id` for what its node's type asks for. Raises NodeError at once if it cannot be."""
        match node.config:
            case Workflow() as config:
                return self._child(config, id, attempt, given, run)
            case Human() as config:
                return self._task(node, config, id, attempt, given, run)
        raise NodeError("node_type_unavailable", f"{node.type} nodes cannot run here yet", retryable=False)

    # --- times -----------------------------------------------------------------------------------------------

    def timer(self, id: str, attempt: int, seconds: float) -> Iterator[Decision]:
        """The node run goes on when so many seconds have passed."""
        wait_id = derive_near(id, f"timer:{attempt}")
        yield wire.NodeWaiting(node_run_id=id, on="timer", wait_id=wait_id, due_at=self._at + seconds)
        yield After(seconds, wire.ResumeNode(run_id=self._run_id, node_run_id=id, wait_id=wait_id))

    def wake(self, row: NodeRun, seconds: float) -> After:
        wait_id = cast(str, row.wait_id)
        return After(seconds, wire.ResumeNode(run_id=self._run_id, node_run_id=row.id, wait_id=wait_id))

    # --- child runs ------------------------------------------------------------------------------------------

    def _child(self, config: Workflow, id: str, attempt: int, given: JsonObject, run: Run) -> Iterator[Decision]:
        origin = run.origin or {}
        depth = origin.get("depth", 0) + 1
        if depth > wire.DEPTH_MAX:
            raise NodeError("depth_exceeded", f"runs nest at most {wire.DEPTH_MAX} deep", retryable=False)
        if run.children >= wire.CHILDREN_MAX:
            raise NodeError("too_many_children", f"a run starts at most {wire.CHILDREN_MAX}", retryable=False)
        child_id = derive_near(id, f"run:{attempt}")
        start = _valid(
            lambda: wire.StartChild(
                run_id=child_id,
                workflow_id=config.workflow_id,
                workflow_version_id=config.workflow_version_id,
                inputs=given.get("inputs") or {},
                app_id=run.app_id,
                app_version_id=run.app_version_id,
                session_id=run.session_id,
                parent_run_id=run.id,
                parent_node_run_id=id,
                root_run_id=origin.get("root_run_id") or run.id,
                depth=depth,
            )
        )
        return self._begin_child(config, id, child_id, start, given)

    def _begin_child(
        self, config: Workflow, id: str, child_id: str, start: wire.StartChild, given: JsonObject
    ) -> Iterator[Decision]:
        seconds = config.timeout_seconds or 0.0
        due_at = self._at + seconds if seconds else 0.0
        yield wire.NodeWaiting(node_run_id=id, on="run", wait_id=child_id, due_at=due_at, input=given)
        yield Awaited(start, subject=id, wait_id=child_id)
        if seconds:
            late = wire.Failure(code="timeout", message=f"no answer within {seconds} s")
            yield After(
                seconds,
                wire.ResumeNode(
                    run_id=self._run_id, node_run_id=id, wait_id=child_id, error=late, retryable=True, timed_out=True
                ),
            )

    # --- tasks of people -------------------------------------------------------------------------------------

    def _task(
        self, node: Node, config: Human, id: str, attempt: int, given: JsonObject, run: Run
    ) -> Iterator[Decision]:
        """The task has its own due time. What does not fit it is refused where it is opened, and told to the node."""
        task_id = derive_near(id, f"task:{attempt}")
        task = _valid(
            lambda: OpenTask(
                task_id=task_id,
                task_type=config.task_type,
                title=given.get("title") or node.id,
                description=given.get("description") or "",
                run_id=run.id,
                node_run_id=id,
                assigned_to=given.get("assigned_to") or None,
                request_payload={} if given.get("request_payload_json") is None else given["request_payload_json"],
                require_claim=config.require_claim,
                require_hash=config.require_hash,
                four_eyes=config.four_eyes,
                requested_by=run.actor,
                timeout_seconds=config.timeout_seconds,
                on_timeout=config.on_timeout,
                default_output=config.default_output,
                escalate_to=given.get("escalate_to") or None,
            )
        )
        return iter(
            (
                wire.NodeWaiting(node_run_id=id, on="task", wait_id=task_id, input=given),
                Awaited(task, subject=id, wait_id=task_id),
            )
        )

    # --- not wanted any more ---------------------------------------------------------------------------------

    def abandon(self, row: NodeRun, run: Run, *, force: bool = False, compensate: bool = False) -> Iterator[Decision]:
        """End what a node run waits for, or waited for until now. A timer that goes off finds nobody."""
        if row.status != "pending":
            return
        match row.wait_on:
            case "run":
                yield self.cancel_child(row, run, force=force, compensate=compensate)
                if run.is_held:  # Nobody would ever end the pause that came from here.
                    yield wire.ResumeChild(run_id=cast(str, row.wait_id))
            case "task":
                yield WithdrawTask(task_id=cast(str, row.wait_id), reason=f"run {run.id} does not wait for it any more")

    def cancel_child(self, row: NodeRun, run: Run, *, force: bool = False, compensate: bool = False) -> wire.CancelRun:
        """While the run unwinds, the child does as the run; else `compensate` says whether it makes up for itself."""
        unwinding = run.status in wire.RUN_UNWINDING
        return wire.CancelRun(
            run_id=cast(str, row.wait_id),
            compensate=run.compensates if unwinding else compensate,
            force=force,
        )


def _valid(make: Callable[[], C]) -> C:
    """A command made of what a graph's author wrote. Raises NodeError for what does not fit."""
    try:
        return make()
    except pydantic_core.ValidationError as error:
        raise NodeError("invalid_input", summary(problems(error)), retryable=False) from None
