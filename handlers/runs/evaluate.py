"""What a pure node answers: from its compiled config and the scope of its run, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson

from schemas.messages import JsonObject
from schemas.problems import FieldError
from schemas.runtime import VALUE_BYTES_MAX
from schemas.workflow.expressions import EvaluationError
from schemas.workflow.graph import Node
from schemas.workflow.node_types import NO_CASE, InputSpec, Start, is_of_type


class NodeError(Exception):
    """A node failed for a reason with a code of its own. `retryable` false: another attempt is pointless.

    `run_id`: the child run that failed; `refused`: this attempt was handed over to nobody.
    """

    def __init__(
        self, code: str, message: str, *, retryable: bool = True, run_id: str | None = None, refused: bool = False
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retryable = retryable
        self.run_id = run_id
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Answer:
    output: JsonObject
    text: str | None = None
    state_updates: JsonObject | None = None
    route: str | None = None


def evaluate(node: Node, scope: JsonObject) -> Answer:
    """The answer of a pure node. Raises NodeError."""
    try:
        answer = _evaluate(node, scope)
    except EvaluationError as error:
        raise NodeError("evaluation_failed", str(error)) from None
    check_size(answer.output)
    return answer


def check_size(output: Any) -> None:
    """Raise NodeError `output_too_large` for what must be an artifact."""
    size = len(orjson.dumps(output))
    if size > VALUE_BYTES_MAX:
        raise NodeError("output_too_large", f"{size} bytes of output, at most {VALUE_BYTES_MAX}", retryable=False)


def _evaluate(node: Node, scope: JsonObject) -> Answer:
    match node.type:
        case "start":
            return Answer(_checked_inputs(cast(Start, node.config), scope["inputs"]))
        case "end":
            return Answer(node.outputs.evaluate(scope) if node.outputs is not None else {})
        case "answer":
            text = node.text.render(scope) if node.text is not None else ""
            return Answer({"text": text}, text)
        case "assigner":
            updates = node.assignments.evaluate(scope) if node.assignments is not None else {}
            return Answer({"state_updates": updates}, state_updates=updates)
        case "if-else":
            return _route(node, scope)
        case "template-transform":
            if node.json_template is not None:
                return Answer({"json": node.json_template.evaluate(scope)})
            text = node.template.render(scope) if node.template is not None else ""
            return Answer({"text": text}, text)
        case "join":
            return Answer({})
        case _:
            raise NodeError("node_type_unavailable", f"{node.type} cannot run here", retryable=False)


def _route(node: Node, scope: JsonObject) -> Answer:
    if node.expression is not None:
        result = node.expression.truth(scope)
        route = "true" if result else "false"
    else:
        route = next((name for name, expression in node.cases if expression.truth(scope)), NO_CASE)
        result = route != NO_CASE
    return Answer({"condition_result": result, "route": route}, route=route)


def _checked_inputs(config: Start, inputs: JsonObject) -> JsonObject:
    """The run's inputs with defaults filled in; those that the node does not name are kept."""
    checked = dict(inputs)
    for name, spec in config.inputs.items():
        if checked.get(name) is None:
            if spec.required and spec.default is None:
                raise NodeError("input_missing", f"input {name!r} is required", retryable=False)
            if spec.default is not None or name in checked:
                checked[name] = spec.default
        elif not is_of_type(checked[name], spec.type):
            raise NodeError("input_invalid", f"input {name!r} must be of type {spec.type}", retryable=False)
    return checked


def with_defaults(starts: Sequence[Start], inputs: JsonObject) -> JsonObject:
    """The inputs of a run as its templates see them: with the defaults of the start nodes that it begins at."""
    specs = [(name, spec) for config in starts for name, spec in config.inputs.items()]
    missing = {name: spec.default for name, spec in specs if spec.default is not None and inputs.get(name) is None}
    return inputs | missing


def input_problems(starts: Sequence[Start], inputs: JsonObject) -> list[FieldError]:
    """What is wrong with the inputs of a run before it starts, by JSON pointer.

    They are kept with the run, with the defaults of its start nodes, and each of these hands them on.
    """
    found = [problem for config in starts for problem in _problems(config.inputs, inputs)]
    size = len(orjson.dumps(inputs if found else with_defaults(starts, inputs)))
    if size > VALUE_BYTES_MAX:
        detail = f"{size} bytes as JSON with their defaults, at most {VALUE_BYTES_MAX}"
        found.append({"pointer": "/inputs", "code": "too_large", "detail": detail})
    return found


def _problems(specs: dict[str, InputSpec], inputs: JsonObject) -> Iterator[FieldError]:
    for name, spec in specs.items():
        pointer = "/inputs/" + name.replace("~", "~0").replace("/", "~1")
        if inputs.get(name) is None:
            if spec.required and spec.default is None:
                yield {"pointer": pointer, "code": "missing", "detail": "this input is required"}
        elif not is_of_type(inputs[name], spec.type):
            yield {"pointer": pointer, "code": "wrong_type", "detail": f"must be of type {spec.type}"}
