"""What must hold in the history of one aggregate: pure functions that name what does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from schemas import human
from schemas import runtime as wire
from schemas.decider import Recorded
from schemas.messages import Event, derive

History = Sequence[Recorded[Event]]
NODE_ENDS = (wire.NodeCompleted, wire.NodeFailed, wire.NodeSkipped, wire.NodeCancelled)


def terminal_transitions(history: History) -> Iterator[str]:
    """I2: a run ends once, last of all; a node attempt ends once."""
    run_id = history[0].aggregate_id
    yield from _ends_once(history, "run", wire.TERMINAL_EVENTS)
    ended: set[str] = set()
    attempts: set[tuple[str, int]] = set()
    for each in history:
        event = each.event
        if isinstance(event, NODE_ENDS):
            if event.node_run_id in ended:
                yield f"node_run {event.node_run_id} ended again at seq {each.seq} of run {run_id}"
            ended.add(event.node_run_id)
        elif isinstance(event, wire.NodeRetryScheduled):
            attempt = (event.node_run_id, event.attempt)
            if event.node_run_id in ended or attempt in attempts:
                yield f"node_run {attempt[0]} attempt {attempt[1]} ended again at seq {each.seq} of run {run_id}"
            attempts.add(attempt)


def task_ends(history: History) -> Iterator[str]:
    """I2: a human task ends once, last of all."""
    return _ends_once(history, "human_task", human.TERMINAL_EVENTS)


def _ends_once(history: History, what: str, ends: tuple[type[Event], ...]) -> Iterator[str]:
    id = history[0].aggregate_id
    terminal = [each for each in history if isinstance(each.event, ends)]
    if len(terminal) > 1:
        yield f"{what} {id} ended {len(terminal)} times, at seq {[each.seq for each in terminal]}"
    elif terminal and terminal[0] is not history[-1]:
        yield f"{what} {id} went on to seq {history[-1].seq} after its end at seq {terminal[0].seq}"


def repeated_messages(history: History) -> Iterator[str]:
    """I3: what one message made stands together; a message that appears again was handled twice."""
    seen: set[str] = set()
    last = ""
    for each in history:
        if each.causation_id != last:
            if each.causation_id in seen:
                yield f"message {each.causation_id} acted again at seq {each.seq} of {each.aggregate_id}"
            seen.add(each.causation_id)
            last = each.causation_id


def sequence(history: History) -> Iterator[str]:
    """I4: seq is 1..n."""
    expected = 1
    for each in history:
        if each.seq != expected:
            yield f"{each.aggregate_id} has seq {each.seq} where {expected} was due"
        expected = each.seq + 1


def lease_tokens(history: History) -> Iterator[str]:
    """I7: each lease bears the next token, and who answered held the latest."""
    latest: dict[str, int] = {}
    for each in history:
        event = each.event
        match event:
            case wire.NodeScheduled(ready=True):
                latest[event.node_run_id] = 1
            case wire.NodeDispatched() | wire.NodeStarted() | wire.StepRequeued():
                due = latest.get(event.node_run_id, 0) + 1
                if event.lease_token != due:
                    yield f"{_place(each)}: lease token {event.lease_token} where {due} was due"
                latest[event.node_run_id] = event.lease_token
            case wire.NodeCompleted() | wire.NodeFailed():
                token = latest.get(event.node_run_id, 0)
                if event.lease_token != token:
                    yield f"{_place(each)}: ended with lease token {event.lease_token}, the latest was {token}"
                yield from _stale_answer(each, event.node_run_id, token)
            case wire.NodeRetryScheduled():
                yield from _stale_answer(each, event.node_run_id, latest.get(event.node_run_id, 0))


def _stale_answer(each: Recorded[Event], node_run_id: str, latest: int) -> Iterator[str]:
    """The id of an answer is derived from its token: it says whose answer was taken."""
    for token in range(1, latest):
        if each.causation_id == derive(node_run_id, f"result:{token}"):
            yield f"{_place(each)}: the answer of lease token {token} was taken, the latest was {latest}"


def _place(each: Recorded[Event]) -> str:
    return f"node_run {getattr(each.event, 'node_run_id', '')} at seq {each.seq} of run {each.aggregate_id}"


def derived_causes(history: History) -> set[str]:
    """The ids that answers and expiries of this aggregate's steps can have: they keep no inbox row."""
    latest: dict[str, int] = {}
    for each in history:
        event = each.event
        if isinstance(event, wire.NodeScheduled):
            latest[event.node_run_id] = 1
        elif isinstance(event, wire.NodeDispatched | wire.NodeStarted | wire.StepRequeued):
            latest[event.node_run_id] = event.lease_token
    return {
        derive(node_run_id, f"{what}:{token}")
        for node_run_id, count in latest.items()
        for token in range(1, count + 1)
        for what in ("result", "expire")
    }
