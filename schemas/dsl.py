"""The workflow DSL: parse and validate it, every problem in one answer, and compile it to a Program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from schemas.assembly import build_program, check_graph
from schemas.dsl_reader import CheckCode, Reader, is_node_id, unknown_fields
from schemas.graph import Edge, Loop, Node, Program
from schemas.node_types import NODE_TYPES, NodeConfig, canonical_type
from schemas.problems import Problem, Problems, is_storable, scrub

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


def _admit(dsl_json: Any, limits: Limits, problems: Problems) -> dict[str, Any] | None:
    """The DSL if its outer form allows to go on, without what no JSON document may hold."""
    storable = is_storable(dsl_json)
    dsl = dsl_json if storable else scrub(dsl_json, problems)
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
    for name, most in (("nodes", limits.nodes_max), ("edges", limits.edges_max)):
        if not isinstance(dsl.get(name, []), list):
            problems.add(f"/{name}", "wrong_type", f"{name} is not a list")
        elif len(dsl.get(name, [])) > most:
            problems.add(f"/{name}", f"too_many_{name}", f"more than {most}")
    if dsl.get("nodes") == []:
        problems.add("/nodes", "empty_graph", "a workflow needs a node")
    return None if problems.fatal() and not _walkable(dsl, limits) else dsl


def _walkable(dsl: Mapping[str, Any], limits: Limits) -> bool:
    nodes, edges = dsl.get("nodes"), dsl.get("edges", [])
    lists = isinstance(nodes, list) and isinstance(edges, list)
    return lists and 0 < len(nodes) <= limits.nodes_max and len(edges) <= limits.edges_max  # type: ignore[arg-type]
