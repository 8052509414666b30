"""What an observer sees of a run: its event log as the observations that the interpreter judges."""

from collections.abc import Sequence

from schemas import runtime as wire
from schemas.decider import Recorded
from schemas.messages import Event
from tests.simulation.observations import (
    Attempted,
    CancelRequested,
    Claimed,
    Ended,
    Failing,
    Observation,
    RunEnded,
    Status,
)

UNWINDING = ("failing", "cancelling")


class Observer:
    """Follows one run's events in order."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []
        self.places: dict[str, tuple[str, str]] = {}
        self.unwinding = False

    def take(self, event: Event) -> None:
        if isinstance(event, wire.NodeEvent):
            if getattr(event, "path", ""):
                self.places[event.node_run_id] = (event.path, event.iteration)  # type: ignore[attr-defined]
            self._take_node(event)
        else:
            self._take_run(event)

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
                path, iteration = self.places[event.node_run_id]
                self.seen.append(Attempted(path, iteration, event.attempt, event.error.code))

    def _ended(self, event: wire.NodeCompleted | wire.NodeFailed, status: Status) -> None:
        path, iteration = self.places[event.node_run_id]
        code = event.error.code if event.error else None
        leased = self.unwinding and "/" not in path
        self.seen.append(Ended(path, iteration, status, event.attempt, event.output, event.output_text, code, leased))

    def _idle(self, event: wire.NodeEvent, status: Status) -> None:
        path, iteration = self.places[event.node_run_id]
        self.seen.append(Ended(path, iteration, status, 1, None, None, None))

    def _take_run(self, event: Event) -> None:
        match event:
            case wire.RunFailing():
                self.seen.append(Failing())
                self.unwinding = True
            case wire.RunCancelling():
                self.seen.append(CancelRequested(event.compensate, force=self.unwinding))
                self.unwinding = True
            case wire.RunCompleted():
                self.seen.append(RunEnded("completed", event.output, event.output_text, None))
            case wire.RunFailed():
                self.seen.append(RunEnded("failed", None, None, event.error.code))
            case wire.RunCancelled():
                self.seen.append(RunEnded("cancelled", None, None, None))
            case wire.RunCompensated():
                self.seen.append(RunEnded("compensated", None, None, event.error.code))


def observe(history: Sequence[Recorded[Event]]) -> list[Observation]:
    observer = Observer()
    for recorded in history:
        observer.take(recorded.event)
    return observer.seen
