"""Templates: text with `{{path}}` placeholders, and JSON values whose strings are such; compiled once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from schemas.problems import POINTER_MAX, pointer_of
from schemas.workflow.functions import EvaluationError, json_size, to_text
from schemas.workflow.paths import ExpressionError, Path, Run, Scope, path_reader, scan_path

LENGTH_MAX: Final = 1_048_576
PLACEHOLDERS_MAX: Final = 2_000
DEPTH_MAX: Final = 64
TEXT_MAX: Final = 1_048_576
VALUE_SIZE_MAX: Final = 4 * 1_048_576


class TemplateError(ValueError):
    """Does not compile; `position` counts characters from 0, `pointer` leads into a JSON value."""

    def __init__(self, position: int, reason: str, pointer: str = "") -> None:
        super().__init__(f"{reason} (at character {position})")
        self.position = position
        self.reason = reason
        self.pointer = pointer


@dataclass(frozen=True, slots=True)
class Template:
    text: str
    references: frozenset[Path] = field(compare=False)
    parts: tuple[str | Run, ...] = field(compare=False, repr=False)
    whole: Run | None = field(compare=False, repr=False)
    """Set when one placeholder is all there is: it keeps the type of what it reads."""

    def render(self, scope: Scope) -> str:
        """Text of at most TEXT_MAX characters; what is missing is empty."""
        pieces: list[str] = []
        room = TEXT_MAX
        for part in self.parts:
            piece = part if isinstance(part, str) else to_text(part(scope))
            room -= len(piece)
            if room < 0:
                raise EvaluationError(f"the text is longer than {TEXT_MAX} characters")
            pieces.append(piece)
        return "".join(pieces)

    def value(self, scope: Scope) -> Any:
        """What a whole-string placeholder reads, null if missing; else the text."""
        return self.render(scope) if self.whole is None else self.whole(scope)


def compile_template(text: str) -> Template:
    if len(text) > LENGTH_MAX:
        raise TemplateError(LENGTH_MAX, f"longer than {LENGTH_MAX} characters")
    parts: list[str | Run] = []
    references: set[Path] = set()
    placeholders = 0
    for piece in _pieces(text):
        if isinstance(piece, str):
            parts.append(piece)
            continue
        references.add(piece)
        parts.append(path_reader(piece))
        placeholders += 1
        if placeholders > PLACEHOLDERS_MAX:
            raise TemplateError(0, f"more than {PLACEHOLDERS_MAX} placeholders")
    only = parts[0] if len(parts) == 1 else None
    whole = None if isinstance(only, str) else only
    return Template(text, frozenset(references), tuple(parts), whole)


def _pieces(text: str) -> Iterator[str | Path]:
    end = 0
    while (opening := text.find("{{", end)) >= 0:
        if opening > end:
            yield text[end:opening]
        closing = text.find("}}", opening + 2)
        if closing < 0:
            raise TemplateError(opening, "'{{' is not closed")
        yield _placeholder(text, opening + 2, closing)
        end = closing + 2
    if end < len(text):
        yield text[end:]


def _placeholder(text: str, start: int, closing: int) -> Path:
    inner = text[start:closing]
    begin = start + len(inner) - len(inner.lstrip())
    if begin == closing:
        raise TemplateError(start, "the placeholder is empty")
    try:
        path, end = scan_path(text, begin)
    except ExpressionError as error:
        raise TemplateError(error.position, error.reason) from None
    if end != start + len(inner.rstrip()):
        raise TemplateError(end, f"only a path may stand in '{{{{…}}}}', not {text[end]!a}")
    return path


@dataclass(slots=True)
class Budget:
    """What one evaluation may still produce, so that many placeholders cannot multiply one large value."""

    room: int = VALUE_SIZE_MAX
    sizes: dict[int, int] = field(default_factory=dict)

    def spend(self, value: Any) -> None:
        if isinstance(value, str):
            self.room -= len(value)
        elif isinstance(value, list | dict):
            size = self.sizes.get(id(value))
            if size is None:
                size = self.sizes[id(value)] = json_size(value, VALUE_SIZE_MAX)
            self.room -= size
        if self.room < 0:
            raise EvaluationError(f"the value is larger than {VALUE_SIZE_MAX} characters")


Fill = Callable[[Scope, Budget | None], Any]


@dataclass(frozen=True, slots=True)
class Value:
    """A JSON value to fill in. A constant answers itself, not a copy: do not change it."""

    references: frozenset[Path]
    constant: bool
    source: Any = field(repr=False)
    fill: Fill = field(compare=False, repr=False)
    placeholders: int = field(compare=False, repr=False)

    def evaluate(self, scope: Scope) -> Any:
        if self.constant:
            return self.source
        return self.fill(scope, Budget() if self.placeholders > 1 else None)


def compile_value(value: Any, errors: list[TemplateError] | None = None) -> Value:
    """Compile every string in `value`; keys stay as they are.

    Without `errors` the first error is raised; with it all are added to it, each with its pointer.
    """
    found: list[TemplateError] = []
    compiled = _compile(value, "", 0, found)
    if compiled.placeholders > PLACEHOLDERS_MAX:
        found.append(TemplateError(0, f"more than {PLACEHOLDERS_MAX} placeholders"))
    if errors is not None:
        errors.extend(found)
    elif found:
        raise found[0]
    return compiled


def compile_json_template(text: str, errors: list[TemplateError] | None = None) -> Value | None:
    """The template as a JSON value to fill in if it is a JSON object or array; else None.

    It is parsed before it is filled, so nothing that is filled in can change its structure.
    """
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        parsed = orjson.loads(text)
    except ValueError:
        return None
    return compile_value(parsed, errors) if isinstance(parsed, dict | list) else None


def text_value(template: Template) -> Value:
    """The template as a value that is always text."""
    count = sum(not isinstance(part, str) for part in template.parts)
    constant = count == 0

    def fill(scope: Scope, budget: Budget | None) -> Any:
        return _spent(template.render(scope), budget)

    return Value(template.references, constant, template.text if constant else None, fill, count)


def object_value(members: dict[str, Value]) -> Value:
    """The values put together to one object."""
    return _container(dict(members), tuple(members.values()), {key: each.source for key, each in members.items()})


def _spent(value: Any, budget: Budget | None) -> Any:
    if budget is not None:
        budget.spend(value)
    return value


def _compile(value: Any, pointer: str, depth: int, errors: list[TemplateError]) -> Value:
    if depth > DEPTH_MAX:
        errors.append(TemplateError(0, f"nested deeper than {DEPTH_MAX}", pointer))
        return _constant(None)
    if isinstance(value, str) and "{{" in value:
        try:
            return _string(compile_template(value))
        except TemplateError as error:
            errors.append(TemplateError(error.position, error.reason, pointer))
            return _constant(None)
    if isinstance(value, list):
        items = [_compile(item, _below(pointer, at), depth + 1, errors) for at, item in enumerate(value)]
        return _container(items, tuple(items), value)
    if isinstance(value, dict):
        members = {key: _compile(item, _below(pointer, key), depth + 1, errors) for key, item in value.items()}
        return _container(members, tuple(members.values()), value)
    return _constant(value)


def _below(pointer: str, step: Any) -> str:
    """The pointer to a member or item, cut: each of many errors below a long key holds one."""
    return (pointer + pointer_of(step))[:POINTER_MAX]


def _constant(value: Any) -> Value:
    return Value(frozenset(), True, value, lambda scope, budget: value, 0)


def _string(template: Template) -> Value:
    whole = template.whole
    if whole is None:
        return text_value(template)

    def fill(scope: Scope, budget: Budget | None) -> Any:
        return _spent(whole(scope), budget)

    return Value(template.references, False, None, fill, 1)


def _container(shape: list[Value] | dict[str, Value], members: tuple[Value, ...], source: Any) -> Value:
    if all(member.constant for member in members):
        return _constant(source)
    references = frozenset().union(*(member.references for member in members))
    placeholders = sum(member.placeholders for member in members)
    if isinstance(shape, list):
        fills = [member.fill for member in shape]
        return Value(
            references,
            False,
            None,
            lambda scope, budget: [fill(scope, budget) for fill in fills],
            placeholders,
        )
    pairs = [(key, member.fill) for key, member in shape.items()]
    return Value(
        references,
        False,
        None,
        lambda scope, budget: {key: fill(scope, budget) for key, fill in pairs},
        placeholders,
    )
