"""What must hold of tasks and child runs when everything has come to rest, from their own histories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from schemas import human as human_wire
from schemas import runtime as wire
from schemas.decider import Recorded
from schemas.messages import Event
from tests.simulation.answers import defaults
from tests.simulation.clients import Started
from tests.simulation.loops import Graph
from tests.simulation.observations import same_json
from tests.simulation.observed import BY_HAND

if TYPE_CHECKING:
    from tests.simulation.world import World

Histories = Mapping[str, list[Recorded[Event]]]
Ended = wire.NodeCompleted | wire.NodeFailed | wire.NodeSkipped | wire.NodeCancelled


def waits(world: World, histories: Histories) -> Iterator[str]:
    """Nothing waits for what has ended or never was."""
    tables = world.database.tables
    for row in tables["node_run"].values():
        if row.status != "pending":
            continue
        kind, id = row.wait_on, row.wait_id
        if kind == "task":
            task = tables["human_task"].get(id)
            if task is None or task.status in human_wire.TASK_ENDED:
                yield f"{row.run_id}: {row.path} {row.iteration} waits for task {id}: {task}"
        elif kind == "run" and (not world.exists(id) or world.ended(id)):
            yield f"{row.run_id}: {row.path} {row.iteration} waits for run {id}: {tables['run'].get(id)}"
        elif kind == "timer" and not row.due_at:
            yield f"{row.run_id}: {row.path} {row.iteration} waits for no time"


def tasks(world: World, histories: Histories) -> Iterator[str]:
    """I2: every task was opened for its node run, and ended once; that of a node run that was cut ended as well."""
    for id, (started, path, iteration, attempt) in world.clients.asked.items():
        where = f"task {id} of {started.id}, {path} {iteration} attempt {attempt}"
        events = [each.event for each in histories.get(id, [])]
        if not events or not isinstance(events[0], human_wire.TaskCreated):
            yield f"{where} was never opened"
            continue
        if events[0].run_id != started.id:
            yield f"{where} was opened for {events[0].run_id}"
        terminal = [event.type for event in events if isinstance(event, human_wire.TERMINAL_EVENTS)]
        if len(terminal) != 1 or not isinstance(events[-1], human_wire.TERMINAL_EVENTS):
            yield f"{where} ended with {terminal}, last {events[-1]}"


def children(world: World, histories: Histories) -> Iterator[str]:
    """A child run is what its parent's node asked for, it ended, and its end is what that node came to."""
    for started in world.clients.started.values():
        if not started.parent:
            continue
        history = histories.get(started.id, [])
        row = world.database.tables["node_run"][started.parent]
        where = f"{started.id}, child of {row.run_id}, {row.path} {row.iteration}"
        match history[0].event if history else None:
            case wire.RunCreated(origin=wire.Origin() as origin) as created:
                yield from (f"{where}: {each}" for each in _of_origin(started, row.run_id, origin))
                given = defaults(Graph(started.scenario.dsl)) | _given(started, histories[row.run_id])
                if not same_json(created.inputs, given):
                    yield f"{where}: began with {created.inputs}, was given {given}"
            case other:
                yield f"{where}: never began, but {other}"
                continue
        yield from (f"{where}: {each}" for each in _outcome(started, history, histories[row.run_id]))


def _of_origin(started: Started, parent: str, origin: wire.Origin) -> Iterator[str]:
    found = (origin.parent_run_id, origin.parent_node_run_id, origin.root_run_id, origin.depth)
    wanted = (parent, started.parent, started.root, started.depth)
    if found != wanted:
        yield f"comes from {found}, not {wanted}"


def _given(started: Started, parent: list[Recorded[Event]]) -> dict[str, Any]:
    waits = (each.event for each in parent if isinstance(each.event, wire.NodeWaiting))
    return next((wait.input or {}).get("inputs") or {} for wait in waits if wait.wait_id == started.id)


def _outcome(started: Started, history: list[Recorded[Event]], parent: list[Recorded[Event]]) -> Iterator[str]:
    """A node run that completed by itself while it waited for this child has the child's output."""
    waiting = False
    for each in parent:
        event = each.event
        if isinstance(event, wire.NodeWaiting) and event.node_run_id == started.parent:
            waiting = event.wait_id == started.id
        elif waiting and isinstance(event, Ended | wire.NodeRetryScheduled) and event.node_run_id == started.parent:
            yield from _agrees(event, history[-1].event)
            return
    yield "nothing came of it"


def _agrees(node: Event, child: Event) -> Iterator[str]:
    match node:
        case wire.NodeCompleted(error=None) if node.worker != BY_HAND:
            if not isinstance(child, wire.RunCompleted):
                yield f"its node completed, it ended with {child}"
            elif (child.output_text, True) != (node.output_text, same_json(child.output, node.output)):
                yield f"its output is {child.output}, that of its node {node.output}"
        case wire.NodeFailed() if isinstance(child, wire.RunCompleted) and node.error.code != "timeout":
            yield f"its node failed with {node.error}, it completed"


def pauses(world: World, histories: Histories) -> Iterator[str]:
    """While a run is paused nothing of it is handed out; a pause ends at most once."""
    for run_id in world.clients.started:
        held: set[str] = set()
        for each in histories.get(run_id, []):
            event = each.event
            match event:
                case wire.RunPaused():
                    if event.by in held:
                        yield f"{run_id}/{each.seq}: paused by {event.by} once more"
                    held.add(event.by)
                case wire.RunResumed():
                    if event.by not in held:
                        yield f"{run_id}/{each.seq}: resumed by {event.by} without a pause"
                    held.discard(event.by)
                case wire.NodeScheduled(ready=True) | wire.NodeDispatched() | wire.NodeStarted() if held:
                    yield f"{run_id}/{each.seq}: {event.type} under pause"
                case wire.NodeWaiting() if held and event.on != "timer":
                    yield f"{run_id}/{each.seq}: {event.type} for a {event.on} under pause"


RULES = (waits, tasks, children, pauses)
