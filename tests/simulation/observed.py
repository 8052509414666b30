"""What an observer sees of a run: its event log as the observations that the interpreter judges."""

from collections.abc import Collection, Sequence
from typing import Any, Literal

from schemas import runtime as wire
from schemas.decider import Recorded
from schemas.messages import Event
from tests.simulation.observations import (
    Attempted,
    Began,
    CancelRequested,
    Claimed,
    Ended,
    Failing,
    Observation,
    Paused,
    Resumed,
    RunEnded,
    Status,
    Withheld,
)

BY_HAND = "outside"
"""The worker who says what node runs have come to without holding a lease."""


class Observer:
    """Follows one run's events in order. `forced`: the ids of commands that cancel by force."""

    def __init__(self, forced: Collection[str]) -> None:
        self.forced = forced
        self.seen: list[Observation] = []
        self.places: dict[str, tuple[str, str]] = {}
        self.attempts: dict[str, int] = {}
        self.unwinding = False

    def take(self, recorded: Recorded[Event]) -> None:
        event = recorded.event
        if isinstance(event, wire.NodeEvent):
            if getattr(event, "path", ""):
                self.places[event.node_run_id] = (event.path, event.iteration)  # type: ignore[attr-defined]
            self._take_node(event)
        else:
            self._take_run(event, recorded.causation_id in self.forced)

    def _take_node(self, event: wire.NodeEvent) -> None:
        match event:
            case wire.NodeCompleted():
                self._ended(event, "completed")
            case wire.NodeFailed():
                self._ended(event, "failed")
            case wire.NodeSkipped():
                self._idle(event, "skipped")
            case wire.NodeCancelled():
                self._idle(event, "cancelled")
            case wire.NodeStarted():
                self.seen.append(Claimed(*self.places[event.node_run_id]))
            case wire.NodeRetryScheduled():
                self.seen.append(Attempted(*self.places[event.node_run_id], event.attempt, event.error.code))
                self.attempts[event.node_run_id] = event.attempt + 1
            case wire.NodeScheduled(ready=True) | wire.NodeDispatched():
                self._began(event, "step")
            case wire.NodeWaiting(on="task"):
                self._began(event, "task")
            case wire.NodeWaiting(on="run"):
                self._began(event, "run", (event.input or {}).get("inputs") or {})
            case wire.NodeQueued():
                self.seen.append(Withheld(*self.places[event.node_run_id]))

    def _began(self, event: wire.NodeEvent, on: Literal["step", "task", "run"], inputs: Any = None) -> None:
        attempt = self.attempts.get(event.node_run_id, 1)
        self.seen.append(Began(*self.places[event.node_run_id], attempt, on, inputs))

    def _ended(self, event: wire.NodeCompleted | wire.NodeFailed, status: Status) -> None:
        path, iteration = self.places[event.node_run_id]
        code = event.error.code if event.error else None
        leased = self.unwinding and "/" not in path
        by_hand = event.worker == BY_HAND
        self.seen.append(
            Ended(path, iteration, status, event.attempt, event.output, event.output_text, code, leased, by_hand)
        )

    def _idle(self, event: wire.NodeEvent, status: Status) -> None:
        path, iteration = self.places[event.node_run_id]
        self.seen.append(Ended(path, iteration, status, 1, None, None, None))

    def _take_run(self, event: Event, forced: bool) -> None:
        match event:
            case wire.RunPaused():
                self.seen.append(Paused(event.by))
            case wire.RunResumed():
                self.seen.append(Resumed(event.by))
            case wire.RunFailing():
                self.seen.append(Failing())
                self.unwinding = True
            case wire.RunCancelling():
                self.seen.append(CancelRequested(event.compensate, force=forced))
                self.unwinding = True
            case wire.RunCompleted():
                self.seen.append(RunEnded("completed", event.output, event.output_text, None))
            case wire.RunFailed():
                self.seen.append(RunEnded("failed", None, None, event.error.code))
            case wire.RunCancelled():
                self.seen.append(RunEnded("cancelled", None, None, None))
            case wire.RunCompensated():
                self.seen.append(RunEnded("compensated", None, None, event.error.code))


def observe(history: Sequence[Recorded[Event]], forced: Collection[str] = ()) -> list[Observation]:
    observer = Observer(forced)
    for recorded in history:
        observer.take(recorded)
    return observer.seen
