"""Text of strangers as it may stand on a terminal or in a log: nothing in it moves a cursor or makes a line.

What came in a record, a body, a header or another server's error can hold terminal sequences, line breaks that forge
a line, and characters that turn the direction of what follows.
"""

from __future__ import annotations

import re
import traceback
from typing import Any

import orjson

# C0 with line breaks and tabs, DEL, C1, marks and overrides of direction, line and paragraph separators, deprecated
# format characters, the byte order mark, interlinear annotations, lone surrogates.
_ACTIVE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")
_CHAIN_MAX = 10


def escaped(text: str) -> str:
    """The text on one line, each character that would do something written as its escape, such as \\x1b."""
    return _ACTIVE.sub(_as_escape, text)


def _as_escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    short = {9: "\\t", 10: "\\n", 13: "\\r"}
    return short.get(number) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")


def escaped_json(document: Any, *, option: int = 0) -> str:
    """The same value as orjson writes, in which such characters are JSON escapes. `option`: of orjson."""
    # The line breaks of an indented document are its own: within strings orjson escapes them.
    return _ACTIVE.sub(_as_json_escape, orjson.dumps(document, option=option).decode())


def _as_json_escape(found: re.Match[str]) -> str:
    return "\n" if found[0] == "\n" else f"\\u{ord(found[0]):04x}"


def encodable(value: Any) -> Any:
    """The value with lone surrogates, as names of files may hold them, written as escapes: JSON has none."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {encodable(key): encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encodable(item) for item in value]
    return value


def traceback_lines(error: BaseException, *, chained: int = _CHAIN_MAX) -> list[str]:
    """An error with its stack and what led to it, a line each: its text cannot make further ones."""
    lines: list[str] = []
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and chained:
        lines += [*traceback_lines(before, chained=chained - 1), "which led to:"]
    if error.__traceback__ is not None:
        lines.append("Traceback (most recent call last):")
        lines += [
            escaped(line) for part in traceback.format_tb(error.__traceback__) for line in part.split("\n") if line
        ]
    lines.append(escaped(f"{type(error).__module__}.{type(error).__qualname__}: {_text(error)}"))
    lines += [escaped(str(note)) for note in getattr(error, "__notes__", ())]
    if isinstance(error, BaseExceptionGroup) and chained:
        for each in error.exceptions:
            lines += [f"  | {line}" for line in traceback_lines(each, chained=chained - 1)]
    return lines


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as unprintable:  # Whatever its __str__ does, the rest is worth having.
        return f"<no text: {type(unprintable).__name__}>"
