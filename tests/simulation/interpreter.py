"""An independent interpreter of the workflow DSL: it judges an observed run, node run by node run.

It shares no code with the engine except the evaluation of expressions and templates. Analysis is brute force.
`check` is fed what was observed, in order, and compares each observation with what the rules allow at that
moment; `run` drives the same rules by itself with random legal moves.

Readings chosen where the rules leave room:
- An early join (passed before all its edges resolved) withdraws every node run whose paths to a sink all meet
  early joins; a join that passes with all its edges resolved withdraws nothing, then or later. A path that meets
  a back edge goes on at the exits of that loop. What an early join covers stays so in later iterations.
- A node run that was certainly started (an asynchronous observation came after it was enabled) has to be
  cancelled when it is withdrawn; one that became able to run in the same breath may be skipped, or after a
  failure stay without an end.
- `inputs.*` are the inputs as given, with the defaults of the start nodes that the run begins at.
- No completed `end`: the output is that of the sinks, completed node runs (in loop bodies too) none of whose
  edges was taken; of one node the last counts; without a sink, that of the last completed node run.
- No case of an if-else matches: `condition_result` false and route "false".
- `nodes.X` is X's last completed run, so a failed node, handled or not, is not seen there.
- A join with a delay passes, and withdraws, when the delay is over.
- A value that cannot be evaluated fails its node with `evaluation_failed`, which obeys the retry policy.
- While the run is failing or cancelled nothing is retried and nothing is skipped; `on_error` still holds. A
  leased step that never answers ends `failed` with `lease_lost` and is compensated after the failed node, the
  last one first.
- A second failure while the run is failing is not compensated.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from schemas.workflow.expressions import EvaluationError
from tests.simulation.loops import Edge, Flow, Graph, NodeRun
from tests.simulation.observations import (
    IDLE,
    Attempted,
    CancelRequested,
    Claimed,
    Effects,
    Ended,
    Failing,
    Failure,
    Observation,
    Path,
    RunEnded,
    Success,
    same,
    same_end,
)
from tests.simulation.pure_nodes import PURE, PureNodes

__all__ = [
    "MAX_ITERATIONS_DEFAULT",
    "RUN",
    "SKIP",
    "Attempted",
    "CancelRequested",
    "Effects",
    "Ended",
    "Failing",
    "Failure",
    "Observation",
    "Path",
    "RunEnded",
    "Spec",
    "Success",
    "check",
    "drive",
    "run",
]

EFFECTS = frozenset({"code"})  # Every other kind that is not pure fails with `node_type_unavailable`.
MAX_ITERATIONS_DEFAULT = 10
DIFFERENCES_MAX = 20
MOVES_MAX = 2_000
RUN = "run"
WAIT = "wait"
SKIP = "skip"


class Spec:
    """What the rules say about one run: `legal*` list what may be observed now, `observe` takes the next."""

    flow_type: type[Flow] = Flow

    def __init__(
        self,
        dsl: Mapping[str, Any],
        inputs: Mapping[str, Any],
        run_id: str,
        effects: Effects,
        prompt: bool = False,
    ) -> None:
        self.prompt = prompt
        self.graph = Graph(dsl)
        self.flow = self.flow_type(self.graph)
        self.pure = PureNodes(self.graph)
        self.inputs = {**self._defaults(), **inputs}
        self.run_id = run_id
        self.effects = effects
        self.state: dict[str, Any] = {}
        self.completed: list[tuple[NodeRun, Ended]] = []
        self.sinks: list[tuple[NodeRun, Ended]] = []
        self.failed_attempts: dict[tuple[Path, str], int] = {}
        self.claimed: set[tuple[Path, str]] = set()
        self.shield: set[NodeRun] = set()  # The joins that passed early.
        self.now = 0  # Number of observations taken.
        self.enabled_at: dict[NodeRun, int] = {}
        self.boundary = -1  # Index of the last observation that began a transaction.
        self.ending: Literal["failing", "cancelling"] | None = None
        self.announced = False
        self.cause: Ended | None = None
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

    def _defaults(self) -> dict[str, Any]:
        starts = [node for node in self.graph.starts if self.graph.kind[node] == "start"]
        declared = [each for node in starts for each in (self.graph.config[node].get("inputs") or {}).items()]
        return {name: spec["default"] for name, spec in declared if "default" in spec}

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
        return [self._outcome(run, run.node, run.node, may_retry=True)]

    def _legal_withdrawn(self, run: NodeRun) -> list[Ended | Attempted]:
        if run not in self.in_flight:
            return [_idle(run, "skipped")] if self.doomed(run) else []
        legal: list[Ended | Attempted] = [_idle(run, "cancelled")]
        if self.doomed(run):
            return legal if run in self.must_end else [*legal, _idle(run, "skipped")]
        if self.graph.kind[run.node] in EFFECTS and self.due(run) == RUN:
            answer = self._outcome(run, run.node, run.node, may_retry=False)
            assert isinstance(answer, Ended)
            lost = replace(answer, status="failed", output=None, output_text=None, error_code="lease_lost")
            legal += [replace(answer, leased=True), replace(lost, leased=True)]
        elif (run.node, run.iteration) in self.claimed:
            legal += self._vanished(run)
        return legal

    def _vanished(self, run: NodeRun) -> list[Ended | Attempted]:
        """Whoever claimed it by hand was not heard of again, or not in time."""
        attempt = self.failed_attempts.get((run.node, run.iteration), 0) + 1
        codes = ("lease_lost", "timeout") if self.graph.config[run.node].get("timeout_seconds") else ("lease_lost",)
        return [Ended(run.node, run.iteration, "failed", attempt, None, None, code, leased=True) for code in codes]

    def _surely_started(self, run: NodeRun) -> bool:
        return self._asynchronous(run) and self.enabled_at[run] <= self.boundary

    def _asynchronous(self, run: NodeRun) -> bool:
        """Whether it waits for something, so that its next observation begins a transaction."""
        waits = self.graph.kind[run.node] in EFFECTS or self.graph.config[run.node].get("delay_seconds", 0) > 0
        retried = (run.node, run.iteration) in self.failed_attempts
        return run in self.enabled_at and (waits or retried)

    def _outcome(self, run: NodeRun, path: Path, node: str, *, may_retry: bool) -> Ended | Attempted:
        """How the next attempt of `node` ends, on behalf of `run`; `node` differs for a compensation."""
        iteration = run.iteration
        attempt = self.failed_attempts.get((path, iteration), 0) + 1
        match self._answer(run, path, node, attempt):
            case Success(output, text):
                return Ended(path, iteration, "completed", attempt, output, text, None)
            case Failure(code, retryable):
                config = self.graph.config[node]
                attempts_max = (config.get("retry_policy") or {}).get("max_attempts", 1)
                if may_retry and retryable and attempt < attempts_max:
                    return Attempted(path, iteration, attempt, code)
                failed = Ended(path, iteration, "failed", attempt, None, None, code)
                if path == node and self._failed_edges(run):
                    return failed
                match config.get("on_error", "fail"):
                    case "continue":
                        return replace(failed, status="completed", output={})
                    case "default":
                        return replace(failed, status="completed", output=config.get("default_output", {}))
                return failed

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

    # What a node answers.

    def _answer(self, run: NodeRun, path: Path, node: str, attempt: int) -> Success | Failure:
        due = self.due(run) if path == node else RUN
        if isinstance(due, Failure):
            return due
        kind = self.graph.kind[node]
        if kind in EFFECTS:
            return self.effects(path, run.iteration, attempt)
        if kind not in PURE:
            return Failure("node_type_unavailable", retryable=False)
        try:
            return self.pure.evaluate(node, self._scope(node, None if path == node else run))
        except EvaluationError:
            return Failure("evaluation_failed")

    def _scope(self, node: str, compensates: NodeRun | None) -> dict[str, Any]:
        nodes: dict[str, Any] = {}
        for run, ended in self.completed:
            if compensates and run.at != self._near(compensates, run):
                continue  # A compensation sees the outputs of its own iteration.
            error = {"code": ended.error_code} if ended.error_code else None
            nodes[run.node] = {"output": ended.output, "text": ended.output_text, "error": error}
        current = {"node_id": node} | ({"compensates": compensates.node} if compensates else {})
        return {
            "state": self.state,
            "inputs": self.inputs,
            "nodes": nodes,
            "current": current,
            "run": {"id": self.run_id},
        }

    def _near(self, compensates: NodeRun, run: NodeRun) -> tuple[int, ...]:
        shared = sum(head in self.graph.loops[run.node] for head in self.graph.loops[compensates.node])
        return compensates.at[:shared] + run.at[shared:]

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

    def legal_compensation(self) -> list[Ended | Attempted]:
        queue = self._queue()
        if not self.ending or not queue or self.must_end & self.flow.open or self._unannounced():
            return []
        node = self.graph.config[queue[0].node]["compensation_node_id"]
        answer = self._outcome(queue[0], f"{queue[0].node}/{node}", node, may_retry=not self.dropped)
        if self.dropped and isinstance(answer, Ended):
            idle = replace(_idle(queue[0], "cancelled"), path=answer.path)
            return [replace(answer, leased=True), idle]
        return [answer]

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
        texts = [e.output_text for run, e in self.completed if self.graph.kind[run.node] == "answer"]
        ends = [e.output or {} for run, e in self.completed if self.graph.kind[run.node] == "end"]
        output: Any = {}
        if ends:
            output = {key: value for end in ends for key, value in end.items()}
        elif len({run.node for run, _ in self.sinks}) > 1:
            output = {run.node: ended.output for run, ended in self.sinks}
        elif self.completed:
            output = (self.sinks or self.completed)[-1][1].output
        return output, texts[-1] if texts else None

    # Taking observations.

    def observe(self, seen: Observation) -> list[str]:
        """Takes the next observation and says how it differs from the rules; it is applied as it was seen."""
        where = f"#{self.now} {seen}"
        if self.over:
            return [f"{where}: after the end of the run"]
        if isinstance(seen, Claimed):
            self.claimed.add((seen.path, seen.iteration))
            return []
        if isinstance(seen, Ended | Attempted):
            differences = self._observe_node(where, seen)
        else:
            differences = self._observe_run(where, seen)
        self.now += 1
        self._note_enabled()
        return differences

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
                    return [f"{where}: too early, {self._unfinished()}"]
                return [] if same_end(seen, expected) else [f"{where}: expected {expected}"]

    def _observe_node(self, where: str, seen: Ended | Attempted) -> list[str]:
        if "/" in seen.path:
            return self._observe_compensation(where, seen)
        run = next((r for r in self.flow.open if (r.node, r.iteration) == (seen.path, seen.iteration)), None)
        if run is None:
            return [f"{where}: no such node run is open"]
        legal = [] if self.compensations is not None else self.legal(run)
        differences = []
        if self._asynchronous(run) and not (isinstance(seen, Ended) and seen.status in IDLE):
            self.boundary = self.now
            differences += self._late(where)
        if not any(same(seen, one, leased=self.ending is not None) for one in legal):
            differences.append(f"{where}: expected {' or '.join(map(str, legal)) or self._why_not(run)}")
        if isinstance(seen, Attempted):
            self.failed_attempts[seen.path, seen.iteration] = seen.attempt
        else:
            self._apply(run, seen)
        return differences

    def _late(self, where: str) -> list[str]:
        late = self.overdue() if self.prompt else []
        return [f"{where}: {run.node} {run.iteration} should have ended before" for run in late]

    def _observe_compensation(self, where: str, seen: Ended | Attempted) -> list[str]:
        legal = self.legal_compensation()
        self.compensations = queue = self._queue()
        differences = []
        if not any(same(seen, one) for one in legal):
            expected = " or ".join(map(str, legal)) or f"no compensation now, {self._unfinished()}"
            differences.append(f"{where}: expected {expected}")
        if isinstance(seen, Attempted):
            self.failed_attempts[seen.path, seen.iteration] = seen.attempt
            return differences
        run = next((r for r in queue if self._compensation_of(r) == (seen.path, seen.iteration)), None)
        if run is not None:
            queue.remove(run)
            if self.dropped:
                queue.clear()
            self.compensated += 1
            self.compensation_failed |= seen.status == "failed"
            self._learn(self.graph.config[run.node]["compensation_node_id"], seen)
        return differences

    def _compensation_of(self, run: NodeRun) -> tuple[Path, str]:
        return f"{run.node}/{self.graph.config[run.node]['compensation_node_id']}", run.iteration

    def _apply(self, run: NodeRun, seen: Ended) -> None:
        self.flow.open.remove(run)
        taken = self._taken(run, seen)
        if seen.status == "completed":
            self.completed.append((run, seen))
            self._learn(run.node, seen)
            if not taken:
                self.sinks.append((run, seen))
            if self.graph.kind[run.node] == "join" and seen.error_code is None:
                self._pass(run)
        if self.ending:
            if seen.error_code == "lease_lost":
                self.lost.append(run)
        elif seen.status == "failed" and not taken:
            self.cause, self.failed_run = seen, run
            self._withdraw("failing")
        else:
            self.flow.resolve(run, taken)

    def _taken(self, run: NodeRun, seen: Ended) -> set[int]:
        match seen.status:
            case "completed":
                labels: set[str | None] = {None}
                if seen.error_code is None and isinstance(seen.output, dict):
                    labels.add(seen.output.get("route") if self.graph.kind[run.node] == "if-else" else None)
            case "failed":
                labels = {"failed"}
            case _:
                return set()
        return {e.index for e in self.graph.out(run.node) if e.label in labels and self._passable(run, e)}

    def _learn(self, node: str, seen: Ended) -> None:
        if seen.status != "completed" or seen.error_code is not None or not isinstance(seen.output, dict):
            return
        match self.graph.kind[node]:
            case "assigner":
                self.state = {**self.state, **seen.output.get("state_updates", {})}
            case "start":
                self.state = {**self.state, **seen.output}

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
            return f"nothing: the run is {self.ending} and this was not in flight"
        edges = {e.source: self.flow.arrived.get((e.index, run.at)) for e in self.graph.forward_into(run.node)}
        return f"nothing yet: its edges are {edges}"

    def _unfinished(self) -> str:
        if not self.ending:
            return f"open: {sorted(f'{r.node} {r.iteration}' for r in self.flow.open)}"
        left = sorted(f"{r.node} {r.iteration}" for r in self.must_end & self.flow.open)
        queue = [" ".join(self._compensation_of(r)) for r in self._queue()]
        return f"in flight: {left}, to compensate: {queue}, failing was announced: {self.announced}"


def _idle(run: NodeRun, status: Literal["skipped", "cancelled"]) -> Ended:
    return Ended(run.node, run.iteration, status, 1, None, None, None)


def check(
    dsl_json: Mapping[str, Any],
    inputs: Mapping[str, Any],
    run_id: str,
    observations: Sequence[Observation],
    effects: Effects,
    *,
    prompt: bool = False,
) -> list[str]:
    """The differences between a run observed from start to end and the rules; empty if they agree.

    `prompt`: whatever waits for nothing (pure nodes, skips, withdrawals by a join) has to end before the next
    effect, delay, retry or cancel is observed. It holds only where a transaction advances to its end: with no
    pause, no manual steps, and fewer pure nodes in a row than one message may advance.
    """
    spec = Spec(dsl_json, inputs, run_id, effects, prompt)
    differences: list[str] = []
    for seen in observations:
        differences += spec.observe(seen)
        if len(differences) >= DIFFERENCES_MAX:
            return differences
    return differences if spec.over else [*differences, f"the run did not end; {spec._unfinished()}"]


def run(
    dsl: Mapping[str, Any],
    inputs: Mapping[str, Any],
    effects: Effects,
    order: random.Random,
    *,
    run_id: str = "run",
    cancel: CancelRequested | None = None,
    cancel_after_ends: int = 0,
    prompt: bool = False,
) -> list[Observation]:
    """One run by the rules alone: `order` draws the next legal observation; cancelled after so many ends."""
    return drive(Spec(dsl, inputs, run_id, effects, prompt), order, cancel, cancel_after_ends)


def drive(
    spec: Spec, order: random.Random, cancel: CancelRequested | None, cancel_after_ends: int
) -> list[Observation]:
    seen: list[Observation] = []
    while not spec.over:
        if len(seen) == MOVES_MAX:
            raise RuntimeError(f"still not at its end after {MOVES_MAX} observations")
        due = cancel is not None and spec.ending is None and _ends(seen) >= cancel_after_ends
        due = due and not (spec.prompt and spec.overdue())
        move: Observation | None = cancel if due else _draw(spec, order)
        if move is None:
            raise RuntimeError(f"the rules are stuck after {len(seen)} observations; {spec._unfinished()}")
        if differences := spec.observe(move):
            raise RuntimeError(f"the rules refuse their own move: {differences}")
        seen.append(move)
    return seen


def _ends(seen: Sequence[Observation]) -> int:
    return sum(isinstance(one, Ended) for one in seen)


def _draw(spec: Spec, order: random.Random) -> Observation | None:
    moves: list[Observation] = []
    runs = (spec.overdue() if spec.prompt else []) or sorted(spec.flow.open)
    runs = [] if spec.compensations is not None else runs
    order.shuffle(runs)
    for node_run in runs:
        if legal := spec.legal(node_run):
            moves.append(order.choice(legal))
            break
    moves += spec.legal_compensation()[:1]
    if spec.ending == "failing" and not spec.announced:
        moves.append(Failing())
    if end := spec.legal_end():
        moves.append(end)
    return order.choice(moves) if moves else None
