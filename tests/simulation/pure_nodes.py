"""What nodes without an effect answer, computed from a scope."""

import json
from typing import Any

from schemas.workflow.expressions import Expression, compile_expression
from schemas.workflow.templates import Template, Value, compile_template, compile_value
from tests.simulation.loops import Graph
from tests.simulation.observations import Success

PURE = frozenset({"start", "end", "answer", "assigner", "if-else", "template-transform", "join"})


class PureNodes:
    """The pure nodes of a graph with their expressions and templates."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.expression: dict[str, Expression] = {}
        self.cases: dict[str, list[tuple[str, Expression]]] = {}
        self.template: dict[str, Template] = {}
        self.value: dict[str, Value] = {}
        for node, kind in graph.kind.items():
            self._compile(node, kind, graph.config[node])

    def _compile(self, node: str, kind: str, config: dict[str, Any]) -> None:
        match kind:
            case "if-else" if "cases" in config:
                self.cases[node] = [(c["id"], compile_expression(c["expression"])) for c in config["cases"]]
            case "if-else":
                self.expression[node] = compile_expression(config["expression"])
            case "assigner":
                self.value[node] = compile_value(config.get("assignments", {}))
            case "end":
                self.value[node] = compile_value(config.get("outputs", {}))
            case "answer":
                self.template[node] = compile_template(config.get("template", config.get("text", "")))
            case "template-transform":
                structure = json_structure(config["template"])
                if structure is None:
                    self.template[node] = compile_template(config["template"])
                else:
                    self.value[node] = compile_value(structure)

    def evaluate(self, node: str, scope: dict[str, Any]) -> Success:
        """What a pure node answers; EvaluationError if it cannot."""
        match self.graph.kind[node]:
            case "start":
                declared = self.graph.config[node].get("inputs") or {}
                defaults = {k: v["default"] for k, v in declared.items() if "default" in v}
                return Success({**defaults, **scope["inputs"]})
            case "end":
                return Success(self.value[node].evaluate(scope))
            case "answer":
                text = self.template[node].render(scope)
                return Success({"text": text}, text)
            case "assigner":
                return Success({"state_updates": self.value[node].evaluate(scope)})
            case "if-else":
                return Success(self._decide(node, scope))
            case "template-transform" if node in self.value:
                return Success({"json": self.value[node].evaluate(scope)})
            case "template-transform":
                text = self.template[node].render(scope)
                return Success({"text": text}, text)
        return Success({})  # A join.

    def _decide(self, node: str, scope: dict[str, Any]) -> dict[str, Any]:
        if node in self.expression:
            met = self.expression[node].truth(scope)
            return {"condition_result": met, "route": "true" if met else "false"}
        for case, expression in self.cases[node]:
            if expression.truth(scope):
                return {"condition_result": True, "route": case}
        return {"condition_result": False, "route": "false"}


def json_structure(template: Any) -> dict[str, Any] | list[Any] | None:
    if not isinstance(template, str):
        return template  # type: ignore[no-any-return]
    try:
        parsed = json.loads(template)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict | list) else None
