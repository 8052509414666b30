"""What a JSON value from outside may be: no NaN, no U+0000, no lone surrogates, bounded depth."""

from __future__ import annotations

from typing import Any, TypeAlias

import orjson

from schemas.envelope import Malformed
from schemas.problems import FieldError

DEPTH_MAX = 64
POINTER_CHARACTERS_MAX = 2_000
_Place: TypeAlias = "tuple[_Place, str | int] | None"
"""Where a value is, as a chain of steps. A pointer is made for an error only: with one long key above many
items, a text for each of them would fill the memory."""


class InvalidValue(Malformed):
    """A JSON value that cannot be kept; `pointer` (RFC 6901) names the place."""

    def __init__(self, code: str, detail: str, pointer: str) -> None:
        super().__init__(code, f"{pointer or '/'}: {detail}")
        self.pointer = pointer
        self.errors: tuple[FieldError, ...] = ({"pointer": pointer, "code": code, "detail": detail},)


def parse(body: bytes) -> Any:
    """The value of a strict JSON text (RFC 8259, UTF-8). Raises Malformed `invalid_json` or InvalidValue."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed("invalid_json", str(error)) from None
    check(value)
    return value


def check(value: Any) -> None:
    """Raise InvalidValue for the first part of `value` that cannot be stored. Iterative: depth cannot hurt it."""
    todo: list[tuple[Any, _Place, int]] = [(value, None, 0)]
    while todo:
        item, place, depth = todo.pop()
        if isinstance(item, str):
            _check_text(item, place)
        elif isinstance(item, float):
            if item != item or item in (float("inf"), float("-inf")):
                raise InvalidValue("not_a_number", "NaN and Infinity are not JSON", _pointer(place))
        elif isinstance(item, dict):
            if depth >= DEPTH_MAX:
                raise InvalidValue("too_deep", f"nested deeper than {DEPTH_MAX}", _pointer(place))
            for key, child in item.items():
                if not isinstance(key, str):
                    raise InvalidValue("invalid_key", "object keys must be strings", _pointer(place))
                _check_text(key, place)
                todo.append((child, (place, key), depth + 1))
        elif isinstance(item, list | tuple):
            if depth >= DEPTH_MAX:
                raise InvalidValue("too_deep", f"nested deeper than {DEPTH_MAX}", _pointer(place))
            todo.extend((child, (place, index), depth + 1) for index, child in enumerate(item))
        elif isinstance(item, int) and not isinstance(item, bool):
            if not -(2**63) <= item < 2**64:
                raise InvalidValue("too_large", "whole numbers must fit 64 bits", _pointer(place))
        elif item is not None and not isinstance(item, bool):
            raise InvalidValue("not_json", f"{type(item).__name__} is not JSON", _pointer(place))


def _pointer(place: _Place) -> str:
    """RFC 6901, cut at POINTER_CHARACTERS_MAX."""
    steps = []
    while place is not None:
        place, step = place
        steps.append(str(step).replace("~", "~0").replace("/", "~1"))
    return "".join("/" + step for step in reversed(steps))[:POINTER_CHARACTERS_MAX]


def _check_text(text: str, place: _Place) -> None:
    if "\x00" in text:
        raise InvalidValue("nul_character", "U+0000 cannot be stored", _pointer(place))
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidValue("lone_surrogate", "lone surrogates cannot be stored", _pointer(place)) from None
