"""What must hold when everything has come to rest, checked from the store and the topics alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import orjson

from bus.records import event_record
from bus.store import Out
from infra.db import TableSpec
from infra.domains import EVOLVE
from projections.fold import FoldRows
from projections.runtime import BY_HAND, UNLISTED
from schemas import catalog as catalog_wire
from schemas import human as human_wire
from schemas import registry
from schemas import runtime as wire
from schemas.decider import Recorded
from schemas.envelope import decode_headers
from schemas.messages import Event
from schemas.topics import COMMANDS, EVENTS, REPLIES
from tests.simulation.interpreter import check
from tests.simulation.observed import observe
from tests.simulation.told import answers
from tests.simulation.waiting_invariants import RULES

if TYPE_CHECKING:
    from tests.simulation.world import World

Histories = dict[str, list[Recorded[Event]]]


def violations(world: World) -> list[str]:
    histories = histories_of(world)
    found: list[str] = []
    rules = (_letters, _sequences, _events_topic, _outbox, _outcomes, _replies, _ends, _tokens, _folds, _listed, *RULES)
    for rule in rules:
        found += [f"{rule.__name__.lstrip('_')}: {problem}" for problem in rule(world, histories)]
    forced = _forced(world)
    for run_id, started in world.clients.started.items():
        history = histories.get(run_id, [])
        if started.poisoned:
            found += _poisoned_end(history)
            continue
        if not history:
            continue  # A child that never began is another rule's.
        effects = answers(run_id, started.scenario, histories)
        differences = check(
            started.scenario.dsl, _inputs(history), run_id, observe(history, forced), effects, depth=started.depth
        )
        found += [f"interpreter: run {run_id}: {difference}" for difference in differences[:3]]
    return found


def _inputs(history: list[Recorded[Event]]) -> dict[str, Any]:
    created = history[0].event
    return created.inputs if isinstance(created, wire.RunCreated) else {}


def _forced(world: World) -> set[str]:
    """The ids of the commands that cancel by force."""
    found = set()
    for out in world.log.topic(COMMANDS):
        headers = dict(out.headers)  # Rubbish is there as well.
        if headers.get("ce_type") == b"runtime.cancel_run" and orjson.loads(out.body).get("force"):
            found.add(headers["ce_id"].decode())
    return found


def _listed(world: World, histories: Histories) -> Iterator[str]:
    """Whoever looks for steps finds those that somebody is to execute, and no others."""
    for row in world.database.tables["node_run"].values():
        run = world.database.tables["run"][row.run_id]
        waits = row.status == "queued" and not row.ready and row.leased_by is None and run.mode == "manual"
        if (row.listed == BY_HAND) != waits:
            yield f"node run {row.path} of a run that is {run.mode} is {row.status} and listed as {row.listed}"
        if row.listed not in (UNLISTED, BY_HAND) and not (row.ready and row.status == "queued"):
            yield f"node run {row.path} is {row.status} and listed"


def _poisoned_end(history: list[Recorded[Event]]) -> list[str]:
    """A run one of whose messages is a dead letter does not wait for it for ever."""
    match history[-1].event if history else None:
        case wire.RunFailed(error=error) if error.code in ("internal_error", "lease_lost"):
            return []
    return [f"poison: a run ended with {history[-1:]}"]


def histories_of(world: World) -> Histories:
    """The event log, decoded from what is stored, per aggregate in order of seq."""
    found: Histories = defaultdict(list)
    for (aggregate_id, _), logged in sorted(world.database.events.items()):
        event = registry.decode_event(logged.recorded.event.type, logged.body)
        found[aggregate_id].append(logged.recorded._replace(event=event))
    return found


def _letters(world: World, histories: Histories) -> Iterator[str]:
    """I12: what was bad is a dead letter once, and nothing else is one."""
    junk = set()
    for letter in world.database.letters.values():
        if letter.code != "poison":
            junk.add((letter.topic, letter.partition, letter.offset))
        if letter.code == "internal_error" or (letter.code == "poison" and letter.message_id not in _refused(world)):
            yield f"{letter.type} {letter.key}: {letter.code} {letter.detail}"
    if junk != world.clients.junk:
        yield f"dead letters of {sorted(junk)}, bad were {sorted(world.clients.junk)}"
    dead = {letter.message_id for letter in world.database.letters.values()}
    for request in world.clients.requests:
        if request.id in _refused(world) and request.id not in dead:
            yield f"{request.command} was refused by the database and is no dead letter"


def _refused(world: World) -> set[str]:
    return world.database.refused


def _sequences(world: World, histories: Histories) -> Iterator[str]:
    """I4 in the store."""
    for aggregate_id, history in histories.items():
        if [each.seq for each in history] != list(range(1, len(history) + 1)):
            yield f"{aggregate_id} has {[each.seq for each in history]}"


def _events_topic(world: World, histories: Histories) -> Iterator[str]:
    """I4 and I6 on the topic: first occurrences are 1..n in order, and each is what is stored."""
    firsts: dict[str, list[int]] = defaultdict(list)
    for out in world.log.topic(EVENTS):
        envelope = decode_headers(out.headers)
        logged = world.database.events.get((envelope.subject, envelope.sequence))
        if logged is None:
            yield f"{envelope.id} is on the topic and not in the store"
            continue
        expected = event_record(logged, world.partitions)
        if (expected.body, expected.headers, expected.key) != (out.body, out.headers, out.key):
            yield f"{envelope.id} is not on the topic as it is in the store"
        if envelope.sequence not in firsts[envelope.subject]:
            firsts[envelope.subject].append(envelope.sequence)
    for aggregate_id, history in histories.items():
        if firsts[aggregate_id] != [each.seq for each in history]:
            yield f"{aggregate_id} came as {firsts[aggregate_id]}, stored are {len(history)}"


def _outbox(world: World, histories: Histories) -> Iterator[str]:
    """I6: whatever a lane made has reached its topic, first occurrences in the lane's order."""
    places: dict[tuple[str, bytes], int] = {}
    for place, out in enumerate(world.log.topic(COMMANDS)):
        places.setdefault(_name(out), place)
    last: dict[tuple[int, int], int] = {}
    seen: set[tuple[str, bytes]] = set()
    for out in sorted(world.database.made, key=lambda out: (out.lane, out.position)):
        if out.topic != COMMANDS or _name(out) in seen:
            continue  # Seen: the same follow-up of a message that came twice.
        seen.add(_name(out))
        if _name(out) not in places:
            yield f"lane {out.lane} position {out.position} never reached {out.topic}"
        elif places[_name(out)] < last.get((out.lane, out.partition), -1):
            yield f"lane {out.lane} position {out.position} came out of order"
        else:
            last[out.lane, out.partition] = places[_name(out)]
    for lane, position in world.database.outbox:
        owner = world.assignment[lane].kernel.lanes.get(lane)
        if owner is None or position > owner.sent:
            yield f"the outbox still holds lane {lane} position {position}"


def _name(out: Out) -> tuple[str, bytes]:
    return out.key, dict(out.headers)["ce_id"]


def _outcomes(world: World, histories: Histories) -> Iterator[str]:
    """I1 and I3: a request has one outcome, and the effect that this says."""
    effects: dict[str, list[str]] = defaultdict(list)
    for history in histories.values():
        for each in history:
            effects[each.causation_id].append(each.event.type)
    for request in world.clients.requests:
        outcome = world.database.outcomes.get(request.id)
        made = effects[request.id]
        expected = ("failed",) if request.id in world.database.refused else ("succeeded", "rejected")
        if outcome is not None and outcome.deferred and outcome.status == "failed":
            if made != _BEGUN:
                yield f"{request.command} failed later and made {made}"
            continue
        if outcome is None or outcome.status not in expected:
            yield f"{request.command} has outcome {outcome}"
        elif outcome.status != "succeeded":
            if made or isinstance(request.command, wire.CreateRun | catalog_wire.CreateVersion):
                yield f"{request.command} was rejected ({outcome.body!r}) and made {made}"
        elif not _made_once(request.command, made):
            yield f"{request.command} succeeded and made {made}"


_BEGUN = ["catalog.version_created", "catalog.check_started"]


def _made_once(command: object, made: list[str]) -> bool:
    match command:
        case wire.CreateRun():
            return made.count("runtime.run_created") == 1
        case wire.CancelRun():
            return made.count("runtime.run_cancelling") <= 1
        case wire.ExecuteRun() | wire.ExecuteNode() | wire.SetNodeStatus():
            return True
        case wire.PauseRun() | wire.ResumeRun():
            wanted = "runtime.run_paused" if isinstance(command, wire.PauseRun) else "runtime.run_resumed"
            return not made or (made[0] == wanted and made.count(wanted) == 1)
        case human_wire.TaskCommand():
            return len(made) <= 1
        case catalog_wire.CreateDefinition():
            return made == ["catalog.definition_created"]
        case catalog_wire.CreateVersion():
            return made == _BEGUN
    return False


def _replies(world: World, histories: Histories) -> Iterator[str]:
    """Whoever asked was told what is stored, however often he asked."""
    for out in world.log.topic(REPLIES):
        body = orjson.loads(out.body)
        stored = world.database.outcomes.get(body["command_id"])
        if stored is None or stored.status != body["status"] or orjson.loads(stored.body) != body["body"]:
            yield f"was told {body}, stored is {stored}"


def _ends(world: World, histories: Histories) -> Iterator[str]:
    """I2: one terminal event per run, at its end, and one end per node run."""
    for run_id in world.clients.started:
        events = [each.event for each in histories.get(run_id, [])]
        terminal = [event.type for event in events if isinstance(event, wire.TERMINAL_EVENTS)]
        if len(terminal) != 1 or not isinstance(events[-1], wire.TERMINAL_EVENTS):
            yield f"{run_id} ended with {terminal}, last {events[-1:]}"
        ended: set[str] = set()
        for event in events:
            if isinstance(event, wire.NodeCompleted | wire.NodeFailed | wire.NodeSkipped | wire.NodeCancelled):
                if event.node_run_id in ended:
                    yield f"{run_id}: node run {event.node_run_id} ended twice"
                ended.add(event.node_run_id)
    for row in world.database.tables["node_run"].values():
        run = world.database.tables["run"].get(row.run_id)
        if row.status not in wire.NODE_ENDED and run is not None and run.status in wire.RUN_ENDED:
            yield f"run {row.run_id} is {run.status}, its {row.path} {row.iteration} is {row.status}"
    for each in (record for history in histories.values() for record in history):
        started = world.clients.started.get(each.aggregate_id)
        if started is not None and each.tenant_id != started.tenant_id:
            yield f"an event of {each.aggregate_id} bears tenant {each.tenant_id}"


def _tokens(world: World, histories: Histories) -> Iterator[str]:
    """I7: who answered held the latest lease. An answer's worker is `<name>:<token>`."""
    for run_id in world.clients.started:
        latest: dict[str, int] = {}
        for each in histories.get(run_id, []):
            event = each.event
            match event:
                case wire.NodeScheduled(ready=True):
                    latest[event.node_run_id] = 1
                case wire.NodeDispatched() | wire.NodeStarted() | wire.StepRequeued():
                    if event.lease_token != latest.get(event.node_run_id, 0) + 1:
                        yield f"{run_id}/{each.seq}: token {event.lease_token} after {latest}"
                    latest[event.node_run_id] = event.lease_token
                case wire.NodeCompleted() | wire.NodeFailed() | wire.NodeRetryScheduled():
                    _, colon, token = event.worker.rpartition(":")
                    if colon and int(token) != latest.get(event.node_run_id):
                        yield f"{run_id}/{each.seq}: {event.worker} answered, token {latest} was the latest"


def _folds(world: World, histories: Histories) -> Iterator[str]:
    """I9: the tables are what a fresh fold of the event log gives."""
    memory = FoldRows()
    for history in histories.values():
        for each in history:
            memory.apply(EVOLVE[each.event.type], each)
    for spec in world.specs:
        folded = {id: row for (kind, id), row in memory.rows.items() if kind is spec.row}
        stored = world.database.tables[spec.name]
        for id in sorted({*folded, *stored}):
            difference = _difference(spec, folded.get(id), stored.get(id))
            if difference:
                yield f"{spec.name} {id}: {difference}"


def _difference(spec: TableSpec, folded: Any, stored: Any) -> str:
    if folded is None or stored is None:
        return "is folded but not stored" if stored is None else "is stored but not folded"
    return ", ".join(
        f"{each.name} is folded {getattr(folded, each.name)!r} and stored {getattr(stored, each.name)!r}"
        for each in fields(spec.row)
        if each.name not in spec.operational and getattr(folded, each.name) != getattr(stored, each.name)
    )
