"""The workflow DSL: parse and validate it, every problem in one answer, and compile it to a Program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from schemas.problems import Problem, Problems, is_storable, scrub
from schemas.workflow.assembly import build_program, check_graph
from schemas.workflow.dsl_reader import CheckCode, Reader, is_node_id, unknown_fields
from schemas.workflow.graph import Edge, Loop, Node, Program
from schemas.workflow.node_types import NODE_TYPES, NodeConfig, canonical_type

__all__ = [
    "DEFAULT_LIMITS",
    "Edge",
    "Limits",
    "Loop",
    "Node",
    "Problem",
    "Program",
    "canonical_type",
    "is_node_id",
    "parse",
]


@dataclass(frozen=True, slots=True)
class Limits:
    nodes_max: int = 2_000
    edges_max: int = 8_000
    bytes_max: int = 1_048_576


DEFAULT_LIMITS: Final = Limits()


def parse(
    dsl_json: Any,
    *,
    extra_types: Mapping[str, type[NodeConfig]] | None = None,
    check_code: CheckCode | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[Program | None, list[Problem]]:
    """Compile a decoded DSL. Answers all problems at once; the Program only if none of them is an error.

    Never raises on bad input. `extra_types` adds node types; `check_code` answers why a code node's source is
    refused, or None.
    """
    problems = Problems()
    dsl = _admit(dsl_json, limits, problems)
    if dsl is None:
        return None, problems.found
    reader = Reader(problems, {**NODE_TYPES, **(extra_types or {})}, check_code)
    reader.read(dsl)
    shape = check_graph(reader)
    if problems.fatal():
        return None, problems.found
    return build_program(reader, shape), problems.found


def _admit(dsl_json: Any, limits: Limits, problems: Problems) -> dict[str, list[Any]] | None:
    """Nodes and edges if there are not too many, without what no JSON document may hold."""
    dsl = dsl_json if is_storable(dsl_json) else scrub(dsl_json, problems)
    if not isinstance(dsl, dict):
        problems.add("", "wrong_type", "the DSL is not an object")
        return None
    size = len(orjson.dumps(dsl))
    if size > limits.bytes_max:
        problems.add("", "dsl_too_large", f"{size} bytes, at most {limits.bytes_max} are allowed")
        return None
    unknown_fields(dsl, ("nodes", "edges"), "", problems)
    if "nodes" not in dsl:
        problems.add("/nodes", "missing_field", "nodes is required")
    nodes = _list(dsl, "nodes", limits.nodes_max, problems)
    edges = _list(dsl, "edges", limits.edges_max, problems)
    if nodes is None or edges is None:
        return None
    if dsl.get("nodes") == []:
        problems.add("/nodes", "empty_graph", "a workflow needs a node")
    return {"nodes": nodes, "edges": edges}


def _list(dsl: Mapping[str, Any], name: str, most: int, problems: Problems) -> list[Any] | None:
    """None if there are too many; a list that is missing or no list counts as empty."""
    value = dsl.get(name, [])
    if not isinstance(value, list):
        problems.add(f"/{name}", "wrong_type", f"{name} is not a list")
        return []
    if len(value) > most:
        problems.add(f"/{name}", f"too_many_{name}", f"{len(value)}, at most {most} are allowed")
        return None
    return value
