"""Whether what templates and expressions read can be there when they read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from schemas.workflow.dsl_reader import Draft, Reader
from schemas.workflow.node_types import Assigner, Join, Start, output_names
from schemas.workflow.order import Order, Relation
from schemas.workflow.paths import Path

_KNOWN: Final = {
    "nodes": ("output", "text", "error"),
    "current": ("node_id", "compensates", "error"),
    "run": ("id",),
}
NAMED_MAX: Final = 5
"""Of what is wrong in the same way with one text."""

Finding = tuple[str, str]  # Code, detail.


class Reads:
    """The checks of all paths of one definition.

    `owners` are by compensation the nodes that name it; `in_order` false: the graph has faults, so which node comes
    before which is not asked.
    """

    def __init__(self, reader: Reader, aside: set[int], owners: Mapping[int, Sequence[int]], *, in_order: bool) -> None:
        self._reader = reader
        self._aside = aside
        self._owners = owners
        self._suggestions = reader.allowance.suggestions
        self._order = _order(reader, aside) if in_order else None
        self._outputs = [
            None if draft.config_type is None else output_names(draft.config_type, draft.raw) for draft in reader.drafts
        ]
        starts = [_members(draft, "inputs") for draft in reader.drafts if draft.config_type is Start]
        self._inputs = {name for declared in starts for name in declared}
        assigned = {name for draft in reader.drafts for name in _assigned(draft)}
        self._state = None if starts and not self._inputs else self._inputs | assigned
        """None: a start node takes whatever comes."""

    def check(self) -> None:
        problems = self._reader.problems
        for draft in self._reader.drafts:
            for pointer, paths in draft.compiled.reads:
                details: dict[str, list[str]] = {}
                for path in sorted(paths):
                    if (finding := self._finding(draft, path)) is not None:
                        details.setdefault(finding[0], []).append(finding[1])
                for code, found in details.items():
                    problems.add(pointer, code, " | ".join(found[:NAMED_MAX]))

    def _finding(self, draft: Draft, path: Path) -> Finding | None:
        match path[0]:
            case "nodes":
                return self._of_node(draft, path)
            case "inputs":
                return self._of_inputs(path)
            case "state":
                return self._of_state(path)
            case _:
                return self._member(path, 1)

    def _member(self, path: Path, at: int) -> Finding | None:
        known = _KNOWN[path[0]]
        if len(path) <= at or path[at] in known:
            return None
        hint = self._suggestions.hint(path[at], known)
        return "unknown_path", f"{'.'.join(path[: at + 1])[:200]} is never set; known: {', '.join(known)}{hint}"

    def _of_node(self, draft: Draft, path: Path) -> Finding | None:
        name = path[1]
        index = self._reader.by_id.get(name)
        if index is None:
            hint = self._suggestions.hint(name, self._reader.by_id)
            return "unknown_node_reference", f"there is no node {name[:64]!r}{hint}"
        return self._member(path, 2) or self._of_output(index, path) or self._in_time(draft, index)

    def _of_output(self, index: int, path: Path) -> Finding | None:
        names = self._outputs[index]
        if names is None or path[2:3] != ("output",) or len(path) < 4 or path[3] in names:
            return None
        known = ", ".join(sorted(names)[:20])
        answers = f"answers with {known}" if known else "has an empty output"
        type_name = self._reader.drafts[index].type_name
        detail = f"there is no {path[3][:64]!r} in it: {path[1][:64]!r} ({type_name}) {answers}"
        return "unknown_output", detail + self._suggestions.hint(path[3], names)

    def _in_time(self, draft: Draft, index: int) -> Finding | None:
        name = (self._reader.drafts[index].id or "")[:64]
        match self._relation(draft.at, index):
            case "never" if index in self._aside:
                return "impossible_reference", f"{name!r} only compensates, and no node reads what that answers"
            case "never" if index == draft.at:
                return "impossible_reference", f"{name!r} reads its own answer, and no loop leads back to it"
            case "never":
                return "impossible_reference", f"{name!r} never runs before this node does"
            case "beside":
                return "unordered_reference", f"no edges lead from {name!r} to this node, so it may not have run yet"
            case _:
                return None

    def _relation(self, at: int, index: int) -> Relation:
        """Whether the node at `index` may have run when that at `at` reads it, as itself or as a compensation."""
        order = self._order
        if order is None:
            return "before"
        if any(order.together(index, owner) for owner in self._owners.get(at, ()) if owner not in self._aside):
            return "before"
        return "never" if at in self._aside else order.relation(index, at)

    def _of_inputs(self, path: Path) -> Finding | None:
        if not self._inputs or len(path) < 2 or path[1] in self._inputs:
            return None
        hint = self._suggestions.hint(path[1], self._inputs)
        return "undeclared_input", f"no start node declares an input {path[1][:64]!r}{hint}"

    def _of_state(self, path: Path) -> Finding | None:
        if self._state is None or len(path) < 2 or path[1] in self._state:
            return None
        hint = self._suggestions.hint(path[1], self._state)
        return "unset_state", f"no assigner sets {path[1][:64]!r} and no start node declares it{hint}"


def _order(reader: Reader, aside: set[int]) -> Order:
    early = {
        draft.at
        for draft in reader.drafts
        if draft.config_type is Join and draft.raw.get("join_policy", "all_completed") != "all_completed"
    }
    edges = [(line.source, line.target, line.label) for line in reader.lines]
    return Order(len(reader.drafts), edges, aside, early)


def _assigned(draft: Draft) -> Mapping[str, Any]:
    return _members(draft, "assignments") if draft.config_type is Assigner else {}


def _members(draft: Draft, name: str) -> Mapping[str, Any]:
    value = draft.raw.get(name)
    return value if isinstance(value, dict) else {}
