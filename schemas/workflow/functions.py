"""The whitelisted functions of expressions, and the value rules that expressions and templates share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final

import orjson

INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**63 - 1
TEXT_MAX: Final = 1_048_576
DATA_DEPTH_MAX: Final = 100
ARGUMENTS_MAX: Final = 16

_NUMBERS: Final[frozenset[Any]] = frozenset((int, float))
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,19}")
_FLOAT: Final = re.compile(r"[+-]?[0-9]{1,400}(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,4})?")


class EvaluationError(ValueError):
    """Has no value at run time; the node fails with `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def bounded(number: Any) -> Any:
    """The number itself if it is a finite float or an integer of 64 bits."""
    if number.__class__ is int:
        if INTEGER_MIN <= number <= INTEGER_MAX:
            return number
    elif math.isfinite(number):
        return number
    raise EvaluationError("the number is out of range")


def equal(a: Any, b: Any, depth: int = 0) -> bool:
    """JSON equality: 1 equals 1.0, true does not equal 1."""
    kind = a.__class__
    other = b.__class__
    if kind is not other:
        return kind in _NUMBERS and other in _NUMBERS and bool(a == b)
    if kind is not list and kind is not dict:
        return bool(a == b)
    if depth == DATA_DEPTH_MAX:
        raise EvaluationError("a value is nested too deeply to compare")
    if len(a) != len(b):
        return False
    if kind is list:
        return all(equal(x, y, depth + 1) for x, y in zip(a, b, strict=True))
    return all(key in b and equal(value, b[key], depth + 1) for key, value in a.items())


def to_text(value: Any) -> str:
    """How a value reads inside text: null is empty, text is itself, the rest is JSON."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if value.__class__ is int:
        return str(bounded(value))
    if value.__class__ is float:
        bounded(value)
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as error:
        raise EvaluationError(f"the value has no JSON form: {error}") from None


def json_size(value: Any, enough: int) -> int:
    """About how many characters the value's JSON has; counting stops beyond `enough`."""
    size = 0
    pending = [value]
    while pending and size <= enough:
        item = pending.pop()
        if isinstance(item, str):
            size += len(item) + 3
        elif isinstance(item, list):
            size += len(item) + 2
            pending.extend(item)
        elif isinstance(item, dict):
            size += 2 + sum(len(key) + 4 for key in item)
            pending.extend(item.values())
        else:
            size += 8
    return size


def _wrong(name: str, expected: str) -> EvaluationError:
    return EvaluationError(f"{name}: the argument is not {expected}")


def _capped(text: str) -> str:
    if len(text) > TEXT_MAX:
        raise EvaluationError("the text is too long")
    return text


def _len(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, str | list | dict):
        raise _wrong("len", "text, a list or an object")
    return len(value)


def _on_text(name: str, function: Callable[[str], str]) -> Callable[[Any], Any]:
    def call(value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, str):
            raise _wrong(name, "text")
        return _capped(function(value))

    return call


def _on_affix(name: str, function: Callable[[str, str], bool]) -> Callable[[Any, Any], Any]:
    def call(value: Any, affix: Any) -> Any:
        if value is None or affix is None:
            return None
        if not isinstance(value, str) or not isinstance(affix, str):
            raise _wrong(name, "text")
        return function(value, affix)

    return call


def _extreme(name: str, choose: Callable[[Any], Any]) -> Callable[..., Any]:
    def call(*values: Any) -> Any:
        if len(values) == 1:
            if values[0] is None:
                return None
            if not isinstance(values[0], list):
                raise _wrong(name, "a list")
            values = tuple(values[0])
        if not values or None in values:
            return None
        kinds = {value.__class__ for value in values}
        if kinds != {str} and not kinds <= _NUMBERS:
            raise _wrong(name, "numbers only or text only")
        return choose(values)

    return call


def _abs(value: Any) -> Any:
    if value is None:
        return None
    if value.__class__ not in _NUMBERS:
        raise _wrong("abs", "a number")
    return bounded(abs(value))


def _round(value: Any, digits: Any = None) -> Any:
    if value is None:
        return None
    if value.__class__ not in _NUMBERS:
        raise _wrong("round", "a number")
    if digits is None:
        return bounded(round(value))
    if digits.__class__ is not int or not 0 <= digits <= 15:
        raise EvaluationError("round: digits are an integer from 0 to 15")
    return bounded(round(value, digits))


def _int(value: Any) -> Any:
    if value is None:
        return None
    if value.__class__ is bool:
        return int(value)
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return bounded(int(value.strip()))
    if value.__class__ in _NUMBERS:
        return bounded(int(bounded(value)))
    raise _wrong("int", "a number")


def _float(value: Any) -> Any:
    if value is None:
        return None
    if value.__class__ is bool:
        return float(value)
    if isinstance(value, str) and _FLOAT.fullmatch(value.strip()):
        return bounded(float(value.strip()))
    if value.__class__ in _NUMBERS:
        return float(bounded(value))
    raise _wrong("float", "a number")


def _is_null(value: Any) -> bool:
    return value is None


def _default(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


# name: (fewest arguments, most, function). A null argument gives null, but for str, is_null and default.
FUNCTIONS: Final[dict[str, tuple[int, int, Callable[..., Any]]]] = {
    "len": (1, 1, _len),
    "lower": (1, 1, _on_text("lower", str.lower)),
    "upper": (1, 1, _on_text("upper", str.upper)),
    "trim": (1, 1, _on_text("trim", str.strip)),
    "abs": (1, 1, _abs),
    "min": (1, ARGUMENTS_MAX, _extreme("min", min)),
    "max": (1, ARGUMENTS_MAX, _extreme("max", max)),
    "round": (1, 2, _round),
    "int": (1, 1, _int),
    "float": (1, 1, _float),
    "str": (1, 1, lambda value: _capped(to_text(value))),
    "starts_with": (2, 2, _on_affix("starts_with", str.startswith)),
    "ends_with": (2, 2, _on_affix("ends_with", str.endswith)),
    "is_null": (1, 1, _is_null),
    "default": (2, 2, _default),
}
