"""One node's config: read it by its type's model and compile its templates and expressions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from schemas.problems import Problems, pointer_of
from schemas.workflow.expressions import Expression, ExpressionError, Path, compile_expression
from schemas.workflow.node_types import (
    Answer,
    Assigner,
    End,
    IfElse,
    Join,
    NodeConfig,
    Start,
    TemplateTransform,
    Tool,
    compiled_fields,
    cross_check,
    field_names,
    part_type,
)
from schemas.workflow.suggestions import Suggestions
from schemas.workflow.templates import (
    Template,
    TemplateError,
    Value,
    compile_json_template,
    compile_template,
    compile_value,
    object_value,
    text_value,
)

_LITERAL_CODES: Final = {
    "join_policy": "unknown_join_policy",
    "language": "unsupported_language",
    "on_error": "unknown_on_error",
    "on_timeout": "unknown_on_timeout",
    "task_type": "unknown_task_type",
    "backoff": "unknown_backoff",
    "role": "unknown_role",
    "type": "unknown_input_type",
}
_RANGE_CODES: Final = {
    "timeout_seconds": "timeout_out_of_range",
    "delay_seconds": "delay_out_of_range",
    "max_iterations": "max_iterations_out_of_range",
    "max_attempts": "retry_policy_out_of_range",
    "retry_delay_seconds": "retry_policy_out_of_range",
}
EXPRESSION_CHARACTERS_MAX: Final = 200_000
_LENGTHS: Final = ("string_too_long", "string_too_short", "too_long", "too_short")
_RANGES: Final = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")


@dataclass(slots=True)
class Allowance:
    """What the configs of one DSL may use together, so that compiling a hostile one stays short."""

    expression_characters: int = EXPRESSION_CHARACTERS_MAX
    suggestions: Suggestions = field(default_factory=Suggestions)


@dataclass(slots=True)
class CompiledConfig:
    """`raw` bears the fields' own names, `parts` are arguments of a Node, `reads` are paths by pointer."""

    raw: dict[str, Any] = field(default_factory=dict)
    pointers: dict[str, str] = field(default_factory=dict)
    config: NodeConfig | None = None
    parts: dict[str, Any] = field(default_factory=dict)
    reads: list[tuple[str, frozenset[Path]]] = field(default_factory=list)

    def references(self) -> frozenset[Path]:
        return frozenset[Path]().union(*(paths for _, paths in self.reads))


def compile_config(
    config_type: type[NodeConfig],
    config: Mapping[str, Any],
    pointer: str,
    problems: Problems,
    allowance: Allowance,
) -> CompiledConfig:
    """Goes on after each problem; `config` is None if there was one."""
    result = CompiledConfig()
    _name_fields(result, config_type, config, pointer, problems, allowance.suggestions)
    try:
        result.config = config_type.model_validate(result.raw)
    except ValidationError as error:
        _report(error, config_type, result, pointer, problems, allowance.suggestions)
    for name, code, detail in cross_check(config_type, result.raw):
        first, slash, rest = name.partition("/")
        problems.add(result.pointers.get(first, pointer) + slash + rest, code, detail)
    _warn(config_type, result, pointer, problems)
    _Compiler(result, problems, allowance).compile(config_type)
    return result


def _name_fields(
    result: CompiledConfig,
    config_type: type[NodeConfig],
    config: Mapping[str, Any],
    pointer: str,
    problems: Problems,
    suggestions: Suggestions,
) -> None:
    """Resolve the `…_json` names; null stands for a field that is not given."""
    names = field_names(config_type)
    for given, value in config.items():
        where = pointer + pointer_of(given)
        name = names.get(given)
        if name is None:
            hint = suggestions.hint(given, config_type.model_fields)
            problems.add(where, "unknown_field", f"unknown field{hint}")
            if problems.full():
                return
        elif name in result.pointers:
            problems.add(where, "conflicting_fields", f"{name} is given under two names")
        elif value is not None:
            result.raw[name] = value
            result.pointers[name] = where


def _report(
    error: ValidationError,
    config_type: type[NodeConfig],
    result: CompiledConfig,
    pointer: str,
    problems: Problems,
    suggestions: Suggestions,
) -> None:
    for each in error.errors(include_url=False, include_input=False, include_context=False):
        steps = each["loc"]
        first = str(steps[0]) if steps else ""
        base = result.pointers.get(first, pointer + pointer_of(*steps[:1]))
        last = next((step for step in reversed(steps) if isinstance(step, str)), "")
        detail = each["msg"]
        if each["type"] == "extra_forbidden" and (part := part_type(config_type, first)):
            detail = f"unknown field{suggestions.hint(last, part.model_fields)}; known: {', '.join(part.model_fields)}"
        problems.add(base + pointer_of(*steps[1:]), _code(each["type"], last), detail)


def _code(kind: str, name: str) -> str:
    if kind == "missing":
        return "missing_field"
    if kind == "extra_forbidden":
        return "unknown_field"
    if kind == "literal_error":
        return _LITERAL_CODES.get(name, "unknown_value")
    if kind in _RANGES:
        return _RANGE_CODES.get(name, "out_of_range")
    if kind in _LENGTHS:
        return "wrong_length"
    return "default_output_invalid" if name == "default_output" else "wrong_type"


def _warn(config_type: type[NodeConfig], result: CompiledConfig, pointer: str, problems: Problems) -> None:
    raw = result.raw
    used = raw.get("on_error") == "default" or raw.get("on_timeout") == "default"
    if "default_output" in raw and not used:
        problems.add(result.pointers["default_output"], "default_output_unused", "nothing asks for it")
    if raw.get("on_timeout") == "fail" and "timeout_seconds" not in raw:
        problems.add(result.pointers["on_timeout"], "on_timeout_unused", "there is no timeout_seconds")
    if config_type is Tool and not raw.keys() & {"tool_binding_id", "url", "base_url"}:
        detail = "none of tool_binding_id, url, base_url is given"
        problems.add(pointer, "tool_unresolved", detail)


class _Compiler:
    """Compiles the marked fields whether or not the rest of the config is right."""

    def __init__(self, result: CompiledConfig, problems: Problems, allowance: Allowance) -> None:
        self.result = result
        self.problems = problems
        self.allowance = allowance

    def compile(self, config_type: type[NodeConfig]) -> None:
        parts = self.result.parts
        inputs: dict[str, Value] = {}
        for name, mark in compiled_fields(config_type):
            raw = self.result.raw.get(name)
            if mark == "value" and raw is not None:
                inputs[name] = parts[name] = self.value(name, raw)
            elif mark == "text" and isinstance(raw, str):
                if (template := self.text(name, raw)) is not None:
                    parts[name] = template
                    inputs[name] = text_value(template)
            elif mark == "expression" and isinstance(raw, str):
                parts[name] = self.expression(self.result.pointers[name], raw)
        if config_type is IfElse:
            parts["cases"] = self.cases(self.result.raw.get("cases"))
        elif config_type is TemplateTransform:
            self.transform(self.result.raw.get("template"))
        elif config_type is Answer:
            parts["text"] = parts.pop("template", None) or parts.get("text")
        elif config_type not in (Start, End, Assigner, Join):
            self.result.parts = {"input_value": object_value(inputs)}

    def value(self, name: str, raw: Any) -> Value:
        errors: list[TemplateError] = []
        compiled = compile_value(raw, errors)
        pointer = self.result.pointers[name]
        for error in errors:
            self.problems.add(pointer + error.pointer, "template_invalid", str(error))
        self.result.reads.append((pointer, compiled.references))
        return compiled

    def text(self, name: str, raw: str) -> Template | None:
        pointer = self.result.pointers[name]
        try:
            template = compile_template(raw)
        except TemplateError as error:
            self.problems.add(pointer, "template_invalid", str(error))
            return None
        self.result.reads.append((pointer, template.references))
        return template

    def expression(self, pointer: str, raw: str) -> Expression | None:
        self.allowance.expression_characters -= len(raw)
        if self.allowance.expression_characters < 0:
            detail = f"all expressions together have more than {EXPRESSION_CHARACTERS_MAX} characters"
            self.problems.add(pointer, "expressions_too_long", detail)
            return None
        try:
            expression = compile_expression(raw)
        except ExpressionError as error:
            self.problems.add(pointer, "expression_invalid", str(error))
            return None
        self.result.reads.append((pointer, expression.references))
        return expression

    def cases(self, raw: Any) -> tuple[tuple[str, Expression], ...]:
        compiled: list[tuple[str, Expression]] = []
        for at, case in enumerate(raw if isinstance(raw, list) else ()):
            if not isinstance(case, dict) or not isinstance(case.get("expression"), str):
                continue
            pointer = f"{self.result.pointers['cases']}/{at}/expression"
            expression = self.expression(pointer, case["expression"])
            if expression is not None:
                compiled.append((str(case.get("id")), expression))
        return tuple(compiled)

    def transform(self, raw: Any) -> None:
        if isinstance(raw, dict | list):
            self.result.parts["json_template"] = self.value("template", raw)
        elif isinstance(raw, str):
            errors: list[TemplateError] = []
            structured = compile_json_template(raw, errors)
            pointer = self.result.pointers["template"]
            for error in errors:
                self.problems.add(pointer, "template_invalid", f"{error} in {error.pointer}")
            if structured is not None:
                self.result.parts["json_template"] = structured
                self.result.reads.append((pointer, structured.references))
            else:
                self.result.parts["template"] = self.text("template", raw)
