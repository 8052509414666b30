"""One simulated run: its workflow, and what its effects, people and child runs answer, by a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tests.simulation.interpreter import run
from tests.simulation.observations import (
    Answer,
    CancelRequested,
    ChildEnd,
    Failure,
    Path,
    RunEnded,
    Success,
    Verdict,
)

NEVER = 1_000
Wanted = Literal["approved", "rejected", "completed", "expired", "cancelled"]


@dataclass(frozen=True)
class Behaviour:
    """Its first `attempts` fail in a `share` of the iterations, and in those below `until`.

    `leaves`: what a failure gives all the same.
    """

    share: float = 0.0
    attempts: int = NEVER
    until: int = 0
    code: str = "effect_failed"
    retryable: bool = True
    leaves: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Oracle:
    """What is answered; a pure function of the seed, the path, the iteration and the attempt.

    `people`: how tasks of a node may end; `children`: the runs of a node, or the code they are refused with.
    """

    seed: int | str
    behaviours: Mapping[Path, Behaviour]
    people: Mapping[str, tuple[Wanted, ...]] = field(default_factory=dict)
    children: Mapping[str, Scenario | str] = field(default_factory=dict)
    _ends: dict[tuple[Path, str, int], ChildEnd] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, path: Path, iteration: str, attempt: int) -> Answer:
        node = path.rpartition("/")[2]
        if node in self.people:
            return self._verdict(node, path, iteration, attempt)
        if node in self.children:
            return self._child_end(path, iteration, attempt)
        return self._effect(path, iteration, attempt)

    def _effect(self, path: Path, iteration: str, attempt: int) -> Success | Failure:
        behaviour = self.behaviours.get(path, Behaviour())
        chance = random.Random(f"{self.seed} {path} {iteration}")
        last = int(iteration.rpartition(".")[2])
        if (chance.random() < behaviour.share or last < behaviour.until) and attempt <= behaviour.attempts:
            text = f"{path} broke off" if behaviour.leaves else None
            return Failure(behaviour.code, behaviour.retryable, behaviour.leaves, text)
        result = {
            "n": chance.randrange(10),
            "again": chance.random() < 0.5,
            "items": [chance.choice("abc") for _ in range(chance.randrange(4))],
            "attempt": attempt,
        }
        return Success({"result_json": result}, f"{path} {iteration}" if chance.random() < 0.8 else None)

    def _verdict(self, node: str, path: Path, iteration: str, attempt: int) -> Verdict:
        chance = random.Random(f"{self.seed} {path} {iteration} {attempt}")
        status = chance.choice(self.people[node])
        if status in ("expired", "cancelled"):
            return Verdict(status)
        return Verdict(status, {"n": chance.randrange(10), "说明": "好"}, chance.choice(("", "ops-1")))

    def child(self, path: Path, iteration: str, attempt: int) -> Scenario | None:
        """The child run of an attempt; None if it is refused."""
        scenario = self.children[path.rpartition("/")[2]]
        if isinstance(scenario, str):
            return None
        effects = replace(scenario.effects, seed=f"{scenario.effects.seed} {iteration} {attempt}", _ends={})
        return replace(scenario, effects=effects)

    def _child_end(self, path: Path, iteration: str, attempt: int) -> ChildEnd:
        """How it ends by the rules, in one order of events."""
        key = (path, iteration, attempt)
        if key not in self._ends:
            scenario = self.child(*key)
            self._ends[key] = _end_of(scenario) if scenario else self._refused(path)
        return self._ends[key]

    def _refused(self, path: Path) -> ChildEnd:
        return ChildEnd("refused", code=str(self.children[path.rpartition("/")[2]]))


def _end_of(scenario: Scenario) -> ChildEnd:
    order = random.Random(f"order of {scenario.effects.seed}")
    ended = run(scenario.dsl, scenario.inputs, scenario.effects, order)[-1]
    assert isinstance(ended, RunEnded)
    return child_end(ended)


def child_end(ended: RunEnded) -> ChildEnd:
    """The end of a child run as its parent is told."""
    return ChildEnd(ended.status, ended.output, ended.output_text, ended.error_code or "")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Scenario:
    """One simulated run: the workflow, its inputs, its effects, and when it is cancelled, if it is."""

    seed: int
    dsl: dict[str, Any]
    inputs: dict[str, Any]
    effects: Oracle
    cancel: CancelRequested | None = None
    cancel_after_ends: int = 0
