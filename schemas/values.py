"""What a JSON value from outside may be: no NaN, no U+0000, no lone surrogates, bounded depth."""

from __future__ import annotations

from typing import Any

import orjson

from schemas.envelope import Malformed

DEPTH_MAX = 64


class InvalidValue(Malformed):
    """A JSON value that cannot be kept; `pointer` (RFC 6901) names the place."""

    def __init__(self, code: str, detail: str, pointer: str) -> None:
        super().__init__(code, f"{pointer or '/'}: {detail}")
        self.pointer = pointer
        self.errors = ({"pointer": pointer, "code": code, "detail": detail},)


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
    todo: list[tuple[Any, str, int]] = [(value, "", 0)]
    while todo:
        item, pointer, depth = todo.pop()
        if isinstance(item, str):
            _check_text(item, pointer)
        elif isinstance(item, float):
            if item != item or item in (float("inf"), float("-inf")):
                raise InvalidValue("not_a_number", "NaN and Infinity are not JSON", pointer)
        elif isinstance(item, dict):
            if depth >= DEPTH_MAX:
                raise InvalidValue("too_deep", f"nested deeper than {DEPTH_MAX}", pointer)
            for key, child in item.items():
                if not isinstance(key, str):
                    raise InvalidValue("invalid_key", "object keys must be strings", pointer)
                _check_text(key, pointer)
                todo.append((child, f"{pointer}/{key}", depth + 1))
        elif isinstance(item, list | tuple):
            if depth >= DEPTH_MAX:
                raise InvalidValue("too_deep", f"nested deeper than {DEPTH_MAX}", pointer)
            todo.extend((child, f"{pointer}/{index}", depth + 1) for index, child in enumerate(item))
        elif isinstance(item, int) and not isinstance(item, bool):
            if not -(2**63) <= item < 2**64:
                raise InvalidValue("too_large", "whole numbers must fit 64 bits", pointer)
        elif item is not None and not isinstance(item, bool):
            raise InvalidValue("not_json", f"{type(item).__name__} is not JSON", pointer)


def _check_text(text: str, pointer: str) -> None:
    if "\x00" in text:
        raise InvalidValue("nul_character", "U+0000 cannot be stored", pointer)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidValue("lone_surrogate", "lone surrogates cannot be stored", pointer) from None
