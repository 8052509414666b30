"""The generator and the checker together: an engine that breaks one rule is found out by some seed."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from tests.simulation.generator import generate
from tests.simulation.interpreter import MAX_ITERATIONS_DEFAULT, RUN, RUN_ID, SKIP, Spec, check, drive
from tests.simulation.loops import Edge, Flow, Instance, NodeRun
from tests.simulation.observations import Ended, Failure

SEEDS = 400


class MergesAtTheFirstEdge(Spec):
    def due(self, run: NodeRun) -> str | Failure:
        early = self.graph.kind[run.node] != "join" and True in self._arrived(run)
        return RUN if early and not self._again(run) else super().due(run)


class AnyWaitsForAll(Spec):
    def due(self, run: NodeRun) -> str | Failure:
        due = super().due(run)
        return "wait" if due == RUN and None in self._arrived(run) and not self._again(run) else due


class SkipsWhenOneEdgeIsNotTaken(Spec):
    def due(self, run: NodeRun) -> str | Failure:
        return SKIP if False in self._arrived(run) and not self._again(run) else super().due(run)


class UnreachableJoinsPass(Spec):
    def due(self, run: NodeRun) -> str | Failure:
        due = super().due(run)
        return RUN if isinstance(due, Failure) and due.code == "join_unreachable" else due


class JoinsWithdrawNothing(Spec):
    def doomed(self, run: NodeRun) -> bool:
        return False


class JoinsWithdrawWhateverReachesThem(Spec):
    def doomed(self, run: NodeRun) -> bool:
        seen, todo = {run.node}, [run.node]
        while todo:
            for node in self.graph.onward(todo.pop()) - seen:
                if NodeRun(node, self._met_at(run, node)) in self.shield:
                    return True
                seen.add(node)
                todo.append(node)
        return False


class JoinsForgetTheIteration(Spec):
    def _met_at(self, run: NodeRun, node: str) -> tuple[int, ...]:
        passed = [join.at for join in self.shield if join.node == node]
        return passed[0] if passed else super()._met_at(run, node)


class EveryJoinWithdraws(Spec):
    def _pass(self, join: NodeRun) -> None:
        self.shield.add(join)


class JoinsWithdrawEveryLoop(Spec):
    def doomed(self, run: NodeRun) -> bool:
        onward = {e.target for e in self.graph.out(run.node) if e.index not in self.graph.back}
        inside = bool(self.graph.loops[run.node]) and not onward
        return bool(self.shield) and (inside or super().doomed(run))


class OneIterationMore(Spec):
    def due(self, run: NodeRun) -> str | Failure:
        due = super().due(run)
        exceeded = isinstance(due, Failure) and due.code == "max_iterations_exceeded"
        iterations_max = self.graph.config[run.node].get("max_iterations", MAX_ITERATIONS_DEFAULT)
        return RUN if exceeded and run.at[-1] == iterations_max + 1 else due


class TheBodyRunsPastTheMaximum(Spec):
    def _passable(self, run: NodeRun, edge: Edge) -> bool:
        return True


class FailedNodesTakeEveryEdge(Spec):
    def _taken(self, run: NodeRun, seen: Ended) -> set[int]:
        taken = super()._taken(run, seen)
        return taken | {e.index for e in self.graph.out(run.node) if taken and e.label is None}


class CompletedNodesTakeTheFailedEdge(Spec):
    def _taken(self, run: NodeRun, seen: Ended) -> set[int]:
        taken = super()._taken(run, seen)
        failed = {e.index for e in self.graph.out(run.node) if e.label == "failed"}
        return taken | (failed if seen.status == "completed" else set())


class CompensatesForwards(Spec):
    def _queue(self) -> list[NodeRun]:
        return super()._queue()[::-1] if self.compensations is None else self.compensations


class CompensatesTheFailedNodeLast(Spec):
    def _queue(self) -> list[NodeRun]:
        queue = super()._queue()
        first = self.compensations is None and queue[:1] == [self.failed_run]
        return [*queue[1:], queue[0]] if first else queue


class CompensatesOnlyTheLastIteration(Spec):
    def _queue(self) -> list[NodeRun]:
        if self.compensations is not None:
            return self.compensations
        return list({run.node: run for run in reversed(super()._queue())}.values())[::-1]


class ReadsTheFirstIteration(Spec):
    def scope(self, node: str, compensates: NodeRun | None) -> dict[str, Any]:
        scope = super().scope(node, compensates)
        for run, ended in reversed(self.completed):
            scope["nodes"][run.node]["output"] = ended.output
        return scope


class ForgetsErrors(Spec):
    def scope(self, node: str, compensates: NodeRun | None) -> dict[str, Any]:
        scope = super().scope(node, compensates)
        nodes = {name: {**known, "error": None} for name, known in scope["nodes"].items()}
        return {**scope, "nodes": nodes}


class StateIsNotShared(Spec):
    def learn(self, run: NodeRun, node: str, seen: Ended) -> None:
        before = self.state
        super().learn(run, node, seen)
        if self.graph.kind[node] != "start":
            self.state = before


class OnlyTheLastEndCounts(Spec):
    def _result(self) -> tuple[Any, str | None]:
        ends = [e.output for run, e in self.completed if self.graph.kind[run.node] == "end"]
        output, text = super()._result()
        return ends[-1] if ends else output, text


class OnlyTheLastSinkCounts(Spec):
    def _result(self) -> tuple[Any, str | None]:
        self.sinks = self.sinks[-1:]
        return super()._result()


class FirstAnswerCounts(Spec):
    def _result(self) -> tuple[Any, str | None]:
        texts = [e.output_text for run, e in self.completed if self.graph.kind[run.node] == "answer"]
        return super()._result()[0], texts[0] if texts else None


class _TurnsAtTheFirstBackEdge(Flow):
    def _turn(self, head: str, entry: tuple[int, ...], instance: Instance) -> None:
        resolved = instance.back.get(instance.iteration, {})
        if any(resolved.values()):
            for edge in self.graph.back_edges(head):
                resolved.setdefault(edge, False)
        if resolved:
            super()._turn(head, entry, instance)


class _ExitsResolveAtOnce(Flow):
    def _leave(self, edge: Edge, levels: Sequence[str], at: tuple[int, ...], taken: bool) -> None:
        if levels and not taken and edge.index not in self.graph.back:
            return self._land(edge, at[: len(at) - len(levels)], False)
        return super()._leave(edge, levels, at, taken)


class _ExitsResolveWithTheInnerLoop(Flow):
    def _turn(self, head: str, entry: tuple[int, ...], instance: Instance) -> None:
        before = instance.ended
        super()._turn(head, entry, instance)
        if instance.ended and not before:
            for edge in self.graph.exit_edges(head):
                levels = self.graph.exits(edge)
                rest = levels[levels.index(head) + 1 :]
                if rest and edge.index not in instance.taken and edge.index not in self.graph.back:
                    self._land(edge, entry[: len(entry) - len(rest)], False)


class _ExitsStayOpenAfterTheEnd(Flow):
    def _leave(self, edge: Edge, levels: Sequence[str], at: tuple[int, ...], taken: bool) -> None:
        if levels and taken and self.instance(levels[0], at[:-1]).ended:
            return self._leave(edge, levels[1:], at[:-1], True)
        return super()._leave(edge, levels, at, taken)


class _InnerLoopsGoOnCounting(Flow):
    def instance(self, head: str, entry: tuple[int, ...]) -> Instance:
        found = super().instance(head, entry)
        earlier = [one for (h, e), one in self.instances.items() if h == head and e != entry]
        if found.iteration == 1 and not found.back and earlier:
            found.taken = set().union(*(one.taken for one in earlier))
        return found


class TurnsAtTheFirstBackEdge(Spec):
    flow_type = _TurnsAtTheFirstBackEdge


class ExitsResolveAtOnce(Spec):
    flow_type = _ExitsResolveAtOnce


class ExitsResolveWithTheInnerLoop(Spec):
    flow_type = _ExitsResolveWithTheInnerLoop


class ExitsStayOpenAfterTheEnd(Spec):
    flow_type = _ExitsStayOpenAfterTheEnd


class InnerExitsAreTakenOnceForAll(Spec):
    flow_type = _InnerLoopsGoOnCounting


FAULTS = [fault for fault in Spec.__subclasses__() if fault.__module__ == __name__]


def noticed(fault: type[Spec], seed: int) -> bool:
    scenario = generate(seed)
    spec = fault(scenario.dsl, scenario.inputs, RUN_ID, scenario.effects, prompt=True)
    try:
        seen = drive(spec, random.Random(seed), scenario.cancel, scenario.cancel_after_ends)
    except RuntimeError:
        return True  # It got stuck.
    return bool(check(scenario.dsl, scenario.inputs, RUN_ID, seen, scenario.effects, prompt=True))


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__ for fault in FAULTS])
def test_a_fault_is_found_by_some_seed(fault: type[Spec]) -> None:
    assert any(noticed(fault, seed) for seed in range(SEEDS))


def test_without_a_fault_no_seed_finds_one() -> None:
    assert not any(noticed(Spec, seed) for seed in range(100))
