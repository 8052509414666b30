"""How edges resolve: what a node's end means for the nodes, joins and loops behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, cast

from projections.runtime import Mark
from schemas.decider import Rows
from schemas.messages import derive_near
from schemas.runtime import MarkSet
from schemas.workflow.graph import Edge, Loop, Node, Program
from schemas.workflow.node_types import Join

Iteration = tuple[int, ...]
"""One number per enclosing loop, outermost first."""


def iteration_text(iteration: Iteration) -> str:
    return ".".join(map(str, iteration)) or "1"


def parse_iteration(text: str, depth: int) -> Iteration:
    return tuple(map(int, text.split("."))) if depth else ()


class Enabled(NamedTuple):
    """A node whose turn has come in an iteration: to run, to be skipped, or to fail before it runs."""

    node: Node
    iteration: Iteration
    why: Literal["run", "skip", "max_iterations_exceeded", "join_unreachable"] = "run"

    @property
    def place(self) -> tuple[Node, Iteration]:
        return self.node, self.iteration

    @property
    def delay(self) -> float:
        """Seconds until it begins."""
        return self.node.config.delay_seconds


class Resolution:
    """Resolves edges against a run's marks. What it finds: `marks` (changed ones) and `enabled`, in order."""

    def __init__(self, rows: Rows, program: Program, run_id: str, counts: Callable[[int], bool] | None) -> None:
        self._rows = rows
        self._program = program
        self._run_id = run_id
        self._counts = counts
        self._changed: dict[str, MarkSet] = {}
        self._passed: dict[tuple[tuple[int, ...], Iteration], frozenset[int]] = {}
        self.enabled: list[Enabled] = []

    @property
    def marks(self) -> tuple[MarkSet, ...]:
        return tuple(self._changed.values())

    def edge(self, edge: Edge, iteration: Iteration, taken: bool) -> None:
        """`edge` of a node run in `iteration` is resolved."""
        for index in edge.exits:
            loop = self._program.loops[index]
            outer = iteration[: loop.depth - 1]
            mark = self._mark(self._loop_id(loop, outer))
            taken_exits = mark.note.split(",") if mark.note else []
            if mark.note == "ended" or not taken or str(edge.index) in taken_exits:
                return  # Not taken waits for the loop's end; taken once is enough; after the end nothing moves.
            self._set(mark, note=",".join([*taken_exits, str(edge.index)]))
            iteration = outer
        self._beyond(edge, iteration, taken)

    def remember(self, node: Node, iteration: Iteration, node_run_id: str) -> None:
        """A loop's node that others read has completed or failed."""
        for depth in range(len(node.loops)):
            self._set(self._mark(self._latest_id(node, iteration[:depth])), note=node_run_id)

    def latest(self, node: Node, within: Iteration) -> str:
        """Its last such node run in these iterations of its outer loops; empty if there is none."""
        return self._mark(self._latest_id(node, within)).note

    def _latest_id(self, node: Node, within: Iteration) -> str:
        return derive_near(self._run_id, ":".join(["latest", node.id, *map(str, within)]))

    def pass_early(self, join: Node, iteration: Iteration) -> bool:
        """Note that a join has completed with edges still to come; False if none are."""
        mark = self._mark(self._gate_id(join, iteration))
        if not mark.note or mark.resolved >= self._count(join.incoming):
            return False  # A loop's head has no gate in later iterations.
        self._set(mark, note="early")
        return True

    def covered(self, node: Node, iteration: Iteration) -> bool:
        """Whether every path from here meets a join that has passed early; inner loops are met in iteration 1."""
        passed = self._passed.get((node.loops, iteration))
        if passed is None:
            passed = self._passed[node.loops, iteration] = frozenset(self._passed_early(node.loops, iteration))
        return bool(passed) and node.index in self._program.covered(passed)

    def _passed_early(self, loops: tuple[int, ...], iteration: Iteration) -> Iterator[int]:
        for index in self._program.early_joins:
            join = self._program.nodes[index]
            shared = sum(one == other for one, other in zip(loops, join.loops, strict=False))
            at = (*iteration[:shared], *(1,) * (len(join.loops) - shared))
            if self._mark(self._gate_id(join, at)).note == "early":
                yield index

    def _gate_id(self, node: Node, iteration: Iteration) -> str:
        return derive_near(self._run_id, f"gate:{node.index}:{iteration_text(iteration)}")

    def _beyond(self, edge: Edge, iteration: Iteration, taken: bool) -> None:
        """The edge has left its loops: it repeats a loop, or arrives at its target."""
        if edge.back_of is not None:
            self._back(self._program.loops[edge.back_of], iteration, taken)
            return
        target = self._program.nodes[edge.target]
        entering = len(target.loops) > len(iteration)
        self._arrive(target, (*iteration, 1) if entering else iteration, taken)

    def _arrive(self, node: Node, iteration: Iteration, taken: bool) -> None:
        total = self._count(node.incoming)
        if total == 1:
            self._enable(node, iteration, "run" if taken else "skip")
            return
        mark = self._mark(self._gate_id(node, iteration))
        if mark.note:
            if mark.note == "passed":
                self._set(mark, resolved=mark.resolved + 1)  # Whether it passed early is judged as it completes.
            return
        resolved, arrived = mark.resolved + 1, mark.taken + taken
        verdict = _verdict(node, resolved, arrived, total)
        self._set(mark, resolved=resolved, taken=arrived, note="passed" if verdict else "")
        if verdict:
            self._enable(node, iteration, verdict)

    def _back(self, loop: Loop, iteration: Iteration, taken: bool) -> None:
        depth = loop.depth
        mark = self._mark(derive_near(self._run_id, f"back:{loop.index}:{iteration_text(iteration[:depth])}"))
        resolved, repeats = mark.resolved + 1, mark.taken + taken
        self._set(mark, resolved=resolved, taken=repeats)
        if resolved < self._count(loop.back_edges):
            return
        if not repeats:
            self._end(loop, iteration[: depth - 1])
            return
        head = self._program.nodes[loop.head]
        number = iteration[depth - 1] + 1
        over = number > loop.max_iterations
        self._enable(head, (*iteration[: depth - 1], number), "max_iterations_exceeded" if over else "run")

    def _end(self, loop: Loop, outer: Iteration) -> None:
        """No back edge was taken: exits that never were taken are now resolved, one level up."""
        mark = self._mark(self._loop_id(loop, outer))
        taken_exits = set(mark.note.split(","))
        self._set(mark, note="ended")
        for index in loop.exit_edges:
            edge = self._program.edges[index]
            if str(index) not in taken_exits and edge.exits[-1] == loop.index and self._counted(edge.source):
                self._beyond(edge, outer, taken=False)

    def _loop_id(self, loop: Loop, outer: Iteration) -> str:
        return derive_near(self._run_id, f"loop:{loop.index}:{iteration_text(outer)}")

    def _enable(self, node: Node, iteration: Iteration, why: str) -> None:
        self.enabled.append(Enabled(node, iteration, cast("Literal['run', 'skip']", why)))

    def _counted(self, source: int) -> bool:
        return self._counts is None or self._counts(source)

    def _count(self, edges: tuple[int, ...]) -> int:
        """How many of these edges this run can resolve: a run that begins in the middle lacks some."""
        if self._counts is None:
            return len(edges)
        return sum(self._counts(self._program.edges[edge].source) for edge in edges)

    def _mark(self, id: str) -> MarkSet:
        changed = self._changed.get(id)
        if changed is not None:
            return changed
        row = self._rows.get(Mark, id)
        return MarkSet(id=id) if row is None else MarkSet(id=id, resolved=row.resolved, taken=row.taken, note=row.note)

    def _set(
        self, mark: MarkSet, *, resolved: int | None = None, taken: int | None = None, note: str | None = None
    ) -> None:
        self._changed[mark.id] = MarkSet(
            id=mark.id,
            resolved=mark.resolved if resolved is None else resolved,
            taken=mark.taken if taken is None else taken,
            note=mark.note if note is None else note,
        )


def _verdict(node: Node, resolved: int, taken: int, total: int) -> str:
    """What a node with several incoming edges does now; empty: it waits."""
    policy = node.config.join_policy if isinstance(node.config, Join) else "all_completed"
    if policy == "all_completed":
        if resolved < total:
            return ""
        return "run" if taken else "skip"
    needed = 1 if policy == "any_completed" else cast(int, cast(Join, node.config).n)
    if taken >= needed:
        return "run"
    if taken and taken + total - resolved < needed:
        return "join_unreachable"
    return "skip" if resolved == total else ""
