"""The expression language: comparison, boolean and arithmetic over dotted paths, compiled once to closures.

Grammar, loosest first: `or ||`, `and &&`, `not`, comparison (`== != < <= > >= in, not in, contains`; it does
not chain), `+ -`, `* / %`, `- !`, then literals, `[lists]`, paths, whitelisted calls and parentheses.
Values are JSON values. Missing is null; ordering of unlike types or null is false; arithmetic on anything but
numbers is an EvaluationError; true never equals 1; null, false, 0, "", [] and {} count as false.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from schemas.workflow.functions import FUNCTIONS, EvaluationError, bounded, equal, json_size
from schemas.workflow.paths import ExpressionError, Path, Run, Scope, is_name_char, path_reader, scan_path

__all__ = [
    "EvaluationError",
    "Expression",
    "ExpressionError",
    "Path",
    "Scope",
    "compile_expression",
    "is_name_char",
    "path_reader",
    "scan_path",
]

LENGTH_MAX: Final = 2_000
DEPTH_MAX: Final = 64
RESULT_SIZE_MAX: Final = 1_048_576


@dataclass(frozen=True, slots=True)
class Expression:
    text: str
    references: frozenset[Path] = field(compare=False)
    run: Run = field(compare=False, repr=False)
    builds_lists: bool = field(compare=False, repr=False)

    def evaluate(self, scope: Scope) -> Any:
        """The value; EvaluationError if it has none, or if it is over the size limit."""
        value = self.run(scope)
        if self.builds_lists and json_size(value, RESULT_SIZE_MAX) > RESULT_SIZE_MAX:
            raise EvaluationError("the result is too large")
        return value

    def truth(self, scope: Scope) -> bool:
        return bool(self.run(scope))


def compile_expression(text: str) -> Expression:
    if len(text) > LENGTH_MAX:
        raise ExpressionError(LENGTH_MAX, f"longer than {LENGTH_MAX} characters")
    parser = _Parser(text)
    run = parser.whole()
    return Expression(text, frozenset(parser.references), run, parser.builds_lists)


# Tokens

_NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_SYMBOL: Final = re.compile(r"==|!=|<=|>=|&&|\|\||[<>+\-*/%()\[\],!]")
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_ESCAPES: Final = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "t": "\t", "r": "\r"}
_WORDS: Final = {"and": "&&", "or": "||", "not": "not", "in": "in", "contains": "contains"}
_LITERALS: Final[dict[str, Any]] = {"true": True, "false": False, "null": None}


class _Token(NamedTuple):
    kind: str  # an operator or bracket as such, or: value, path, call, end
    value: Any
    position: int


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    position = _skip(text, 0)
    while position < len(text):
        token, position = _token(text, position)
        found.append(token)
        position = _skip(text, position)
    found.append(_Token("end", None, position))
    return found


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _token(text: str, position: int) -> tuple[_Token, int]:
    char = text[position]
    if char in "'\"":
        return _string(text, position)
    if "0" <= char <= "9":
        return _number(text, position)
    if is_name_char(char):
        return _word(text, position)
    if symbol := _SYMBOL.match(text, position):
        return _Token(symbol.group(), None, position), symbol.end()
    hint = "; compare with ==" if char == "=" else ""
    raise ExpressionError(position, f"unexpected {char!a}{hint}")


def _string(text: str, start: int) -> tuple[_Token, int]:
    quote = text[start]
    chars: list[str] = []
    position = start + 1
    while position < len(text) and text[position] != quote:
        char = text[position]
        if char == "\0" or "\ud800" <= char <= "\udfff":
            raise ExpressionError(position, "a string holds U+0000 or a lone surrogate")
        if char == "\\":
            position += 1
            escaped = _ESCAPES.get(text[position : position + 1])
            if escaped is None:
                raise ExpressionError(position, "unknown escape in a string")
            char = escaped
        chars.append(char)
        position += 1
    if position >= len(text):
        raise ExpressionError(start, "the string is not closed")
    return _Token("value", "".join(chars), start), position + 1


def _number(text: str, start: int) -> tuple[_Token, int]:
    match = _NUMBER.match(text, start)
    end = match.end() if match else start
    if end < len(text) and (is_name_char(text[end]) or text[end] == "."):
        raise ExpressionError(start, "not a number")
    digits = text[start:end]
    try:
        value = bounded(int(digits) if digits.isdecimal() else float(digits))
    except EvaluationError as error:
        raise ExpressionError(start, error.reason) from None
    return _Token("value", value, start), end


def _word(text: str, start: int) -> tuple[_Token, int]:
    end = start
    while end < len(text) and is_name_char(text[end]):
        end += 1
    word = text[start:end]
    if end == len(text) or text[end] != ".":
        if word in _LITERALS:
            return _Token("value", _LITERALS[word], start), end
        if word in _WORDS:
            return _Token(_WORDS[word], None, start), end
        if text.startswith("(", _skip(text, end)):
            return _Token("call", word, start), end
    path, end = scan_path(text, start)
    return _Token("path", path, start), end


# Parser: precedence climbing; chains of one level become one closure, so depth is that of nesting.

_OR, _AND, _COMPARE, _ADD, _MULTIPLY, _UNARY = range(6)
_LEVELS: Final = {
    "||": _OR, "&&": _AND, "==": _COMPARE, "!=": _COMPARE, "<": _COMPARE, "<=": _COMPARE, ">": _COMPARE,
    ">=": _COMPARE, "in": _COMPARE, "not": _COMPARE, "contains": _COMPARE, "+": _ADD, "-": _ADD,
    "*": _MULTIPLY, "/": _MULTIPLY, "%": _MULTIPLY,
}  # fmt: skip


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.at = 0
        self.depth = 0
        self.references: set[Path] = set()
        self.builds_lists = False

    def whole(self) -> Run:
        run = self.expression(_OR)
        if self.peek() != "end":
            raise self.unexpected()
        return run

    def peek(self) -> str:
        return self.tokens[self.at].kind

    def next(self) -> _Token:
        token = self.tokens[self.at]
        self.at += 1
        return token

    def expect(self, kind: str) -> None:
        if self.peek() != kind:
            raise self.unexpected(f"; expected {kind!r}")
        self.at += 1

    def unexpected(self, hint: str = "") -> ExpressionError:
        kind, _, position = self.tokens[self.at]
        what = "the expression ends too early" if kind == "end" else f"unexpected {kind!r}"
        return ExpressionError(position, what + hint)

    def expression(self, lowest: int) -> Run:
        """Everything that binds at least as tightly as `lowest`."""
        if self.depth > DEPTH_MAX:
            raise ExpressionError(self.tokens[self.at].position, f"nested deeper than {DEPTH_MAX}")
        self.depth += 1
        left = self.prefix(lowest)
        while (level := _LEVELS.get(self.peek(), -1)) >= lowest:
            left = self.comparison(left) if level == _COMPARE else self.chain(left, level)
        self.depth -= 1
        return left

    def prefix(self, lowest: int) -> Run:
        kind = self.peek()
        if kind == "not":
            if lowest > _COMPARE:
                raise self.unexpected("; put the negation in parentheses")
            self.at += 1
            return _negation(self.expression(_COMPARE))
        if kind == "!":
            self.at += 1
            return _negation(self.expression(_UNARY))
        if kind == "-":
            self.at += 1
            return _minus(self.expression(_UNARY))
        return self.operand()

    def chain(self, left: Run, level: int) -> Run:
        rest: list[tuple[str, Run]] = []
        while _LEVELS.get(self.peek()) == level:
            rest.append((self.next().kind, self.expression(level + 1)))
        if level in (_OR, _AND):
            return _boolean((left, *(run for _, run in rest)), level == _OR)
        return _arithmetic(left, tuple((_ARITHMETIC[sign], run) for sign, run in rest))

    def comparison(self, left: Run) -> Run:
        kind = self.next().kind
        if kind == "not":
            self.expect("in")
        right = self.expression(_ADD)
        if _LEVELS.get(self.peek()) == _COMPARE:
            raise self.unexpected("; comparisons do not chain, use 'and'")
        match kind:
            case "==" | "!=":
                return _equality(left, right, kind == "==")
            case "in":
                return _membership(right, left)
            case "not":
                return _negation(_membership(right, left))
            case "contains":
                return _membership(left, right)
            case _:
                return _ordering(left, right, _ORDERINGS[kind])

    def operand(self) -> Run:
        kind, value, position = self.tokens[self.at]
        if kind not in ("value", "path", "call", "(", "["):
            raise self.unexpected()
        self.at += 1
        match kind:
            case "value":
                return lambda _: value
            case "path":
                self.references.add(value)
                return path_reader(value)
            case "(":
                run = self.expression(_OR)
                self.expect(")")
                return run
            case "[":
                self.builds_lists = True
                return _list(self.arguments("]"))
            case _:
                self.expect("(")
                return _call(value, self.arguments(")"), position)

    def arguments(self, closing: str) -> tuple[Run, ...]:
        runs: list[Run] = []
        while self.peek() != closing:
            runs.append(self.expression(_OR))
            if self.peek() != closing:
                self.expect(",")
                if self.peek() == closing:
                    raise self.unexpected("; a value is missing after ','")
        self.at += 1
        return tuple(runs)


# Closures

_NUMBERS: Final[frozenset[Any]] = frozenset((int, float))
_ORDERINGS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ARITHMETIC: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "%": operator.mod,
}


def _negation(operand: Run) -> Run:
    return lambda scope: not operand(scope)


def _minus(operand: Run) -> Run:
    def run(scope: Scope) -> Any:
        value = operand(scope)
        if value.__class__ not in _NUMBERS:
            raise EvaluationError("arithmetic on something that is not a number")
        return bounded(-value)

    return run


def _boolean(operands: tuple[Run, ...], decisive: bool) -> Run:
    """`or` if true decides, `and` if false does."""

    def run(scope: Scope) -> bool:
        for operand in operands:
            if bool(operand(scope)) is decisive:
                return decisive
        return not decisive

    return run


def _arithmetic(first: Run, rest: tuple[tuple[Callable[[Any, Any], Any], Run], ...]) -> Run:
    def run(scope: Scope) -> Any:
        value = first(scope)
        for apply, operand in rest:
            other = operand(scope)
            if value.__class__ not in _NUMBERS or other.__class__ not in _NUMBERS:
                raise EvaluationError("arithmetic on something that is not a number")
            try:
                value = bounded(apply(value, other))
            except ZeroDivisionError:
                raise EvaluationError("division by zero") from None
            except OverflowError:
                raise EvaluationError("the number is out of range") from None
        return value

    return run


def _equality(left: Run, right: Run, expected: bool) -> Run:
    return lambda scope: equal(left(scope), right(scope)) is expected


def _ordering(left: Run, right: Run, compare: Callable[[Any, Any], bool]) -> Run:
    def run(scope: Scope) -> bool:
        a = left(scope)
        b = right(scope)
        if (a.__class__ in _NUMBERS and b.__class__ in _NUMBERS) or (a.__class__ is b.__class__ is str):
            return compare(a, b)
        return False

    return run


def _membership(container: Run, member: Run) -> Run:
    def run(scope: Scope) -> bool:
        wanted = member(scope)
        within = container(scope)
        if isinstance(within, list):
            return any(equal(wanted, value) for value in within)
        return isinstance(within, str | dict) and isinstance(wanted, str) and wanted in within

    return run


def _list(items: tuple[Run, ...]) -> Run:
    return lambda scope: [item(scope) for item in items]


def _call(name: str, arguments: tuple[Run, ...], position: int) -> Run:
    if name not in FUNCTIONS:
        raise ExpressionError(position, f"unknown function {name[:64]!r}; known: {', '.join(FUNCTIONS)}")
    least, most, function = FUNCTIONS[name]
    if not least <= len(arguments) <= most:
        raise ExpressionError(position, f"{name} takes {least} to {most} arguments, not {len(arguments)}")
    if len(arguments) == 1:
        only = arguments[0]
        return lambda scope: function(only(scope))
    return lambda scope: function(*(argument(scope) for argument in arguments))
