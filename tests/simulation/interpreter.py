"""An independent interpreter of the workflow DSL: it judges an observed run, node run by node run.

It shares no code with the engine except the evaluation of expressions and templates. Analysis is brute force.
`check` is fed what was observed, in order, and compares each observation with what the rules allow at that
moment; `run` drives the same rules by itself with random legal moves. The rules are in `spec` and `answers`.

Readings chosen where the rules leave room:
- An early join (passed before all its edges resolved) withdraws every node run whose paths to a sink all meet
  early joins; a join that passes with all its edges resolved withdraws nothing, then or later. A path that meets
  a back edge goes on at the exits of that loop. What an early join covers stays so in later iterations.
- A node run that was certainly started (it has begun, or an asynchronous observation came after it was enabled)
  has to be cancelled when it is withdrawn; one that became able to run in the same breath may be skipped, or
  after a failure stay without an end.
- `inputs.*` are the inputs as given, with the defaults of the start nodes that the run begins at.
- No completed `end`: the output is that of the sinks, completed node runs (in loop bodies too) none of whose
  edges was taken; of one node the last counts; without a sink, that of the last completed node run.
- No case of an if-else matches: `condition_result` false and route "false".
- `nodes.X` is X's last run that completed or failed. What a failed attempt left as text stays where on_error
  completes the node; its output gives way.
- `current.error` of a compensation is null where neither its node run nor the run has an error.
- A join with a delay passes, and withdraws, when the delay is over.
- A value that cannot be evaluated fails its node with `evaluation_failed`, which obeys the retry policy.
- While the run is failing or cancelled nothing is retried and nothing is skipped; `on_error` still holds. A
  leased step that never answers ends `failed` with `lease_lost` and is compensated after the failed node, the
  last one first. A task is cancelled at once. A child that has begun is waited for, unless cancelling is forced.
- A second failure while the run is failing is not compensated.
- A node run whose loop is exhausted, whose join is unreachable, or that was refused a child run, is not
  compensated when it makes the run fail: it never was handed out.
- Under pause nothing begins and no pure node completes; what has begun may answer, retries are counted, node runs
  are skipped, withdrawn and refused, and the run may end.
- How a task or a child run ended is told by the task or the child; what that makes of the node is judged here.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from tests.simulation.answers import EFFECTS, WAITING
from tests.simulation.observations import (
    Attempted,
    Began,
    CancelRequested,
    ChildEnd,
    Effects,
    Ended,
    Failing,
    Failure,
    Observation,
    Path,
    Paused,
    PausedBy,
    Resumed,
    RunEnded,
    Success,
    Verdict,
)
from tests.simulation.spec import MAX_ITERATIONS_DEFAULT, RUN, SKIP, Spec

__all__ = [
    "MAX_ITERATIONS_DEFAULT",
    "RUN",
    "RUN_ID",
    "SKIP",
    "Attempted",
    "Began",
    "CancelRequested",
    "ChildEnd",
    "Effects",
    "Ended",
    "Failing",
    "Failure",
    "Observation",
    "Path",
    "Paused",
    "Resumed",
    "RunEnded",
    "Spec",
    "Success",
    "Verdict",
    "check",
    "drive",
    "run",
]

DIFFERENCES_MAX = 20
MOVES_MAX = 2_000
RUN_ID = "4d1f0c2e-7b1d-4c11-8f60-2f7d5a1e9b42"
"""Of a run that is no platform's."""


def check(
    dsl_json: Mapping[str, Any],
    inputs: Mapping[str, Any],
    run_id: str,
    observations: Sequence[Observation],
    effects: Effects,
    *,
    prompt: bool = False,
    depth: int = 0,
) -> list[str]:
    """The differences between a run observed from start to end and the rules; empty if they agree.

    `prompt`: whatever waits for nothing (pure nodes, skips, withdrawals by a join) has to end before the next
    effect, delay, retry or cancel is observed. It holds only where a transaction advances to its end: with no
    pause, no manual steps, and fewer pure nodes in a row than one message may advance.
    """
    spec = Spec(dsl_json, inputs, run_id, effects, prompt, depth)
    differences: list[str] = []
    for seen in observations:
        differences += spec.observe(seen)
        if len(differences) >= DIFFERENCES_MAX:
            return differences
    return differences if spec.over else [*differences, f"the run did not end; {spec.unfinished()}"]


def run(
    dsl: Mapping[str, Any],
    inputs: Mapping[str, Any],
    effects: Effects,
    order: random.Random,
    *,
    run_id: str = RUN_ID,
    cancel: CancelRequested | None = None,
    cancel_after_ends: int = 0,
    prompt: bool = False,
    depth: int = 0,
    pauses: float = 0.0,
) -> list[Observation]:
    """One run by the rules alone: `order` draws the next legal observation; cancelled after so many ends.

    `pauses`: the chance that somebody pauses or resumes it before the next observation.
    """
    spec = Spec(dsl, inputs, run_id, effects, prompt, depth)
    return drive(spec, order, cancel, cancel_after_ends, pauses)


def drive(
    spec: Spec,
    order: random.Random,
    cancel: CancelRequested | None,
    cancel_after_ends: int,
    pauses: float = 0.0,
) -> list[Observation]:
    seen: list[Observation] = []
    while not spec.over:
        if len(seen) == MOVES_MAX:
            raise RuntimeError(f"still not at its end after {MOVES_MAX} observations")
        due = cancel is not None and spec.ending is None and _ends(seen) >= cancel_after_ends
        due = due and not (spec.prompt and spec.overdue())
        move: Observation | None = cancel if due else _draw(spec, order, pauses)
        if move is None:
            raise RuntimeError(f"the rules are stuck after {len(seen)} observations; {spec.unfinished()}")
        if differences := spec.observe(move):
            raise RuntimeError(f"the rules refuse their own move: {differences}")
        seen.append(move)
    return seen


def _ends(seen: Sequence[Observation]) -> int:
    return sum(isinstance(one, Ended) for one in seen)


def _draw(spec: Spec, order: random.Random, pauses: float) -> Observation | None:
    if pauses and order.random() < pauses:
        return _change_of_pause(spec, order)
    moves = [*_moves(spec, order), *_moves_at_the_end(spec)]
    if not moves and spec.pauses:
        return _change_of_pause(spec, order)
    return order.choice(moves) if moves else None


def _change_of_pause(spec: Spec, order: random.Random) -> Paused | Resumed:
    by: PausedBy = order.choice(("self", "parent"))
    return Resumed(by) if by in spec.pauses else Paused(by)


def _moves(spec: Spec, order: random.Random) -> list[Observation]:
    """What the first open node run of a random order that may do anything may do."""
    runs = (spec.overdue() if spec.prompt else []) or sorted(spec.flow.open)
    runs = [] if spec.compensations is not None else runs
    order.shuffle(runs)
    for node_run in runs:
        moves = [*_beginnings(spec, node_run.node, node_run.iteration, order), *spec.legal(node_run)]
        if moves:
            return [order.choice(moves)]
    return []


def _moves_at_the_end(spec: Spec) -> list[Observation]:
    moves: list[Observation] = []
    if due := spec.next_compensation():
        moves += _beginnings(spec, due[2], due[0].iteration, None)
    moves += spec.legal_compensation()[:1]
    if spec.ending == "failing" and not spec.announced:
        moves.append(Failing())
    if end := spec.legal_end():
        moves.append(end)
    return moves


def _beginnings(spec: Spec, path: Path, iteration: str, order: random.Random | None) -> list[Began]:
    """The attempt that may be handed out now; that of an effect is told at times only."""
    kind = spec.graph.kind[path.rpartition("/")[2]]
    told = kind in WAITING or (kind in EFFECTS and order is not None and order.random() < 0.5)
    if not told:
        return []
    begun = spec.begun_now(path, iteration)
    return [begun] if begun else []
