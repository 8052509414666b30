"""Small workflows for the tests of the language."""

from __future__ import annotations

from typing import Any

from schemas.workflow.dsl import Program, parse


def node(name: str, kind: str, /, **config: Any) -> dict[str, Any]:
    return {"id": name, "type": kind, "config": config}


def edge(source: str, target: str, condition: Any = None) -> dict[str, Any]:
    return {"source": source, "target": target} | ({} if condition is None else {"condition": condition})


def graph(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"nodes": [part for part in parts if "id" in part], "edges": [part for part in parts if "id" not in part]}


def accepted(*parts: dict[str, Any]) -> Program:
    program, problems = parse(graph(*parts))
    assert program is not None, problems
    return program


def errors(dsl: Any, **options: Any) -> set[tuple[str, str]]:
    program, problems = parse(dsl, **options)
    found = {(each.pointer, each.code) for each in problems if each.severity == "error"}
    assert (program is None) == bool(found)
    return found


A, B, C = node("a", "answer", text="a"), node("b", "answer", text="b"), node("c", "answer", text="c")
