"""What came about in a simulation with tasks, child runs and pauses, by name: else its seeds would show nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from schemas import human as human_wire
from schemas import runtime as wire
from schemas.decider import Recorded
from schemas.messages import Command, Event
from tests.simulation.clients import Started
from tests.simulation.invariants import histories_of
from tests.simulation.observed import BY_HAND

if TYPE_CHECKING:
    from tests.simulation.world import World

History = Sequence[Recorded[Event]]


def happened(world: World) -> set[str]:
    histories = histories_of(world)
    found: set[str] = set()
    for id in world.clients.asked:
        found |= set(_of_task(histories.get(id, ())))
    for started in world.clients.started.values():
        history = histories.get(started.id, ())
        found |= set(Watch(started).follow(history))
        if started.parent and history:
            found |= {f"child {world.database.tables['run'][started.id].status}", f"depth {started.depth}"}
    for request in world.clients.requests:
        outcome = world.database.outcomes.get(request.id)
        found |= set(
            _of_request(request.command, outcome.status if outcome else "", b"" if outcome is None else outcome.body)
        )
    return found


def _of_task(history: History) -> Iterator[str]:
    for each in history:
        match each.event:
            case human_wire.TaskCompleted() as said:
                yield f"task {said.status}"
            case human_wire.TaskCancelled() as said:
                yield "task cancelled by somebody" if said.reason == "not needed" else "task withdrawn"
            case human_wire.TaskExpired() as said:
                yield "task expired with a default" if said.output is not None else "task expired"
            case human_wire.TaskEscalated():
                yield "task escalated"
            case human_wire.TaskClaimed():
                yield "task claimed"


def _of_request(command: Command, status: str, body: bytes) -> Iterator[str]:
    match command:
        case human_wire.CompleteTask() if status == "rejected":
            yield "verdict refused"
        case wire.SetNodeStatus(status="running") if b"node_run_waits" in body:
            yield "claim of what waits refused"
        case wire.SetNodeStatus(status="running") | wire.ExecuteRun() | wire.ExecuteNode() if b"run_paused" in body:
            yield "claim under pause refused"
        case wire.PauseRun() if status == "rejected":
            yield "pause of an ended run refused"


class Watch:
    """Follows one run."""

    def __init__(self, started: Started) -> None:
        self.started = started
        self.held: set[str] = set()
        self.unwinding = False
        self.resumed = False  # While it unwound.
        self.waits: dict[str, str] = {}
        self.ready: set[str] = set()
        self.paths: dict[str, str] = {}

    def follow(self, history: History) -> Iterator[str]:
        for each in history:
            if isinstance(each.event, wire.NodeEvent):
                yield from self._of_node(each.event)
            else:
                yield from self._of_run(each.event)

    def _of_run(self, event: Event) -> Iterator[str]:
        match event:
            case wire.RunPaused():
                self.held.add(event.by)
                yield f"paused by {event.by}" if len(self.held) < 2 else "paused by both"
                yield from ["paused while it unwinds"] if self.unwinding else []
            case wire.RunResumed():
                self.held.discard(event.by)
                self.resumed |= self.unwinding
                yield f"resumed by {event.by}"
            case wire.RunFailing() | wire.RunCancelling():
                self.unwinding = True
                yield from ["failed or cancelled under pause"] if self.held else []
            case wire.RunCompensating():
                yield from ["compensated after a pause"] if self.resumed else []
        if isinstance(event, wire.TERMINAL_EVENTS) and self.held:
            yield "ended under pause"

    def _of_node(self, event: wire.NodeEvent) -> Iterator[str]:
        id = event.node_run_id
        self.paths.setdefault(id, getattr(event, "path", ""))
        match event:
            case wire.NodeScheduled() | wire.NodeDispatched():
                self.ready |= {id} if isinstance(event, wire.NodeDispatched) or event.ready else set()
                self.waits.pop(id, None)
            case wire.NodeWaiting():
                self.waits[id] = event.on
                yield f"compensation by a {event.on}" if "/" in self.paths[id] else f"waits for a {event.on}"
                yield from ["delayed under pause"] if self.held else []
            case wire.NodeQueued():
                yield from ["step taken back"] if id in self.ready and self.held else []
                yield from ["due under pause"] if self.waits.get(id) == "timer" and self.held else []
                self.ready.discard(id)
            case wire.NodeRetryScheduled() | wire.NodeCompleted() | wire.NodeFailed() | wire.NodeCancelled():
                yield from self._of_end(event, self.waits.pop(id, ""))
                self.ready.discard(id)

    def _of_end(
        self, event: wire.NodeRetryScheduled | wire.NodeCompleted | wire.NodeFailed | wire.NodeCancelled, waited: str
    ) -> Iterator[str]:
        name = {"task": "task", "run": "child"}.get(waited)
        if name is None:
            yield from ["step ended under pause"] if self.held and event.node_run_id in self.ready else []
            return
        yield from [f"{name} answered under pause"] if self.held else []
        if isinstance(event, wire.NodeCancelled):
            yield f"{name} cut"
            return
        yield from [f"{name} retried"] if isinstance(event, wire.NodeRetryScheduled) else []
        yield from [f"{name} ended by hand"] if event.worker == BY_HAND else []
        yield from [f"{name} timed out"] if event.error and event.error.code == "timeout" else []
        yield from [f"{name} refused"] if event.error and event.error.code == "invalid_request" else []
        yield from (
            [f"{name} awaited while unwinding"] if self.unwinding and "/" not in self.paths[event.node_run_id] else []
        )
