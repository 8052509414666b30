"""Reads the nodes and edges of a DSL, collecting every problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from schemas.problems import Problems, pointer_of
from schemas.workflow.node_compiler import Allowance, CompiledConfig, compile_config
from schemas.workflow.node_types import ALIASES, NodeConfig, canonical_type, labels
from schemas.workflow.paths import is_name_char

NODE_ID_LENGTH_MAX: Final = 128

CheckCode = Callable[[str], str | None]


def is_node_id(text: str) -> bool:
    """Letters of any script, digits, `_` and `-`, at most 128 of them."""
    return 0 < len(text) <= NODE_ID_LENGTH_MAX and all(char == "-" or is_name_char(char) for char in text)


def unknown_fields(value: Mapping[str, Any], known: tuple[str, ...], pointer: str, problems: Problems) -> None:
    for name in value:
        if name not in known:
            where = pointer + pointer_of(name)
            problems.add(where, "unknown_field", f"unknown field; known: {', '.join(known)}")
            if problems.full():
                return


@dataclass(slots=True)
class Draft:
    """One node of the DSL as far as it could be read; `at` is its place in `nodes` and in the program."""

    at: int
    id: str | None = None
    type_name: str = ""
    config_type: type[NodeConfig] | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)
    pointers: Mapping[str, str] = field(default_factory=dict)
    config: NodeConfig | None = None
    compiled: CompiledConfig = field(default_factory=CompiledConfig)

    def pointer(self, name: str) -> str:
        return self.pointers.get(name) or pointer_of("nodes", self.at, "config", name)


@dataclass(frozen=True, slots=True)
class Line:
    """One edge both ends of which are known."""

    at: int
    source: int
    target: int
    label: str | None


class Reader:
    """Reads nodes and edges, collecting problems; goes on after each."""

    def __init__(self, problems: Problems, types: Mapping[str, type[NodeConfig]], check_code: CheckCode | None) -> None:
        self.problems = problems
        self.types = types
        self.check_code = check_code
        self.allowance = Allowance()
        self.drafts: list[Draft] = []
        self.by_id: dict[str, int] = {}
        self.lines: list[Line] = []
        self.is_whole = True
        """Each node has a name of its own, and the ends of each edge are known."""

    def read(self, dsl: Mapping[str, Any]) -> None:
        for at, node in enumerate(dsl["nodes"]):
            draft = self._node(at, node)
            self.drafts.append(draft)
            self.is_whole = self.is_whole and draft.id is not None
        seen: set[tuple[int, int, str | None]] = set()
        for at, edge in enumerate(dsl["edges"]):
            line = self._edge(at, edge)
            if line is None:
                self.is_whole = False
                continue
            if (line.source, line.target, line.label) in seen:
                self.problems.add(pointer_of("edges", at), "duplicate_edge", "the same edge exists already")
            seen.add((line.source, line.target, line.label))
            self.lines.append(line)

    def _node(self, at: int, node: Any) -> Draft:
        draft = Draft(at)
        pointer = pointer_of("nodes", at)
        if not isinstance(node, dict):
            self.problems.add(pointer, "wrong_type", "the node is not an object")
            return draft
        unknown_fields(node, ("id", "type", "config"), pointer, self.problems)
        self._node_id(draft, node, pointer)
        self._node_type(draft, node, pointer)
        config = node.get("config")
        if config is not None and not isinstance(config, dict):
            self.problems.add(f"{pointer}/config", "wrong_type", "config is not an object")
        elif draft.config_type is not None:
            self._node_config(draft, draft.config_type, config or {})
        return draft

    def _node_id(self, draft: Draft, node: Mapping[str, Any], pointer: str) -> None:
        name = self._required_text(node, "id", pointer)
        if name is None:
            return
        if not is_node_id(name):
            allowed = f"1 to {NODE_ID_LENGTH_MAX} letters, digits, '_' or '-'"
            self.problems.add(f"{pointer}/id", "invalid_id", f"{name[:64]!r}: a node id is {allowed}")
        if name in self.by_id:
            first = pointer_of("nodes", self.by_id[name])
            self.problems.add(f"{pointer}/id", "duplicate_id", f"{name[:64]!r} is the id of {first} already")
            return
        draft.id = name
        self.by_id[name] = draft.at

    def _node_type(self, draft: Draft, node: Mapping[str, Any], pointer: str) -> None:
        name = self._required_text(node, "type", pointer)
        if name is None:
            return
        draft.type_name = canonical_type(name)
        draft.config_type = self.types.get(draft.type_name)
        if draft.config_type is None:
            hint = self.allowance.suggestions.hint(name, [*self.types, *ALIASES])
            self.problems.add(f"{pointer}/type", "unknown_node_type", f"unknown type {name[:64]!r}{hint}")

    def _node_config(self, draft: Draft, config_type: type[NodeConfig], config: Mapping[str, Any]) -> None:
        where = pointer_of("nodes", draft.at, "config")
        compiled = compile_config(config_type, config, where, self.problems, self.allowance)
        draft.raw, draft.config, draft.compiled = compiled.raw, compiled.config, compiled
        draft.pointers = compiled.pointers
        source = draft.raw.get("code")
        if draft.type_name == "code" and self.check_code and isinstance(source, str):
            refusal = self.check_code(source)
            if refusal is not None:
                self.problems.add(draft.pointer("code"), "code_invalid", refusal)

    def _required_text(self, owner: Mapping[str, Any], name: str, pointer: str) -> str | None:
        value = owner.get(name)
        if isinstance(value, str):
            return value
        if name in owner:
            self.problems.add(f"{pointer}/{name}", "wrong_type", f"{name} is not text")
        else:
            self.problems.add(f"{pointer}/{name}", "missing_field", f"{name} is required")
        return None

    def _edge(self, at: int, edge: Any) -> Line | None:
        pointer = pointer_of("edges", at)
        if not isinstance(edge, dict):
            self.problems.add(pointer, "wrong_type", "the edge is not an object")
            return None
        unknown_fields(edge, ("source", "target", "condition"), pointer, self.problems)
        ends: list[int] = []
        for end in ("source", "target"):
            name = self._required_text(edge, end, pointer)
            if name is None:
                continue
            if name in self.by_id:
                ends.append(self.by_id[name])
            else:
                hint = self.allowance.suggestions.hint(name, self.by_id)
                self.problems.add(f"{pointer}/{end}", f"unknown_{end}", f"there is no node {name[:64]!r}{hint}")
        condition = edge.get("condition")
        label = {True: "true", False: "false"}[condition] if isinstance(condition, bool) else condition
        if label is not None and not isinstance(label, str):
            self.problems.add(f"{pointer}/condition", "wrong_type", "condition is neither text nor true nor false")
            return None
        if len(ends) < 2:
            return None
        self._label(f"{pointer}/condition", self.drafts[ends[0]], label)
        return Line(at, ends[0], ends[1], label)

    def _label(self, pointer: str, source: Draft, label: str | None) -> None:
        if label is None or source.config_type is None:
            return
        allowed = labels(source.config_type, source.raw)
        if label not in allowed:
            hint = self.allowance.suggestions.hint(label, allowed)
            detail = f"{label[:64]!r}: edges of {source.type_name!r} may bear {', '.join(allowed)[:200]}{hint}"
            self.problems.add(pointer, "invalid_condition", detail)
