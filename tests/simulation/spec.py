"""The rules of one run: what may be observed of it at each moment, and what that changes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from tests.simulation.answers import CHILD, EFFECTS, TASKS, WAITING, Answers, Key
from tests.simulation.loops import Edge, Flow, NodeRun
from tests.simulation.observations import (
    IDLE,
    Attempted,
    Began,
    CancelRequested,
    ChildEnd,
    Claimed,
    Effects,
    Ended,
    Failing,
    Failure,
    Observation,
    Path,
    Paused,
    Resumed,
    RunEnded,
    Withheld,
    same,
    same_end,
    same_json,
)

MAX_ITERATIONS_DEFAULT = 10
RUN = "run"
WAIT = "wait"
SKIP = "skip"


class Spec(Answers):
    """What the rules say about one run: `legal*` list what may be observed now, `observe` takes the next."""

    flow_type: type[Flow] = Flow

    def __init__(
        self,
        dsl: Mapping[str, Any],
        inputs: Mapping[str, Any],
        run_id: str,
        effects: Effects,
        prompt: bool = False,
        depth: int = 0,
    ) -> None:
        super().__init__(dsl, inputs, run_id, effects, depth)
        self.prompt = prompt
        self.flow = self.flow_type(self.graph)
        self.sinks: list[tuple[NodeRun, Ended]] = []
        self.claimed: set[Key] = set()
        self.out: set[Key] = set()  # Begun, not answered, not withheld.
        self.handed: set[Key] = set()  # Begun at any time.
        self.pauses: set[str] = set()
        self.shield: set[NodeRun] = set()  # The joins that passed early.
        self.now = 0  # Number of observations taken.
        self.enabled_at: dict[NodeRun, int] = {}
        self.boundary = -1  # Index of the last observation that began a transaction.
        self.ending: Literal["failing", "cancelling"] | None = None
        self.announced = False
        self.forced = False
        self.in_flight: set[NodeRun] = set()
        self.must_end: set[NodeRun] = set()
        self.lost: list[NodeRun] = []
        self.failed_run: NodeRun | None = None
        self.compensate = False
        self.compensations: list[NodeRun] | None = None
        self.dropped = False
        self.begun: list[NodeRun] = []  # When compensating was called off this may have been in flight.
        self.compensated = 0
        self.compensation_failed = False
        self.over = False
        self._note_enabled()

    # What may happen to a node run.

    def due(self, run: NodeRun) -> str | Failure:
        config = self.graph.config[run.node]
        if self._again(run):
            exceeded = run.at[-1] > config.get("max_iterations", MAX_ITERATIONS_DEFAULT)
            return Failure("max_iterations_exceeded", retryable=False) if exceeded else RUN
        arrived = self._arrived(run)
        taken, unresolved = arrived.count(True), arrived.count(None)
        if not arrived:
            return RUN
        policy = config.get("join_policy", "all_completed") if self.graph.kind[run.node] == "join" else ""
        if policy in ("any_completed", "n_completed"):
            needed = config["n"] if policy == "n_completed" else 1
            if taken >= needed:
                return RUN
            if taken and taken + unresolved < needed:
                return Failure("join_unreachable", retryable=False)
        if unresolved:
            return WAIT
        return RUN if taken else SKIP

    def _again(self, run: NodeRun) -> bool:
        return run.node in self.graph.bodies and run.at[-1] > 1

    def _arrived(self, run: NodeRun) -> list[bool | None]:
        return [self.flow.arrived.get((e.index, run.at)) for e in self.graph.forward_into(run.node)]

    def doomed(self, run: NodeRun) -> bool:
        """Every path from here to a sink meets a join that passed early."""
        if not self.shield:
            return False
        seen: set[str] = set()
        todo = [run.node]
        while todo:
            onward = self.graph.onward(todo.pop())
            if not onward:
                return False
            for node in onward - seen:
                seen.add(node)
                if NodeRun(node, self._met_at(run, node)) not in self.shield:
                    todo.append(node)
        return True

    def _met_at(self, run: NodeRun, node: str) -> tuple[int, ...]:
        """The iteration at which a path from `run` meets `node`: as in shared loops, 1 in loops it enters."""
        shared = sum(head in self.graph.loops[node] for head in self.graph.loops[run.node])
        return run.at[:shared] + (1,) * (len(self.graph.loops[node]) - shared)

    def legal(self, run: NodeRun) -> list[Ended | Attempted]:
        """The observations of this open node run that are allowed now."""
        if self.ending:
            return self._legal_withdrawn(run)
        due, doomed = self.due(run), self.doomed(run)
        skipped, cancelled = _idle(run, "skipped"), _idle(run, "cancelled")
        if due == SKIP or (doomed and due == WAIT):
            return [skipped]
        if due == WAIT:
            return []
        if doomed:
            return [cancelled] if self._surely_started(run) else [cancelled, skipped]
        if not self._may_answer(run.node, run.node, run):
            return []
        return self._outcomes(run, may_retry=True)

    def _may_answer(self, path: Path, node: str, run: NodeRun) -> bool:
        """Whether an attempt that is due may end now: what waits has begun, and under pause nothing begins."""
        kind, key = self.graph.kind[node], (path, run.iteration)
        if key in self.out or key in self.claimed or self.refusal(path, node, run):
            return True
        return kind not in WAITING and not self.pauses

    def refusal(self, path: Path, node: str, run: NodeRun) -> Failure | None:
        """Why a node run fails instead of being begun."""
        due = self.due(run) if path == node else RUN
        if isinstance(due, Failure):
            return due
        return None if self.pauses or (path, run.iteration) in self.out else self.no_child(node)

    def _outcomes(self, run: NodeRun, *, may_retry: bool) -> list[Ended | Attempted]:
        refusal = self.refusal(run.node, run.node, run)
        edges = bool(self._failed_edges(run))
        outcome = self.outcome(run, run.node, run.node, refusal, may_retry=may_retry, failed_edges=edges)
        return [] if outcome is None else [outcome]

    def _legal_withdrawn(self, run: NodeRun) -> list[Ended | Attempted]:
        if run not in self.in_flight:
            return [_idle(run, "skipped")] if self.doomed(run) else []
        legal: list[Ended | Attempted] = [_idle(run, "cancelled")]
        if self.doomed(run):
            return legal if run in self.must_end else [*legal, _idle(run, "skipped")]
        kind, key = self.graph.kind[run.node], (run.node, run.iteration)
        if kind == CHILD and key in self.out and not self.forced:
            legal = [*self._answers_late(run)]
        elif kind in EFFECTS and self.due(run) == RUN:
            answers = self._answers_late(run)
            lost = [
                replace(a, status="failed", output=None, output_text=None, error_code="lease_lost") for a in answers
            ]
            return [*legal, *answers, *lost]
        return legal + (self._vanished(run) if key in self.claimed else [])

    def _answers_late(self, run: NodeRun) -> list[Ended]:
        outcomes = self._outcomes(run, may_retry=False)
        return [replace(one, leased=True) for one in outcomes if isinstance(one, Ended)]

    def _vanished(self, run: NodeRun) -> list[Ended | Attempted]:
        """Whoever claimed it by hand was not heard of again, or not in time."""
        attempt = self.attempt(run.node, run.iteration)
        codes = ("lease_lost", "timeout") if self.graph.config[run.node].get("timeout_seconds") else ("lease_lost",)
        return [Ended(run.node, run.iteration, "failed", attempt, None, None, code, leased=True) for code in codes]

    def _surely_started(self, run: NodeRun) -> bool:
        if (run.node, run.iteration) in self.out:
            return True
        return self._asynchronous(run) and self.enabled_at[run] <= self.boundary

    def _asynchronous(self, run: NodeRun) -> bool:
        """Whether it waits for something, so that its next observation begins a transaction."""
        config, key = self.graph.config[run.node], (run.node, run.iteration)
        waits = self.graph.kind[run.node] in EFFECTS | WAITING and not self.refusal(run.node, run.node, run)
        return run in self.enabled_at and (waits or config.get("delay_seconds", 0) > 0 or key in self.failed_attempts)

    def _failed_edges(self, run: NodeRun) -> list[Edge]:
        return [e for e in self.graph.out(run.node) if e.label == "failed" and self._passable(run, e)]

    def _passable(self, run: NodeRun, edge: Edge) -> bool:
        """Past max_iterations the head's edges into the body cannot be taken."""
        exceeded = self._again(run) and isinstance(self.due(run), Failure)
        return not exceeded or edge.target not in self.graph.bodies[run.node]

    def overdue(self) -> list[NodeRun]:
        """The node runs that wait for nothing: these end before the next transaction begins."""
        if self.ending:
            return []
        idle = [run for run in sorted(self.flow.open) if self.doomed(run) or not self._asynchronous(run)]
        return [run for run in idle if self.legal(run)]

    # Compensation.

    def _queue(self) -> list[NodeRun]:
        """The node runs still to be compensated, in order."""
        if self.dropped:
            return self.begun
        if self.compensations is not None:
            return self.compensations
        if self.ending == "cancelling" and not self.compensate:
            return []
        first = [self.failed_run] if self.failed_run else []
        order = [*first, *reversed(self.lost), *(run for run, _ in reversed(self.completed))]
        return [run for run in order if self.graph.config[run.node].get("compensation_node_id")]

    def next_compensation(self) -> tuple[NodeRun, str, Path] | None:
        """For which node run the next compensation is due, its node and path."""
        queue = self._queue()
        if not self.ending or not queue or self.must_end & self.flow.open or self._unannounced():
            return None
        node = self.graph.config[queue[0].node]["compensation_node_id"]
        return queue[0], node, f"{queue[0].node}/{node}"

    def legal_compensation(self) -> list[Ended | Attempted]:
        due = self.next_compensation()
        if due is None or not (self.dropped or self._may_answer(due[2], due[1], due[0])):
            return []
        run, node, path = due
        refusal = self.refusal(path, node, run)
        answer = self.outcome(run, path, node, refusal, may_retry=not self.dropped, failed_edges=False)
        legal = [] if answer is None else [answer]
        if not self.dropped:
            return legal
        late = [replace(one, leased=True) for one in legal if isinstance(one, Ended)]
        return [*late, replace(_idle(run, "cancelled"), path=path)]

    def _unannounced(self) -> bool:
        return self.ending == "failing" and not self.announced

    # The end of the run.

    def legal_end(self) -> RunEnded | None:
        if self.over or self._unannounced():
            return None
        if not self.ending:
            return None if self.flow.open else RunEnded("completed", *self._result(), None)
        if self.must_end & self.flow.open or (self._queue() and not self.dropped):
            return None
        if self.compensation_failed:
            return RunEnded("failed", None, None, "compensation_failed")
        if self.ending == "cancelling":
            return RunEnded("cancelled", None, None, None)
        assert self.cause
        if self.compensated:
            return RunEnded("compensated", None, None, self.cause.error_code)
        return RunEnded("failed", None, None, self.cause.error_code)

    def _result(self) -> tuple[Any, str | None]:
        completed = self.completed
        texts = [e.output_text for run, e in completed if self.graph.kind[run.node] == "answer"]
        ends = [e.output or {} for run, e in completed if self.graph.kind[run.node] == "end"]
        output: Any = {}
        if ends:
            output = {key: value for end in ends for key, value in end.items()}
        elif len({run.node for run, _ in self.sinks}) > 1:
            output = {run.node: ended.output for run, ended in self.sinks}
        elif completed:
            output = (self.sinks or completed)[-1][1].output
        return output, texts[-1] if texts else None

    # Taking observations.

    def observe(self, seen: Observation) -> list[str]:
        """Takes the next observation and says how it differs from the rules; it is applied as it was seen."""
        where = f"#{self.now} {seen}"
        if self.over:
            return [f"{where}: after the end of the run"]
        match seen:
            case Claimed():
                self.claimed.add((seen.path, seen.iteration))
                return [f"{where}: under pause"] if self.pauses else []
            case Began() | Withheld():
                return self._observe_handing(where, seen)
            case Paused() | Resumed():
                return self._observe_pause(where, seen)
            case Ended() | Attempted():
                differences = self._observe_node(where, seen)
            case _:
                differences = self._observe_run(where, seen)
        self.now += 1
        self._note_enabled()
        return differences

    def _observe_pause(self, where: str, seen: Paused | Resumed) -> list[str]:
        legal = (seen.by in self.pauses) == isinstance(seen, Resumed)
        self.pauses ^= {seen.by}
        return [] if legal else [f"{where}: changes nothing, paused by {sorted(self.pauses)}"]

    def _observe_handing(self, where: str, seen: Began | Withheld) -> list[str]:
        key = (seen.path, seen.iteration)
        if isinstance(seen, Withheld):
            held = key in self.out
            self.out.discard(key)
            return [f"{where}: without a pause"] if held and not self.pauses else []
        differences = self._why_not_begun(key, seen)
        self.out.add(key)
        self.handed.add(key)
        self.children += seen.on == "run"
        return [f"{where}: {difference}" for difference in differences]

    def _why_not_begun(self, key: Key, seen: Began) -> list[str]:
        if self.pauses:
            return ["under pause"]
        if key in self.out:
            return ["it has begun already"]
        place = self._place(key)
        if place is None:
            return ["its turn has not come"]
        expected = self._beginning(key, *place)
        if isinstance(expected, Failure):
            return [f"expected {expected.code}"]
        same = replace(seen, inputs=None) == replace(expected, inputs=None)
        same = same and (seen.on != "run" or same_json(seen.inputs, expected.inputs))
        return [] if same else [f"expected {expected}"]

    def begun_now(self, path: Path, iteration: str) -> Began | None:
        """The attempt of this that may be handed out now."""
        key = (path, iteration)
        place = None if self.pauses or key in self.out else self._place(key)
        expected = self._beginning(key, *place) if place else None
        return None if isinstance(expected, Failure) else expected

    def _beginning(self, key: Key, run: NodeRun, node: str) -> Began | Failure:
        path, kind = key[0], self.graph.kind[node]
        if kind not in EFFECTS | WAITING:
            return Failure("a node of its kind is not handed out")
        if refusal := self.refusal(path, node, run):
            return refusal
        inputs = self.inputs_of_child(node, None if path == node else run) if kind == CHILD else None
        return Began(*key, self.attempt(*key), "task" if kind in TASKS else "run" if kind == CHILD else "step", inputs)

    def _place(self, key: Key) -> tuple[NodeRun, str] | None:
        """The node run that may begin, and the node that begins for it."""
        if "/" in key[0]:
            due = self.next_compensation()
            return (due[0], due[1]) if due and not self.dropped and (due[2], due[0].iteration) == key else None
        run = self._open(key)
        idle = run is None or self.ending or self.due(run) != RUN or self.doomed(run)
        return None if run is None or idle else (run, run.node)

    def _open(self, key: Key) -> NodeRun | None:
        return next((run for run in self.flow.open if (run.node, run.iteration) == key), None)

    def _observe_run(self, where: str, seen: Failing | CancelRequested | RunEnded) -> list[str]:
        match seen:
            case Failing():
                legal = self.ending == "failing" and not self.announced
                self.announced = True
                return [] if legal else [f"{where}: the run is not failing just now"]
            case CancelRequested():
                legal = self.ending is None or seen.force
                late = self._late(where)
                self._cancel(seen)
                return late if legal else [f"{where}: should have been refused"]
            case RunEnded():
                expected = self.legal_end()
                self.over = True
                if expected is None:
                    return [f"{where}: too early, {self.unfinished()}"]
                return [] if same_end(seen, expected) else [f"{where}: expected {expected}"]

    def _observe_node(self, where: str, seen: Ended | Attempted) -> list[str]:
        if "/" in seen.path:
            return self._observe_compensation(where, seen)
        run = self._open((seen.path, seen.iteration))
        if run is None:
            return [f"{where}: no such node run is open"]
        legal = [] if self.compensations is not None else self._legal_seen(run, seen)
        differences = []
        if self._asynchronous(run) and not (isinstance(seen, Ended) and seen.status in IDLE):
            self.boundary = self.now
            differences += self._late(where)
        if not any(same(seen, one, leased=self.ending is not None) for one in legal):
            differences.append(f"{where}: expected {' or '.join(map(str, legal)) or self._why_not(run)}")
        if isinstance(seen, Attempted):
            self._retry(seen)
        else:
            self._apply(run, seen)
        return differences

    def _legal_seen(self, run: NodeRun, seen: Ended | Attempted) -> list[Ended | Attempted]:
        """What somebody outside says of an open node run counts whether or not it has begun, and under pause.

        While the run unwinds it counts of a child run that is still awaited.
        """
        if not isinstance(seen, Ended) or not seen.by_hand:
            return self.legal(run)
        if self.ending:
            awaited = self.graph.kind[run.node] == CHILD and (run.node, run.iteration) in self.out and not self.forced
            return [seen] if awaited else self.legal(run)
        if self.doomed(run) or self.due(run) != RUN:
            return self.legal(run)
        return [seen] if self.graph.kind[run.node] in WAITING else self._outcomes(run, may_retry=True)

    def _retry(self, seen: Attempted) -> None:
        self.failed_attempts[seen.path, seen.iteration] = seen.attempt
        self.out.discard((seen.path, seen.iteration))

    def _late(self, where: str) -> list[str]:
        late = self.overdue() if self.prompt else []
        return [f"{where}: {run.node} {run.iteration} should have ended before" for run in late]

    def _observe_compensation(self, where: str, seen: Ended | Attempted) -> list[str]:
        by_hand = isinstance(seen, Ended) and seen.by_hand and (seen.path, seen.iteration) in self.out
        legal = [seen] if by_hand else self.legal_compensation()
        self.compensations = queue = self._queue()
        differences = []
        if not any(same(seen, one) for one in legal):
            expected = " or ".join(map(str, legal)) or f"no compensation now, {self.unfinished()}"
            differences.append(f"{where}: expected {expected}")
        if isinstance(seen, Attempted):
            self._retry(seen)
            return differences
        run = next((r for r in queue if self._compensation_of(r) == (seen.path, seen.iteration)), None)
        if run is not None:
            queue.remove(run)
            if self.dropped:
                queue.clear()
            self.compensated += 1
            self.compensation_failed |= seen.status == "failed"
            self.learn(run, self.graph.config[run.node]["compensation_node_id"], seen)
        return differences

    def _compensation_of(self, run: NodeRun) -> Key:
        return f"{run.node}/{self.graph.config[run.node]['compensation_node_id']}", run.iteration

    def _apply(self, run: NodeRun, seen: Ended) -> None:
        taken = self._taken(run, seen)
        handed = self._was_handed_out(run, seen)
        self.flow.open.remove(run)
        self.out.discard((run.node, run.iteration))
        if seen.status not in IDLE:
            self.learn(run, run.node, seen)
        if seen.status == "completed":
            if not taken:
                self.sinks.append((run, seen))
            if self.graph.kind[run.node] == "join" and seen.error_code is None:
                self._pass(run)
        if self.ending:
            if seen.error_code == "lease_lost":
                self.lost.append(run)
        elif seen.status == "failed" and not taken:
            self.cause, self.failed_run = seen, run if handed else None
            self._withdraw("failing")
        else:
            self.flow.resolve(run, taken)

    def _was_handed_out(self, run: NodeRun, seen: Ended) -> bool:
        """Whether it ever was with an executor, a person or a child run: its effect may have happened."""
        kind, key = self.graph.kind[run.node], (run.node, run.iteration)
        if kind in EFFECTS:
            return self.refusal(run.node, run.node, run) is None
        if key not in self.handed:
            return key in self.claimed
        answer = self.effects(run.node, run.iteration, seen.attempt)
        return seen.attempt > 1 or not (isinstance(answer, ChildEnd) and answer.status == "refused")

    def _taken(self, run: NodeRun, seen: Ended) -> set[int]:
        match seen.status:
            case "completed":
                labels: set[str | None] = {None, self.route(run, seen)}
            case "failed":
                labels = {"failed"}
            case _:
                return set()
        return {e.index for e in self.graph.out(run.node) if e.label in labels and self._passable(run, e)}

    def _pass(self, join: NodeRun) -> None:
        if not self._again(join) and None in self._arrived(join):
            self.shield.add(join)

    def _cancel(self, seen: CancelRequested) -> None:
        if self.ending is None:
            self.boundary = self.now if self.now else self.boundary
            self._withdraw("cancelling")
        else:
            self.begun = self._queue()[:1]
            self.dropped = not seen.compensate
            self.ending = "cancelling"
        self.forced |= seen.force
        self.compensate = seen.compensate

    def _withdraw(self, ending: Literal["failing", "cancelling"]) -> None:
        self.ending = ending
        self.in_flight = {run for run in self.flow.open if self.due(run) not in (WAIT, SKIP)}
        self.must_end = {run for run in self.in_flight if self._surely_started(run)}

    def _note_enabled(self) -> None:
        for run in self.flow.open - set(self.enabled_at):
            if self.due(run) == RUN:
                self.enabled_at[run] = self.now

    # Explanations.

    def _why_not(self, run: NodeRun) -> str:
        if self.ending:
            return f"nothing: the run is {self.ending} and this was not in flight, or has not been answered"
        edges = {e.source: self.flow.arrived.get((e.index, run.at)) for e in self.graph.forward_into(run.node)}
        begun = (run.node, run.iteration) in self.out
        return f"nothing yet: its edges are {edges}, begun: {begun}, paused by {sorted(self.pauses)}"

    def unfinished(self) -> str:
        if not self.ending:
            return f"open: {sorted(f'{r.node} {r.iteration}' for r in self.flow.open)}"
        left = sorted(f"{r.node} {r.iteration}" for r in self.must_end & self.flow.open)
        queue = [" ".join(self._compensation_of(r)) for r in self._queue()]
        return f"in flight: {left}, to compensate: {queue}, failing was announced: {self.announced}"


def _idle(run: NodeRun, status: Literal["skipped", "cancelled"]) -> Ended:
    return Ended(run.node, run.iteration, status, 1, None, None, None)
