"""What was answered to a run's attempts: by its oracle, unless that was lost, and by its own tasks and child runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from schemas import human as human_wire
from schemas import runtime as wire
from schemas.decider import Recorded
from schemas.messages import Event
from tests.simulation.answers import child_id, task_id
from tests.simulation.observations import Answer, ChildEnd, Effects, Failure, Path, Verdict
from tests.simulation.scenarios import Scenario

REQUEUES_MAX = 5
History = Sequence[Recorded[Event]]
EARLY_SECONDS = 0.2
"""So much may the clocks of processes differ."""


def answers(run_id: str, scenario: Scenario, histories: Mapping[str, History]) -> Effects:
    """What every attempt was answered. How a task or a child run ended is read from its own history."""
    oracle, lost = scenario.effects, _losses(histories.get(run_id, ()))

    def answer(path: Path, iteration: str, attempt: int) -> Answer | None:
        if (path, iteration, attempt) in lost:
            return lost[path, iteration, attempt]
        node = path.rpartition("/")[2]
        if node in oracle.people:
            return _verdict(histories.get(task_id(run_id, path, iteration, attempt), ()))
        if node in oracle.children and oracle.child(path, iteration, attempt):
            return _end(histories.get(child_id(run_id, path, iteration, attempt), ()))
        return oracle(path, iteration, attempt)

    return answer


def _verdict(history: History) -> Verdict | None:
    for each in history:
        match each.event:
            case human_wire.TaskCompleted() as said:
                return Verdict(said.status, said.response_payload, said.completed_by)
            case human_wire.TaskCancelled():
                return Verdict("cancelled")
            case human_wire.TaskExpired():
                return Verdict("expired")
    return None


def _end(history: History) -> ChildEnd | None:
    for each in history:
        match each.event:
            case wire.RunCompleted() as ended:
                return ChildEnd("completed", ended.output, ended.output_text)
            case wire.RunFailed() as ended:
                return ChildEnd("failed", code=ended.error.code)
            case wire.RunCompensated() as ended:
                return ChildEnd("compensated", code=ended.error.code)
            case wire.RunCancelled():
                return ChildEnd("cancelled")
    return None


def _losses(history: History) -> dict[tuple[Path, str, int], Failure]:
    """Where time ran out, or the fifth executor was lost, that is what happened."""
    lost: dict[tuple[Path, str, int], Failure] = {}
    places: dict[str, tuple[str, str]] = {}
    requeues: dict[str, int] = {}
    limits: dict[str, float] = {}  # Not before then can its time have run out.
    for each in history:
        event = each.event
        match event:
            case wire.NodeScheduled():
                places[event.node_run_id] = (event.path, event.iteration)
                requeues[event.node_run_id] = 0
                if event.timeout_seconds:
                    limits[event.node_run_id] = each.at
            case wire.NodeStarted() if event.timeout_seconds:
                limits[event.node_run_id] = each.at
            case wire.NodeDispatched():
                requeues[event.node_run_id] = 0
                if event.timeout_seconds:
                    limits[event.node_run_id] = each.at
            case wire.NodeWaiting(on="run") if event.due_at:
                limits[event.node_run_id] = event.due_at - EARLY_SECONDS
            case wire.StepRequeued():
                requeues[event.node_run_id] = event.requeues
            case wire.NodeFailed() | wire.NodeCompleted() | wire.NodeRetryScheduled() if event.error:
                place = (*places.get(event.node_run_id, ("", "")), event.attempt)
                if event.error.code == "timeout" and limits.get(event.node_run_id, each.at + 1) <= each.at:
                    lost[place] = Failure("timeout")
                elif event.error.code == "lease_lost" and requeues[event.node_run_id] == REQUEUES_MAX - 1:
                    lost[place] = Failure("lease_lost", retryable=False)
    return lost
